"""The worker: cron expressions as people know them, and rounds that start once enough is new."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database, utcnow
from core.errors import SettingsError
from core.settings import PrivacySettings, Settings
from feedback.models import Completion, Judgment
from finetune.cycle import StageRecord
from finetune.lease import HeldLease
from finetune.models import Cycle
from finetune.worker import Worker, cron_trigger
from tests.factories import make_completion, make_pairwise_task

WEDNESDAY = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)


def fires(expression: str, n: int = 1) -> list[str]:
    """Weekday, day and time of the next n firings after a Wednesday noon."""
    trigger, found, now = cron_trigger(expression), [], WEDNESDAY
    for _ in range(n):
        fired = trigger.get_next_fire_time(None, now)
        found.append(fired.strftime("%a %d %H:%M %Z"))
        now = fired + dt.timedelta(seconds=1)
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 3 * * *", ["Thu 26 03:30 UTC", "Fri 27 03:30 UTC"]),
        ("*/20 * * * *", ["Wed 25 12:00 UTC", "Wed 25 12:20 UTC"]),
        ("0 3 1 * *", ["Tue 01 03:00 UTC", "Fri 01 03:00 UTC"]),
        ("0 3 * * sun", ["Sun 29 03:00 UTC", "Sun 06 03:00 UTC"]),
        ("0 3 * * 0", ["Sun 29 03:00 UTC", "Sun 06 03:00 UTC"]),
        ("0 3 * * 7", ["Sun 29 03:00 UTC", "Sun 06 03:00 UTC"]),
        ("0 3 * * 1", ["Mon 30 03:00 UTC", "Mon 07 03:00 UTC"]),
        ("0 3 * * 4-5", ["Thu 26 03:00 UTC", "Fri 27 03:00 UTC", "Thu 03 03:00 UTC"]),
        ("0 3 * * 5-7", ["Fri 27 03:00 UTC", "Sat 28 03:00 UTC", "Sun 29 03:00 UTC"]),
        ("0 3 * * 6,2", ["Sat 28 03:00 UTC", "Tue 01 03:00 UTC"]),
        ("0 3 * * 1-5/2", ["Fri 27 03:00 UTC", "Mon 30 03:00 UTC", "Wed 02 03:00 UTC"]),
        ("0 3 * * */2", ["Thu 26 03:00 UTC", "Sat 28 03:00 UTC", "Sun 29 03:00 UTC", "Tue 01 03:00 UTC"]),
        ("0 3 * * mon-fri", ["Thu 26 03:00 UTC", "Fri 27 03:00 UTC", "Mon 30 03:00 UTC"]),
    ],
)
def test_a_cron_expression_means_what_cron_means(expression: str, expected: list[str]) -> None:
    assert fires(expression, len(expected)) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "", "daily", "* * * *", "* * * * * *", "60 * * * *", "0 25 * * *", "0 0 * * 8", "0 0 * * 5-3",
        "0 0 * * 1-5/0", "*/0 * * * *", "0 0 * * nonday", "a b c d e",
    ],
)  # fmt: skip
def test_a_cron_expression_that_cannot_be_read_names_its_setting(
    expression: str, database: Database, settings: Settings
) -> None:
    with pytest.raises(SettingsError, match="DUNNOCK_CYCLE_CRON=.*is no cron expression"):
        cron_trigger(expression)
    if expression:  # empty: no schedule
        with pytest.raises(SettingsError):
            Worker(database, settings.model_copy(update={"cycle_cron": expression}))


@pytest.fixture
def worker(database: Database, settings: Settings) -> Iterator[Worker]:
    return Worker(database, settings.model_copy(update={"cycle_min_judgments": 3}))


def judge(db: Database, n: int = 1, **more: Any) -> None:
    with db.session() as session:
        for _ in range(n):
            task = make_pairwise_task(session)
            session.add(Judgment(kind="pairwise", task_id=task.id, choice="a", strength=1, **more))


def cycles(db: Database) -> list[tuple[str, str]]:
    with db.read() as session:
        return [(c.state, c.reason) for c in session.scalars(select(Cycle).order_by(Cycle.id))]


def test_a_round_is_asked_for_at_n_judgments_and_once(worker: Worker) -> None:
    judge(worker.db, 2)
    judge(worker.db, 5, simulated=True)
    judge(worker.db, 5, surplus=True)
    assert not worker.request_if_enough()
    assert cycles(worker.db) == []
    assert not worker.wake.is_set()
    judge(worker.db)
    assert worker.request_if_enough()
    assert worker.wake.is_set()
    assert cycles(worker.db) == [("requested", "judgments")]
    worker.request_if_enough()
    assert len(cycles(worker.db)) == 1


def test_a_round_that_failed_is_not_asked_for_again_by_the_same_judgments(worker: Worker) -> None:
    judge(worker.db, 3)
    assert worker.request_if_enough()
    with worker.db.session() as session:
        cycle = session.scalars(select(Cycle)).one()
        cycle.state = "failed"
    StageRecord(worker.db, cycle.id, "snapshot").failed("one side of the split is empty")
    assert not worker.request_if_enough()
    judge(worker.db, 3)
    assert worker.request_if_enough()
    assert [reason for _, reason in cycles(worker.db)] == ["judgments", "judgments"]


def test_simulated_judgments_count_where_snapshots_take_them(database: Database, settings: Settings) -> None:
    snapshot = settings.snapshot.model_copy(update={"include_simulated": True})
    worker = Worker(database, settings.model_copy(update={"cycle_min_judgments": 3, "snapshot": snapshot}))
    judge(database, 3, simulated=True)
    assert worker.request_if_enough()


def test_zero_means_never(database: Database, settings: Settings) -> None:
    with database.session() as session:
        session.add(Judgment(kind="thumbs", thumbs=1, completion_id=make_completion(session).id))
    assert not Worker(database, settings).request_if_enough()
    assert cycles(database) == []


def test_a_worker_leaves_a_cycle_that_another_one_runs(worker: Worker) -> None:
    worker.request("manual")
    with HeldLease(worker.db, "cycle", 60):
        assert worker.run_requested() is None
    assert cycles(worker.db) == [("requested", "manual")]


def test_every_night_texts_go_whose_time_is_over(database: Database, settings: Settings) -> None:
    with database.session() as session:
        long_ago = utcnow() - dt.timedelta(days=3)
        for name, created_at in {"old": long_ago, "new": utcnow()}.items():
            make_completion(session, text=name, source="served", details={"created_at": created_at})
    worker = Worker(database, settings.model_copy(update={"privacy": PrivacySettings(retention_days=2)}))
    (job,) = worker.scheduler.get_jobs()
    assert str(job.trigger) == str(cron_trigger("30 3 * * *"))
    job.func(*job.args)
    with database.read() as session:
        assert set(session.scalars(select(Completion.text))) == {"", "new"}


def test_the_schedule_asks_for_a_round_and_the_worker_ends_when_told(database: Database, settings: Settings) -> None:
    worker = Worker(database, settings.model_copy(update={"cycle_cron": "0 3 * * *"}))
    job, _ = worker.scheduler.get_jobs()
    job.func(*job.args)
    assert cycles(database) == [("requested", "cron")]
    assert len(Worker(database, settings).scheduler.get_jobs()) == 1  # that of retention
    worker.stop()
    worker.run_forever()  # comes back
    assert not worker.scheduler.running
