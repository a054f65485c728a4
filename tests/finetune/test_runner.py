"""A stage in a process of its own: its end, its failure, its killing; and taking a failed cycle up again."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from core.db import Database
from core.errors import Conflict, StageError
from core.settings import Settings
from finetune import cycle as cycle_module
from finetune import runner
from finetune.cycle import StageRecord, cancel_cycle, reopen_cycle, request_cycle, run_cycle
from finetune.lease import HeldLease
from finetune.models import Cycle, StageRun


def ask(database: Database, settings: Settings, stages: list[str]) -> int:
    with database.session() as session:
        return request_cycle(session, settings, "manual", stages=stages).id


@pytest.mark.parametrize(("codes", "tries"), [([0], 1), ([-9, 0], 2), ([1], 1), ([-9, -9], 2)])
def test_only_a_killed_stage_is_tried_again(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, codes: list[int], tries: int
) -> None:
    ask(database, settings, ["snapshot"])
    left = list(codes)

    def child(_: Database, command: list[str], cycle_id: int, lease: HeldLease, log_path: Path) -> int:
        code = left.pop(0)
        record = StageRecord(database, cycle_id, command[-1])
        if code == 0:
            with database.session() as session:
                record.done(session, {}, 1.0)
        elif code > 0:
            record.failed("StageError: too few pairs")
        return code

    monkeypatch.setattr(runner, "_run_child", child)
    cycle = run_cycle(database, settings, runner.in_own_process(database, settings))

    assert cycle is not None
    assert len(codes) - len(left) == tries
    assert cycle.state == ("done" if codes[-1] == 0 else "failed")
    if codes[-1] > 0:
        assert "too few pairs" in (cycle.outcome or "")
    if codes[-1] < 0:
        assert "SIGKILL" in (cycle.outcome or "")


def test_a_cancelled_cycle_ends_its_stage_and_starts_no_other(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage here never tells its progress; its process is a real one that would sleep for a minute."""
    cycle_id = ask(database, settings, ["snapshot", "reward"])
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(command: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        StageRecord(database, cycle_id, command[-1])
        with database.session() as session:
            cancel_cycle(session, cycle_id, "ana")
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **more))
        return started[-1]

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    began = time.monotonic()
    ended = run_cycle(database, settings, runner.in_own_process(database, settings))

    assert time.monotonic() - began < 20
    assert ended is not None
    assert (ended.state, ended.outcome) == ("cancelled", "cancelled by ana")
    assert [child.poll() for child in started] == [-signal.SIGTERM]
    with database.read() as session:
        assert [(r.name, r.error) for r in session.scalars(select(StageRun))] == [("snapshot", None)]


def test_a_database_that_is_away_for_a_while_ends_no_stage(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle_id = ask(database, settings, ["snapshot"])
    looks: list[int] = []
    real = subprocess.Popen

    def away(_: Database, number: int) -> bool:
        looks.append(number)
        if len(looks) == 2:  # the first look comes before the stage starts
            raise OperationalError("select", {}, ConnectionError("the server is restarting"))
        return False

    def start(command: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        record = StageRecord(database, cycle_id, command[-1])
        with database.session() as session:
            record.done(session, {}, 1.0)
        return real([sys.executable, "-c", "import time; time.sleep(2)"], **more)

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    monkeypatch.setattr(runner, "cancelled", away)
    monkeypatch.setattr(cycle_module, "cancelled", away)
    ended = run_cycle(database, settings, runner.in_own_process(database, settings))
    assert ended is not None
    assert ended.state == "done"
    assert len(looks) >= 3


def test_a_failed_cycle_goes_on_from_its_last_finished_stage(database: Database, settings: Settings) -> None:
    cycle_id = ask(database, settings, ["snapshot", "reward"])
    ran: list[str] = []

    def run(cycle_id: int, name: str, lease: HeldLease) -> None:
        ran.append(name)
        record = StageRecord(database, cycle_id, name)
        if name == "reward" and ran.count("reward") == 1:
            raise StageError("out of memory")
        with database.session() as session:
            record.done(session, {}, 1.0)

    assert run_cycle(database, settings, run).state == "failed"  # type: ignore[union-attr]
    with database.session() as session:
        reopen_cycle(session, cycle_id)
    assert run_cycle(database, settings, run).state == "done"  # type: ignore[union-attr]
    assert ran == ["snapshot", "reward", "reward"]


def test_only_a_failed_cycle_is_reopened(database: Database, settings: Settings) -> None:
    cycle_id = ask(database, settings, [])
    with database.session() as session, pytest.raises(Conflict, match="only a failed one"):
        reopen_cycle(session, cycle_id)
    with database.session() as session:
        session.get_one(Cycle, cycle_id).state = "failed"
        other = request_cycle(session, settings, "cron").id
        assert other != cycle_id
        with pytest.raises(Conflict):
            reopen_cycle(session, cycle_id)
