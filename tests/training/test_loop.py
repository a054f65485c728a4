"""The training loop on a problem small enough to know: what it takes, what it leaves, and what stops it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import StageError
from training.loop import Schedule, fit
from training.run import Row

SCHEDULE = Schedule(epochs=4.0, batch_size=4, learning_rate=0.05, save_steps=3, seed=1)
X = torch.randn(18, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5])


def problem() -> tuple[dict[str, Any], Callable[[list[int]], Any]]:
    w = torch.zeros(3, requires_grad=True)
    return {"w": w}, lambda rows: (X[rows] @ w - Y[rows]).square().mean()


def test_each_epoch_takes_every_row_once() -> None:
    for epoch in range(3):
        steps = [SCHEDULE.rows(epoch * 5 + n, 18) for n in range(5)]
        assert sorted(i for rows in steps for i in rows) == list(range(18))
        assert [len(rows) for rows in steps] == [4, 4, 4, 4, 2]
    assert SCHEDULE.rows(0, 18) != SCHEDULE.rows(5, 18)
    assert SCHEDULE.rows(0, 18) == SCHEDULE.rows(0, 18)


def test_steps_and_rates_by_hand() -> None:
    assert SCHEDULE.steps(18) == 20
    assert Schedule(0.4, 4, 1.0, 1, 0).steps(18) == 2
    assert Schedule(0.01, 4, 1.0, 1, 0).steps(18) == 1
    rates = [SCHEDULE.rate(step, 20) / 0.05 for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]  # two steps of warm-up
    assert rates[11] == pytest.approx(0.5)
    assert rates[19] == pytest.approx(0.0076, abs=1e-4)


def test_it_learns_and_tells(tmp_path: Path) -> None:
    parameters, loss = problem()
    told: list[tuple[float, str]] = []
    rows: list[Any] = []

    def progress(done: float, note: str, some: Sequence[Row] = ()) -> None:
        told.append((done, note))
        rows.extend(some)

    log = fit(parameters, 18, loss, SCHEDULE, tmp_path, progress=progress)
    assert rows == log
    assert [row["step"] for row in log] == list(range(1, 21))
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["epoch"] == 4.0
    assert told[-1] == (1.0, f"step 20/20, loss {log[-1]['loss']:.3f}")
    assert [p.name for p in tmp_path.iterdir()] == ["step-000020"]  # the newest alone


def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: float, note: str, rows: object = ()) -> None:
        if note.startswith("step 8/"):
            raise Killed

    parameters, loss = problem()
    with pytest.raises(Killed):
        fit(parameters, 18, loss, SCHEDULE, tmp_path / "broken", progress=kill)
    again, loss_again = problem()
    told: list[str] = []
    rows: list[Any] = []

    def progress(done: float, note: str, some: Sequence[Row] = ()) -> None:
        told.append(note)
        rows.extend(some)

    log = fit(again, 18, loss_again, SCHEDULE, tmp_path / "broken", progress=progress)
    whole, loss_whole = problem()
    assert log == fit(whole, 18, loss_whole, SCHEDULE, tmp_path / "whole")
    assert torch.equal(again["w"], whole["w"])
    assert [note.split(",")[0] for note in told[:2]] == ["step 6/20", "step 7/20"]
    assert rows == log  # those of the checkpoint are told again
    assert fit(again, 18, loss_again, SCHEDULE, tmp_path / "broken") == log  # finished: nothing more is done


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    parameters, loss = problem()
    fit(parameters, 18, loss, SCHEDULE, tmp_path, fingerprint="one")
    other, loss = problem()
    told: list[str] = []
    fit(other, 18, loss, SCHEDULE, tmp_path, fingerprint="two", progress=lambda _, note, *__: told.append(note))
    assert told[0].startswith("step 1/20")


@pytest.mark.parametrize("broken", ["loss", "grad_norm"])
def test_what_is_no_number_stops_it(tmp_path: Path, broken: str) -> None:
    w = torch.zeros(3, requires_grad=True)

    def loss(rows: list[int]) -> Any:
        return w.sum() * float("nan") if broken == "loss" else w.abs().sqrt().sum()  # at 0 its slope is infinite

    with pytest.raises(StageError, match=f"{broken} is (nan|inf) at step 1; .*nothing is registered"):
        fit({"w": w}, 18, loss, SCHEDULE, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(w, torch.zeros(3))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_no_memory_says_what_to_do(tmp_path: Path, error: BaseException) -> None:
    def loss(rows: list[int]) -> Any:
        raise error

    with pytest.raises(StageError, match="out of memory.*lower the stage's batch size"):
        fit(problem()[0], 18, loss, SCHEDULE, tmp_path)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def loss(rows: list[int]) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(problem()[0], 18, loss, SCHEDULE, tmp_path)


def test_a_full_disk_says_so_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint finds no room; the first stays, and the next attempt goes on from it."""
    from training import loop

    write = loop.write_json

    def full(path: Path, value: Any) -> None:
        if value["step"] > 3:
            raise OSError(28, "No space left on device", str(path))
        write(path, value)

    monkeypatch.setattr(loop, "write_json", full)
    parameters, loss = problem()
    with pytest.raises(StageError, match="the disk is full"):
        fit(parameters, 18, loss, SCHEDULE, tmp_path)
    monkeypatch.undo()
    told: list[str] = []
    parameters, loss = problem()
    fit(parameters, 18, loss, SCHEDULE, tmp_path, progress=lambda _, note, *__: told.append(note))
    assert told[1].startswith("step 4/20")
