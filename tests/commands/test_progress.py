"""A round that somebody else runs is followed, and taken over when they are gone."""

import re
import threading
import time

import pytest
from sqlalchemy import select

from commands import progress
from commands.progress import run_with_progress
from core.db import Database, utcnow
from core.settings import Settings
from finetune.cycle import LEASE, request_cycle
from finetune.lease import HeldLease
from finetune.models import Cycle, StageRun


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "POLL_S", 0.02)


def test_nothing_to_run_is_nothing(database: Database, settings: Settings) -> None:
    assert run_with_progress(database, settings) is None


@pytest.mark.parametrize("finishes", [True, False])
def test_a_round_of_another_worker_is_followed_to_its_end(
    database: Database, settings: Settings, *, finishes: bool
) -> None:
    with database.session() as session:
        cycle_id = request_cycle(session, settings, "manual", stages=[]).id
    held, let_go = threading.Event(), threading.Event()

    def other_worker() -> None:
        with HeldLease(database, LEASE, 60):
            held.set()
            let_go.wait(30)
            if finishes:
                with database.session() as session:
                    session.get_one(Cycle, cycle_id).state = "promoted"

    worker = threading.Thread(target=other_worker)
    worker.start()
    assert held.wait(30)
    ended: list[Cycle | None] = []
    follower = threading.Thread(target=lambda: ended.append(run_with_progress(database, settings)))
    follower.start()
    time.sleep(0.3)
    assert not ended  # it waits while the other one works
    let_go.set()
    worker.join(30)
    follower.join(30)
    assert ended[0] is not None
    assert ended[0].id == cycle_id
    assert ended[0].state == ("promoted" if finishes else "done")  # nobody finished it: it has been run here


def test_share_and_time_left_are_told_where_there_is_no_terminal(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with database.session() as session:
        cycle = request_cycle(session, settings, "manual", stages=["update", "gate"])
        cycle.state = "running"
        session.add(
            StageRun(cycle_id=cycle.id, name="update", progress=0.4, note="step 4/10", left_s=95.0, told_at=utcnow())
        )
        older = Cycle(reason="manual", settings={"stages": []}, state="done")
        session.add(older)
        session.flush()
        session.add(StageRun(cycle_id=older.id, name="gate", state="done", seconds=30.0))
        cycle_id = cycle.id
    over = threading.Event()
    watcher = threading.Thread(target=progress._watch, args=(database, cycle_id, ["update", "gate"], over))
    watcher.start()
    time.sleep(0.3)
    with database.session() as session:
        run = session.scalars(select(StageRun).where(StageRun.name == "update")).one()
        run.state, run.progress, run.seconds, run.peak_mb = "done", 1.0, 160.0, 812.0
    over.set()
    watcher.join(30)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"  update     40%  step 4/10  about 1 min 3[0-5] s left, about 2 min [0-5] s left in all", first
    ), first
    assert last == "  update    done in  160.0 s, peak 812 MB"
