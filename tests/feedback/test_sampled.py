"""The budget of sampled tasks, by day and reason."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from core.db import Database
from feedback.judgments import record_feedback
from feedback.models import SampledDay, Task
from feedback.sampled import has_room, sampled, within_budget
from tests.factories import make_completion

MONDAY = dt.datetime(2026, 11, 30, 23, 59, tzinfo=dt.UTC)
TUESDAY = MONDAY + dt.timedelta(minutes=1)


def test_a_day_has_room_for_so_many_of_each_reason(session: Session) -> None:
    assert [within_budget(session, "rate", 2, MONDAY) for _ in range(4)] == [True, True, False, False]
    assert within_budget(session, "novelty", 2, MONDAY)
    assert not has_room(session, "rate", 2, MONDAY)
    assert has_room(session, "rate", 3, MONDAY)
    assert within_budget(session, "rate", 2, TUESDAY)
    assert all(within_budget(session, "rate", 0, MONDAY) for _ in range(3))
    row = session.get_one(SampledDay, (MONDAY.date(), "rate"), populate_existing=True)
    assert (row.asked, row.left_out) == (5, 2)


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_callers_at_the_same_moment_do_not_go_over_it(request: pytest.FixtureRequest, kind: str) -> None:
    database: Database = request.getfixturevalue(kind)

    def ask(_: int) -> bool:
        with database.session() as session:
            return within_budget(session, "pair", 5)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, range(20))) == 5
    with database.read() as session:
        assert sampled(session, 1) == [("pair", 5, 15)]


def test_what_is_rolled_back_was_not_asked(database: Database) -> None:
    try:
        with database.session() as session:
            within_budget(session, "rate", 1)
            raise RuntimeError
    except RuntimeError:
        pass
    with database.read() as session:
        assert has_room(session, "rate", 1)


def test_dislikes_beyond_the_budget_are_kept_and_counted_but_not_asked_about(session: Session) -> None:
    replies = [make_completion(session, source="served") for _ in range(3)]
    for reply in replies:
        for _ in range(2):  # the same reply again is no further task
            record_feedback(session, completion_id=reply.id, annotator_id=None, thumbs=-1, most_flagged=2)
    made = [task.source for task in session.query(Task)]
    assert made == [f"flagged:{reply.id}" for reply in replies[:2]]
    assert sampled(session, 1) == [("flagged", 2, 2)]


def test_a_reply_kept_for_the_service_alone_is_not_asked_about(session: Session) -> None:
    reply = make_completion(session, source="served", details={"consent": "service"})
    assert record_feedback(session, completion_id=reply.id, annotator_id=None, thumbs=-1)
    assert session.query(Task).count() == 0
