"""What is done, what comes in a day and what waits. All of it is counted in SQL; nothing is loaded row by row."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, distinct, func, select
from sqlalchemy.orm import Session

from core.db import utcnow
from feedback.models import Annotator, Assignment, Judgment, Task

MEASURING = ("gold", "repeat")  # their places say nothing of the work that is left


@dataclass(frozen=True)
class Progress:
    """Tasks of one kind and the judgments that they want; known answers and repeats apart."""

    kind: str
    done: int
    live: int
    cancelled: int
    places_done: int
    places: int


@dataclass(frozen=True)
class Day:
    """One day's judgments (UTC) by kind; a changed mind is no further one."""

    day: dt.date
    by_kind: dict[str, int]
    people: int

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.by_kind.values())


@dataclass(frozen=True)
class Waiting:
    """Open tasks of a pool and kind: those with free places, and since when the oldest waits."""

    pool: str
    kind: str
    tasks: int
    places: int
    oldest: dt.datetime | None


@dataclass(frozen=True)
class Health:
    """What holds the queue up, or will."""

    waiting: list[Waiting]
    leases: int  # places that are held right now
    lapsed: int  # places held beyond their lease, which the next claim gives back
    adjudications: int
    warned: int
    paused: int


def progress(session: Session) -> list[Progress]:
    """How far the tasks of each kind are."""
    query = (
        select(Task.kind, Task.state, func.count(), func.sum(Task.done), func.sum(Task.required_n))
        .where(Task.pool.not_in(MEASURING))
        .group_by(Task.kind, Task.state)
    )
    rows = session.execute(query).all()
    found = []
    for kind in sorted({row[0] for row in rows}):
        of = {row[1]: row for row in rows if row[0] == kind}
        n = {state: int(of[state][2]) if state in of else 0 for state in ("done", "live", "cancelled")}
        wanted = [of[state] for state in ("done", "live") if state in of]
        found.append(
            Progress(
                kind, n["done"], n["live"], n["cancelled"], sum(int(row[3]) for row in wanted),
                sum(int(row[4]) for row in wanted),
            )
        )  # fmt: skip
    return found


def throughput(session: Session, days: int, *, simulated: bool = False) -> list[Day]:
    """Judgments of tasks on each of the last `days` days, today included; days without any are there too."""
    today = utcnow().date()
    first = today - dt.timedelta(days=days - 1)
    day = day_of(session, Judgment.created_at)
    where = [
        Judgment.created_at >= dt.datetime.combine(first, dt.time(), dt.UTC),
        Judgment.assignment_id.is_not(None),
        Judgment.supersedes_id.is_(None),
    ]
    if not simulated:
        where.append(~Judgment.simulated)
    by_day: dict[str, dict[str, int]] = {}
    for at, kind, n in session.execute(
        select(day, Judgment.kind, func.count()).where(*where).group_by(day, Judgment.kind)
    ):
        by_day.setdefault(str(at), {})[kind] = n
    people = {
        str(at): int(n)
        for at, n in session.execute(
            select(day, func.count(distinct(Judgment.annotator_id))).where(*where).group_by(day)
        )
    }
    dates = [first + dt.timedelta(days=n) for n in range(days)]
    return [Day(date, by_day.get(str(date), {}), people.get(str(date), 0)) for date in dates]


def health(session: Session) -> Health:
    """What waits, and for whom."""
    room = Task.required_n - Task.taken
    query = (
        select(Task.pool, Task.kind, func.count(), func.sum(room), func.min(Task.created_at))
        .where(Task.state == "live", room > 0)
        .group_by(Task.pool, Task.kind)
        .order_by(Task.pool, Task.kind)
    )
    waiting = [Waiting(pool, kind, n, int(places), oldest) for pool, kind, n, places, oldest in session.execute(query)]
    lapsed = case((Assignment.expires_at <= utcnow(), 1), else_=0)
    leases, late = session.execute(
        select(func.count(), func.sum(lapsed)).select_from(Assignment).where(Assignment.state == "live")
    ).one()
    by_standing = select(Annotator.standing, func.count().label("people")).group_by(Annotator.standing)
    standing: dict[str, int] = {row.standing: row.people for row in session.execute(by_standing)}
    return Health(
        waiting=waiting,
        leases=leases,
        lapsed=int(late or 0),
        adjudications=sum(w.tasks for w in waiting if w.pool == "adjudication"),
        warned=standing.get("warned", 0),
        paused=standing.get("paused", 0),
    )


def day_of(session: Session, column: Any) -> ColumnElement[Any]:
    """The day of an instant in UTC, whatever zone the database's session is in."""
    if session.get_bind().dialect.name == "postgresql":
        column = func.timezone("UTC", column)
    return func.date(column)
