"""What is kept, how long, and that many who ask at once make one computation."""

import threading
import time
from collections.abc import Callable

import pytest

from core.db import Database
from feedback.quality import kept as module
from feedback.quality.kept import kept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still until it is moved."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_what_is_cheap_is_computed_each_time(database: Database) -> None:
    calls = []
    with database.read() as session:
        for _ in range(2):
            kept(session, "cheap", lambda: calls.append(1))
    assert len(calls) == 2


def test_what_is_dear_is_kept_for_what_it_was_worth(database: Database, clock: Callable[[float], None]) -> None:
    def dear() -> int:
        clock(2)
        return next(numbers)

    numbers = iter(range(9))
    with database.read() as session:
        first = kept(session, "dear", dear)
        clock(99)
        assert kept(session, "dear", dear) is first
        assert kept(session, "other", dear).value == 1
        clock(2)
        assert kept(session, "dear", dear).value == 2
        clock(20)  # of an hour, no more than ten minutes are worth it
        kept(session, "hour", lambda: clock(3600))
        clock(module.MOST_S + 1)
        assert kept(session, "hour", lambda: 5).value == 5


def test_many_who_ask_at_once_wait_for_one(database: Database) -> None:
    calls = []

    def dear() -> int:
        calls.append(1)
        time.sleep(0.4)
        return 7

    found: list[int] = []

    def ask() -> None:
        with database.read() as session:
            found.append(kept(session, "dear", dear).value)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(calls)) == ([7] * 4, 1)


def test_a_failure_is_not_kept(database: Database) -> None:
    def fail() -> int:
        raise ValueError("no")

    with database.read() as session:
        with pytest.raises(ValueError, match="no"):
            kept(session, "x", fail)
        assert kept(session, "x", lambda: 1).value == 1
