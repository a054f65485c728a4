"""How far the queue and an annotator are. Counting a million tasks takes a while, so a count of many is kept for fifty times
as long as it took."""

import datetime as dt
import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from core.db import utcnow
from feedback.models import UNLEARNT, Judgment, Task

KEPT = 50
MANY = 10_000
_counts: "WeakKeyDictionary[Engine, tuple[float, dict[str, int]]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Progress:
    """Counts of tasks and of the annotator's judgments since midnight UTC."""

    done: int
    total: int
    today: int


def progress_of(session: Session, annotator_id: int) -> Progress:
    """Counts for somebody who has nothing to do. Those of tasks may be a few seconds old where there are very many."""
    states = _states(session)
    done = states.get("done", 0)
    return Progress(done=done, total=done + states.get("live", 0), today=judged_today(session, annotator_id))


def judged_today(session: Session, annotator_id: int) -> int:
    """The annotator's judgments since midnight UTC.

    All that is told beside a task: this count grows alike whatever is judged, while one of the queue would not for a task with
    a known answer, nor for own work shown again.
    """
    midnight = dt.datetime.combine(utcnow().date(), dt.time(), dt.UTC)
    found = session.scalar(
        select(func.count(Judgment.id)).where(
            Judgment.annotator_id == annotator_id,
            Judgment.created_at >= midnight,
            Judgment.assignment_id.is_not(None),
            Judgment.supersedes_id.is_(None),
        )
    )
    return found or 0


def _states(session: Session) -> dict[str, int]:
    """Tasks that teach something, by state."""
    engine = session.get_bind().engine
    until, counts = _counts.get(engine, (0.0, {}))
    began = time.monotonic()
    if began < until:
        return counts
    query = select(Task.state, func.count()).where(Task.pool.not_in(UNLEARNT)).group_by(Task.state)
    counts = dict(iter(session.execute(query)))
    if sum(counts.values()) >= MANY:
        now = time.monotonic()
        _counts[engine] = (now + KEPT * (now - began), counts)
    return counts
