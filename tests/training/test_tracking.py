"""Trackers: a real MLflow takes the steps of a run; one that is not there or hangs is recorded and costs the run nothing."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import TrackingSettings
from training.tracking import NOT_INSTALLED, flat, metrics, open_trackers

pytestmark = pytest.mark.timeout(180)
STEPS = [{"step": n, "loss": 1 / n, "grad_norm": 0.5, "part": "preference"} for n in range(1, 6)]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def run(folder: Path, report_to: str, steps: list[dict[str, Any]] = STEPS, **more: Any) -> list[dict[str, Any]]:
    settings = TrackingSettings(report_to=report_to, **more)
    trackers = open_trackers(
        settings, folder, "cycle 7 reward, attempt 1", flat({"update": {"beta": 0.1, "wpo": False}})
    )
    for step in steps:
        for tracker in trackers:
            tracker.tell([step])
    return [tracker.end() for tracker in trackers]


def test_mlflow_holds_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert run(tmp_path, "mlflow") == [{"name": "mlflow", "steps": 5, "told": 5, "problem": ""}]
    client = mlflow.MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "dunnock"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("cycle 7 reward, attempt 1", "FINISHED")
    assert found.data.params == {"update.beta": "0.1", "update.wpo": "False"}
    assert set(found.data.metrics) == {"preference/loss", "preference/grad_norm"}
    history = client.get_metric_history(found.info.run_id, "preference/loss")
    assert [(m.step, m.value) for m in history] == [(s["step"], s["loss"]) for s in STEPS]


def test_one_that_hangs_is_ended_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    began = time.monotonic()
    (found,) = run(tmp_path, "mlflow", wait_s=2.0)
    assert time.monotonic() - began < 10
    assert found == {
        "name": "mlflow", "steps": 0, "told": 5, "problem": "it did not take all of it within 2 s and was ended",
    }  # fmt: skip


def test_one_that_is_not_there_or_unknown_is_told_of(tmp_path: Path) -> None:
    absent, unknown = run(tmp_path, "aim, no_such_tracker, aim")
    assert (absent["name"], absent["steps"], absent["problem"]) == ("aim", 0, f"ModuleNotFoundError: {NOT_INSTALLED}")
    assert unknown["problem"].startswith("ValueError: Unsupported logging capability: no_such_tracker")


def test_none_is_none(tmp_path: Path) -> None:
    assert run(tmp_path / "nothing", "") == []
    assert not (tmp_path / "nothing").exists()


def test_only_finite_numbers_are_told() -> None:
    row = {"step": 3, "part": "rules", "loss": 0.5, "kl": float("nan"), "why": "text", "reward": None, "ended": True}
    assert metrics(row) == {"rules/loss": 0.5, "rules/ended": True}
    assert metrics({"step": 1, "loss": 2}) == {"loss": 2}
