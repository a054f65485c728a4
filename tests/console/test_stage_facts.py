"""What the page of a cycle says of an update that learns from rewards."""

import math
from typing import Any

import pytest
from flask import Flask

from console.cycles import _curve
from console.stage_facts import stage_facts

RESULT: dict[str, Any] = {
    "method": "ppo", "n_prompts": 3, "dropped_long": 0, "steps": 2, "samples": 1280, "stopped": "", "sampler_counts": {},
    "policy_version": "v4", "log": [{"step": 1, "reward": -0.5, "kl": 0.0}, {"step": 2, "reward": 1.25, "kl": 4.5}],
}  # fmt: skip
LATE = "the KL to the reference, 31.20 nats, is over its limit 30"


def test_facts_of_a_run_as_planned() -> None:
    assert stage_facts("update", RESULT) == [
        "PPO: learnt from 1\u202f280 completions of its own on 3 prompts, in 2 steps.",
        "Mean reward -0.500 at the first step, 1.250 at the last, with a KL to the reference of 4.50 nats per completion.",
        "Made the candidate v4.",
    ]


def test_what_went_otherwise_is_told() -> None:
    told = stage_facts(
        "update", RESULT | {"dropped_long": 1, "stopped": LATE, "sampler_counts": {"encoded_again": 7}, "log": []}
    )
    assert "1 prompt dropped as too long." in told
    assert f"Ended early: {LATE}." in told
    assert "The engine told no tokens of 7 completions; their texts were encoded again." in told


def test_an_end_before_its_time_is_told_in_german(app: Flask) -> None:
    with app.test_request_context(headers={"Accept-Language": "de"}):
        told = " ".join(stage_facts("update", RESULT | {"stopped": LATE}))
    assert "Vorzeitig beendet: die KL zur Referenz, 31.20 Nats, liegt über ihrer Grenze 30." in told
    assert "in 2 Schritten" in told


@pytest.mark.parametrize("log", [None, [], ["x"], [{"step": 1}], [{"step": 1, "reward": math.nan, "kl": None}]])
def test_a_log_that_lacks_something_breaks_nothing(log: Any) -> None:
    assert stage_facts("update", {"method": "ppo", "log": log})
    assert _curve("update", {"method": "ppo", "log": log}) is None


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_what_is_drawn_is_the_reward(method: str) -> None:
    assert stage_facts("update", RESULT | {"method": method})[0].startswith(f"{method.upper()}: learnt from")
    curve = _curve("update", RESULT | {"method": method})
    assert curve is not None
    assert curve.figures == [(1, -0.5), (2, 1.25)]
    assert curve.unit == "reward"


def test_what_an_update_by_pairs_left_out_and_how_pairs_weigh() -> None:
    found = {
        "method": "dpo", "n_pairs": 40, "dropped_long": 2, "ties": 3, "dropped_equal": 1, "steps": 5, "loss": 1.5,
        "trainable_parameters": 100, "weights": {"mean": 0.8, "least": 0.5, "most": 1.0},
        "label_smoothing": {"value": 0.0, "why": "only the loss robust allows for flipped judgments"},
    }  # fmt: skip
    assert stage_facts("update", found) == [
        "Trained on 40 pairs, 2 dropped as too long; 5 steps.",
        "3 ties left out: they prefer no side.",
        "1 pair left out whose sides are equal as far as they are learnt.",
        "Mean loss over the run 1.500 nats; 100 trained parameters.",
        "Pairs weigh 0.50 to 1.00, 0.80 on average.",
        "Label smoothing 0.000: only the loss robust allows for flipped judgments.",
    ]
    alike = stage_facts("update", found | {"weights": {"mean": 1.0, "least": 1.0, "most": 1.0}})
    assert not any(told.startswith("Pairs weigh") for told in alike)
