"""A process beside a run: it is told and tells, and whatever it does, the run neither waits nor fails."""

import time
from pathlib import Path

from training import sidecar
from training.sidecar import Sidecar

MODULE = "tests.training.beside"


def test_it_takes_everything_and_answers(tmp_path: Path) -> None:
    beside = Sidecar(MODULE, tmp_path / "log")
    for n in range(500):
        beside.tell({"n": n, "padding": "x" * 500})  # more than a pipe holds
    assert beside.end(30)
    assert [message["heard"] for message in beside.heard()] == [*range(500), "the end"]
    beside.close()
    assert beside.lost == 0
    assert (tmp_path / "log").read_text().count("this goes to the log") == 500


def test_one_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sidecar, "MOST_WAITING", 300_000)
    beside = Sidecar(MODULE)
    beside.tell({"do": "hang", "n": 0})
    began = time.monotonic()
    for n in range(1000):
        beside.tell({"n": n, "padding": "x" * 1000})
    assert time.monotonic() - began < 1.0
    assert 500 < beside.lost < 1000  # what it never takes is not kept for ever
    assert not beside.end(0.3)
    assert beside.process.poll() is not None  # it is gone
    assert beside.heard() == []
    beside.close()


def test_one_that_is_gone_is_told_in_vain() -> None:
    beside = Sidecar(MODULE)
    beside.tell({"do": "die", "n": 0})
    assert beside.process.wait(30) == 3
    for n in range(100):
        beside.tell({"n": n, "padding": "x" * 5000})
    assert beside.end(5)
    assert beside.heard() == []
    beside.close()
