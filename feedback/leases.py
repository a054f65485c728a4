"""Who works on which task: claiming, holding, giving back, finishing. In: an annotator. Out: leases.

A place of a task is taken by one conditional UPDATE of the task's count, whose row count decides, so a task is never
over-assigned on SQLite nor on PostgreSQL. A lease that ran out keeps its place until somebody needs it. Every step costs
the same at ten tasks and at a million: the next task is read off the index `ix_task_open`.

Rows are locked in one order on PostgreSQL: person, assignment, task. SQLite has one writer and needs no row locks.
"""

import datetime as dt
import random
import secrets
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import ColumnElement, case, exists, literal_column, select, update
from sqlalchemy.orm import Session

from access.audit import record
from access.models import Person
from core.db import utcnow
from core.errors import Conflict, NotFound
from core.settings import AssignmentSettings
from feedback.models import Assignment, Task

WINDOW = 32
"""Tasks at the head of a pool that are looked at first. A person alone on tasks that want several judgments has had all
that are begun; without a bound each look would pass over every one of them."""

SWEEP = 100
"""Leases given back at a time."""

LIVE = Task.state == literal_column("'live'")  # literal, as in the partial indexes, or no planner would use them
OPEN = LIVE & (Task.taken < Task.required_n)
ORDER = (Task.taken.desc(), Task.priority.desc(), Task.rank.desc(), Task.id.desc())
HELD = Assignment.state == literal_column("'live'")


def next_assignment(
    session: Session,
    annotator_id: int,
    lease_s: float,
    *,
    shares: AssignmentSettings | None = None,
    beside: Collection[str] = (),
) -> Assignment | None:
    """What the annotator works on now: their own unfinished task first, else the next one that wants them.

    Own work whose lease ran out comes back while its task has room, so nothing typed is lost. Then a pool is drawn by
    its share, and from it the task that is nearest to complete, then by priority and rank, leaving out those the
    annotator was given before. An empty pool's share falls to the others.

    Args:
        shares: how often each pool is drawn; the defaults when left out.
        beside: lease tokens of unfinished work that the annotator has at hand, e.g. while the next task is fetched.

    Returns:
        A live assignment with its task, leased for `lease_s` seconds, or None when nothing is left.

    Raises:
        NotFound: no such person.
    """
    lock_annotator(session, annotator_id)
    now = utcnow()
    for assignment in _unfinished(session, annotator_id, beside):
        if assignment.expires_at > now and assignment.state == "live":
            return assignment
        if _hold(session, assignment, now, lease_s):
            return assignment
    release_expired(session, now)
    claims = (_claim_next(session, annotator_id, pool, now, lease_s) for pool in _drawn(shares or AssignmentSettings()))
    return next((claimed for claimed in claims if claimed is not None), None)


def claim_task(session: Session, task_id: int, annotator_id: int, lease_s: float) -> Assignment | None:
    """Assign one given task; None when it has no free place or the annotator was given it before.

    An assignment of this task that the annotator holds already is returned as it is.
    """
    lock_annotator(session, annotator_id)
    own = session.scalar(
        select(Assignment).where(Assignment.task_id == task_id, Assignment.annotator_id == annotator_id)
    )
    if own is not None:
        return own if own.state == "live" else None
    now = utcnow()
    task = _take(session, Task.id == task_id) or (
        _take(session, Task.id == task_id) if release_expired(session, now, task_id=task_id) else None
    )
    return None if task is None else _assign(session, task, annotator_id, now, lease_s)


def find_assignment(session: Session, token: str, annotator_id: int, *, lock: bool = False) -> Assignment:
    """The annotator's assignment of this lease token, in whatever state.

    Args:
        lock: hold its row, on PostgreSQL, until the transaction ends; its state is then what it says.

    Raises:
        NotFound: no such token, or it is somebody else's; the answer does not tell which.
    """
    query = select(Assignment).where(Assignment.lease_token == token, Assignment.annotator_id == annotator_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    assignment = session.scalar(query)
    if assignment is None:
        raise NotFound("this task is not yours or does not exist; open /annotate for your next one")
    return assignment


def lock_annotator(session: Session, annotator_id: int) -> Person:
    """The person, locked on PostgreSQL: two tabs of one annotator act one after the other.

    Raises:
        NotFound: no such person.
    """
    person = session.scalar(select(Person).where(Person.id == annotator_id).with_for_update(key_share=True))
    if person is None:
        raise NotFound(f"there is no person {annotator_id}")
    return person


def renew(session: Session, token: str, annotator_id: int, lease_s: float) -> Assignment:
    """Hold a task for `lease_s` seconds from now; one that ran out is taken again if it has room.

    Raises:
        Conflict: it was submitted or skipped already, or others have taken all its places.
    """
    assignment = _unfinished_one(session, token, annotator_id)
    if not _hold(session, assignment, utcnow(), lease_s):
        raise Conflict("the lease ran out and others took this task; what you submit is kept as a surplus judgment")
    return assignment


def skip(session: Session, token: str, annotator_id: int, reason: str) -> Assignment:
    """Give a task back; the annotator does not see it again. A second call changes nothing."""
    if (found := find_assignment(session, token, annotator_id)).state == "skipped":
        return found
    assignment = _unfinished_one(session, token, annotator_id)
    if assignment.state == "live":
        _give_back(session, assignment.task_id)
    assignment.state = "skipped"
    assignment.skip_reason = reason.strip()[:200] or "no reason given"
    session.flush()
    return assignment


def flag(session: Session, token: str, annotator_id: int, reason: str) -> Assignment:
    """Give a task back and tell the leads that something is wrong with it (an entry in the audit log)."""
    before = find_assignment(session, token, annotator_id).state
    assignment = skip(session, token, annotator_id, f"flagged: {reason.strip()}")
    if before != "skipped":
        person = session.get_one(Person, annotator_id)
        record(session, person.login, "task.flag", f"task:{assignment.task_id}", after={"reason": reason.strip()})
    return assignment


def finish(session: Session, assignment: Assignment) -> bool:
    """Count a submitted assignment, whose row the caller has locked, towards its task; the last one ends the task.

    Returns:
        False when its place was lost and no other is free, so that the judgment is surplus.
    """
    held = assignment.state == "live"
    values: dict[str, Any] = {
        "done": Task.done + 1,
        "state": case((Task.done + 1 >= Task.required_n, "done"), else_=Task.state),
    }
    where = (Task.id == assignment.task_id) & (LIVE if held else OPEN)
    if not held:
        values["taken"] = Task.taken + 1
    counted = _changed(session, where, values)
    assignment.state = "done" if counted else "surplus"
    if held and not counted:
        _give_back(session, assignment.task_id)  # the task was cancelled meanwhile
    session.flush()
    return counted


def release_expired(session: Session, now: dt.datetime, task_id: int | None = None) -> int:
    """Give back places whose leases ran out, the oldest first and at most `SWEEP` at a time; returns how many."""
    stale = select(Assignment.id, Assignment.task_id).where(HELD, Assignment.expires_at <= now)
    if task_id is not None:
        stale = stale.where(Assignment.task_id == task_id)
    stale = stale.order_by(Assignment.expires_at).limit(SWEEP).with_for_update(skip_locked=True)
    # Tasks are changed in the order of their ids: two sweeps that meet on one wait for each other and never in a ring.
    found = sorted(session.execute(stale).all(), key=lambda row: row.task_id)
    for assignment_id, of_task in found:
        session.execute(
            update(Assignment)
            .where(Assignment.id == assignment_id)
            .values(state="expired")
            .execution_options(synchronize_session="fetch")
        )
        _give_back(session, of_task)
    return len(found)


def _drawn(shares: AssignmentSettings) -> list[str]:
    """All pools in the order in which they are asked: what is first in line, then by chance in proportion to the shares."""
    weights = {pool: weight for pool, weight in shares.weights().items() if weight > 0}
    rest = sorted(weights, key=lambda pool: random.random() ** (1 / weights[pool]), reverse=True)
    never = [pool for pool in shares.weights() if pool not in weights]
    return ["canary", *rest, *never]


def _unfinished(session: Session, annotator_id: int, beside: Collection[str]) -> Iterator[Assignment]:
    """The annotator's own work that can still be done, the oldest first."""
    query = (
        select(Assignment)
        .join(Task)
        .where(Assignment.annotator_id == annotator_id, Assignment.state.in_(("live", "expired")), LIVE)
        .order_by(Assignment.id)
    )
    yield from (a for a in session.scalars(query).all() if a.lease_token not in beside)


def _unfinished_one(session: Session, token: str, annotator_id: int) -> Assignment:
    lock_annotator(session, annotator_id)
    assignment = find_assignment(session, token, annotator_id, lock=True)
    if assignment.state not in ("live", "expired"):
        raise Conflict(f"this task is already {assignment.state}; open /annotate for your next one")
    return assignment


def _claim_next(session: Session, annotator_id: int, pool: str, now: dt.datetime, lease_s: float) -> Assignment | None:
    """Take a place of the pool's next task that the annotator was not given before."""
    given = exists().where(Assignment.task_id == Task.id, Assignment.annotator_id == annotator_id)
    waiting = select(Task.id).where(OPEN, Task.pool == pool).correlate(None)
    # The head of what is begun, then what is untouched; then all, for what both passed over.
    head = waiting.where(Task.taken > 0).order_by(*ORDER).limit(WINDOW)
    for query, patient in (
        (select(Task.id).where(Task.id.in_(head.scalar_subquery()), OPEN, ~given).correlate(None), False),
        (waiting.where(Task.taken == 0, ~given), False),
        (waiting.where(~given), True),
    ):
        # On PostgreSQL, tasks that others take just now are passed over, but not before nothing is said to be left.
        first = query.order_by(*ORDER).limit(1).with_for_update(of=Task, skip_locked=not patient)
        if (task := _take(session, Task.id == first.scalar_subquery())) is not None:
            return _assign(session, task, annotator_id, now, lease_s)
    return None


def _take(session: Session, where: ColumnElement[bool]) -> Task | None:
    """The conditional UPDATE that decides who has a place."""
    statement = update(Task).where(where, OPEN).values(taken=Task.taken + 1).returning(Task)
    return session.scalar(statement.execution_options(synchronize_session=False, populate_existing=True))


def _assign(session: Session, task: Task, annotator_id: int, now: dt.datetime, lease_s: float) -> Assignment:
    assignment = Assignment(
        task_id=task.id,
        task=task,
        annotator_id=annotator_id,
        lease_token=secrets.token_urlsafe(24),
        expires_at=now + dt.timedelta(seconds=lease_s),
        left_is_a=random.random() < 0.5,
    )
    session.add(assignment)
    session.flush()
    return assignment


def _hold(session: Session, assignment: Assignment, now: dt.datetime, lease_s: float) -> bool:
    """Lease an unfinished assignment from now on, taking a place again where it lost its own; False when all are taken."""
    session.refresh(assignment, with_for_update=True)
    if assignment.state != "live" and _take(session, Task.id == assignment.task_id) is None:
        return False
    assignment.state = "live"
    assignment.expires_at = now + dt.timedelta(seconds=lease_s)
    session.flush()
    return True


def _give_back(session: Session, task_id: int) -> None:
    _changed(session, Task.id == task_id, {"taken": Task.taken - 1})


def _changed(session: Session, where: ColumnElement[bool], values: dict[str, Any]) -> bool:
    statement = update(Task).where(where).values(**values).returning(Task)
    options = {"synchronize_session": False, "populate_existing": True}
    return session.scalar(statement.execution_options(**options)) is not None
