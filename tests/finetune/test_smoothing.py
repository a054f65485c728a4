"""Which label smoothing an update uses, and what its record says."""

from typing import Any

import pytest
from pydantic import ValidationError

from core.settings import Settings, UpdateSettings
from finetune.smoothing import MOST, label_smoothing

RATE = {"value": 0.12, "low": 0.08, "high": 0.17, "n": 90, "undefined": None, "source": "overlap"}


def manifest(**more: Any) -> dict[str, Any]:
    return {"n_train": 80, "n_heldout": 20, "n_simulated": 0, "n_imported": 0, "flip_rate": RATE, **more}


def test_a_number_is_taken_as_it_is() -> None:
    value, record = label_smoothing(UpdateSettings(label_smoothing=0.2), manifest())
    assert (value, record) == (0.2, {"value": 0.2, "why": "the setting says so"})


def test_auto_takes_the_snapshots_flip_rate() -> None:
    value, record = label_smoothing(UpdateSettings(), manifest())
    assert value == 0.12
    assert record == {"value": 0.12, "why": "flip rate of people's judgments, from overlap", "flip_rate": RATE}


def test_a_high_rate_is_held() -> None:
    value, record = label_smoothing(UpdateSettings(), manifest(flip_rate=RATE | {"value": 0.41}))
    assert value == MOST
    assert "held to 0.3" in record["why"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "the snapshot was frozen without one"),
        ({"flip_rate": RATE | {"value": None, "undefined": "only 3 pairs"}, "n_train": 9}, "undefined: only 3 pairs"),
        (manifest(n_simulated=51), "51 of 100 pairs are simulated or imported"),
        (manifest(n_simulated=21, n_imported=30), "51 of 100 pairs are simulated or imported"),
    ],
)
def test_without_an_estimate_all_stays_as_it_was(found: dict[str, Any], why: str) -> None:
    value, record = label_smoothing(UpdateSettings(), found)
    assert value == 0.05
    assert why in record["why"]


def test_the_setting_is_a_number_or_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, meant in (("auto", "auto"), ("0.2", 0.2), ("0", 0.0)):
        monkeypatch.setenv("DUNNOCK_UPDATE__LABEL_SMOOTHING", given)
        assert Settings(_env_file=None).update.label_smoothing == meant
    for wrong in ("0.5", "-0.1", "some"):
        with pytest.raises(ValidationError):
            UpdateSettings(label_smoothing=wrong)


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "hinge", "ipo"])
def test_losses_that_take_none_get_none(loss: str) -> None:
    """TRL would take the number and ignore it."""
    value, record = label_smoothing(UpdateSettings(loss=loss, label_smoothing=0.2), manifest())
    assert (value, record["why"]) == (0.0, "only the loss robust allows for flipped judgments")
