"""A round that somebody else runs is followed, and taken over when they are gone."""

import threading
import time

import pytest

from commands import progress
from commands.progress import run_with_progress
from core.db import Database
from core.settings import Settings
from finetune.cycle import LEASE, request_cycle
from finetune.lease import HeldLease
from finetune.models import Cycle


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
