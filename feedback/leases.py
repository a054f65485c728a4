"""Who works on which task: claiming, holding, giving back, finishing. In: an annotator. Out: leases.

A place of a task is taken by one conditional UPDATE of the task's count, whose row count decides, so a task is never
over-assigned on SQLite nor on PostgreSQL. A lease that ran out keeps its place until somebody needs it. Every step costs
the same at ten tasks and at a million: the next task is read off the index `ix_task_open`, in one statement for all pools.

Rows are locked in one order on PostgreSQL: person, assignment, task. SQLite has one writer and needs no row locks.
"""

import datetime as dt
import random
import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, case, exists, func, literal_column, or_, select, update
from sqlalchemy.orm import Session, aliased, contains_eager

from access.audit import record
from access.models import Person
from core.db import utcnow
from core.errors import Conflict, Forbidden, NotFound
from core.settings import AssignmentSettings
from feedback.annotators import annotator_of
from feedback.kinds import form_of
from feedback.models import Annotator, Assignment, Task, TaskItem
from feedback.repeats import make_repeat

WINDOW = 32
"""Tasks at the head of a pool that are looked at first. A person alone on tasks that want several judgments has had all
that are begun; without a bound each look would pass over every one of them."""

SWEEP = 100
"""Leases given back at a time."""

SWEEP_CHANCE = 1 / 16
"""How often a claim that needs no place gives back those that ran out; one that finds nothing always does."""

REVIEWERS = ("reviewer", "lead", "admin")

LIVE = Task.state == literal_column("'live'")  # literal, as in the partial indexes, or no planner would use them
OPEN = LIVE & (Task.taken < Task.required_n)
ORDER = (Task.taken.desc(), Task.priority.desc(), Task.rank.desc(), Task.id.desc())
HELD = Assignment.state == literal_column("'live'")


@dataclass(frozen=True)
class Worker:
    """The person who asks, as far as assignment needs to know them."""

    id: int
    login: str
    role: str
    scripted: bool
    standing: str
    standing_why: str
    opted_out: tuple[str, ...]
    risky_today: int


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
    annotator was given before and topics they do not want to see. An empty pool's share falls to the others.
    Disagreements wait for reviewers and come first; they are given to nobody who had a part in them.

    Args:
        shares: how often each pool is drawn; the defaults when left out.
        beside: lease tokens of unfinished work that the annotator has at hand, e.g. while the next task is fetched.

    Returns:
        A live assignment with its task, leased for `lease_s` seconds, or None when nothing is left.

    Raises:
        NotFound: no such person.
        Forbidden: the person was paused; code `annotator_paused`.
    """
    shares = shares or AssignmentSettings()
    worker = lock_annotator(session, annotator_id)
    if worker.standing == "paused":
        raise Forbidden(
            f"your work is paused: {worker.standing_why}; a lead can let you go on", code="annotator_paused"
        )
    now = utcnow()
    for assignment in _unfinished(session, annotator_id, beside):
        if assignment.expires_at > now and assignment.state == "live":
            return assignment
        if _hold(session, assignment, now, lease_s):
            return assignment
    if random.random() < SWEEP_CHANCE:
        release_expired(session, now)
    task, order = _claim_measured(session, worker, shares) or (None, None)
    task = task or _claim_next(session, worker, shares, now)
    if task is None:
        return None
    if task.risky:
        _count_risky(session, worker, now)
    return _assign(session, task, annotator_id, now, lease_s, order)


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
    query = (
        select(Assignment)
        .join(Assignment.task)
        .options(contains_eager(Assignment.task))
        .where(Assignment.lease_token == token, Assignment.annotator_id == annotator_id)
    )
    if lock:
        query = query.with_for_update(of=Assignment).execution_options(populate_existing=True)
    assignment = session.scalar(query)
    if assignment is None:
        raise NotFound("this task is not yours or does not exist; open /annotate for your next one")
    return assignment


def lock_annotator(session: Session, annotator_id: int) -> Worker:
    """The person, locked on PostgreSQL: two tabs of one annotator act one after the other.

    Raises:
        NotFound: no such person.
    """
    row = session.execute(
        select(
            Person.id, Person.login, Person.role, Person.scripted, Annotator.standing, Annotator.standing_why,
            Annotator.opted_out, Annotator.risky_on, Annotator.risky_n,
        )
        .outerjoin(Annotator, Annotator.person_id == Person.id)
        .where(Person.id == annotator_id)
        .with_for_update(key_share=True, of=Person)
    ).one_or_none()  # fmt: skip
    if row is None:
        raise NotFound(f"there is no person {annotator_id}")
    return Worker(
        row.id, row.login, row.role, row.scripted, row.standing or "good", row.standing_why or "",
        tuple(row.opted_out or ()), row.risky_n if row.risky_on == utcnow().date() else 0,
    )  # fmt: skip


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
    worker = lock_annotator(session, annotator_id)
    before = find_assignment(session, token, annotator_id).state
    assignment = skip(session, token, annotator_id, f"flagged: {reason.strip()}")
    if before != "skipped":
        record(session, worker.login, "task.flag", f"task:{assignment.task_id}", after={"reason": reason.strip()})
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


def _unfinished(session: Session, annotator_id: int, beside: Collection[str]) -> Iterator[Assignment]:
    """The annotator's own work that can still be done, the oldest first."""
    query = (
        select(Assignment)
        .join(Assignment.task)
        .options(contains_eager(Assignment.task))
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


def _claim_measured(session: Session, worker: Worker, shares: AssignmentSettings) -> tuple[Task, list[int]] | None:
    """In their shares, a task with a known answer, or own earlier work shown again; else nothing."""
    drawn = _weighted(shares.weights())[0]
    if drawn == "gold":
        waiting = select(Task.id).where(OPEN, Task.pool == "gold", *_wanted(worker, shares)).correlate(None)
        pick = waiting.order_by(func.random()).limit(1).with_for_update(of=Task, skip_locked=True)
        task = _take(session, Task.id == pick.scalar_subquery())
        return None if task is None else (task, [])
    return make_repeat(session, worker.id, shares.repeat_after) if drawn == "repeat" else None


def _claim_next(session: Session, worker: Worker, shares: AssignmentSettings, now: dt.datetime) -> Task | None:
    """Take a place of the next task that the annotator was not given before, whichever pool it waits in."""
    rest = {pool: weight for pool, weight in shares.weights().items() if pool not in ("gold", "repeat")}
    pools = [*(["adjudication"] if worker.role in REVIEWERS else []), "canary", *_weighted(rest)]
    wanted = {pool: [*_wanted(worker, shares), *_outside(pool, worker)] for pool in pools}
    first_look = [pick for pool in pools for pick in _picks(pool, wanted[pool])]
    if (task := _take(session, Task.id == func.coalesce(*first_look))) is not None:
        return task
    release_expired(session, now)
    # Everything, for what the first look passed over: beyond the window, or locked by others just then.
    last_look = [_pick(_waiting(pool, wanted[pool]), patient=True) for pool in pools]
    return _take(session, Task.id == func.coalesce(*last_look))


def _picks(pool: str, wanted: Sequence[ColumnElement[bool]]) -> list[ScalarSelect[int]]:
    """The id of a pool's next task: at the head of what is begun, then of what is untouched."""
    head = select(Task.id).where(OPEN, Task.pool == pool, Task.taken > 0).correlate(None).order_by(*ORDER).limit(WINDOW)
    begun = select(Task.id).where(Task.id.in_(head.scalar_subquery()), OPEN, *wanted).correlate(None)
    return [_pick(begun), _pick(_waiting(pool, wanted).where(Task.taken == 0))]


def _waiting(pool: str, wanted: Sequence[ColumnElement[bool]]) -> Select[int]:
    return select(Task.id).where(OPEN, Task.pool == pool, *wanted).correlate(None)


def _pick(query: Select[int], *, patient: bool = False) -> ScalarSelect[int]:
    """The first of a query. On PostgreSQL, tasks that others take just now are passed over, unless patient."""
    first = query.order_by(*ORDER).limit(1)
    return first.with_for_update(of=Task, skip_locked=not patient).scalar_subquery()


def _wanted(worker: Worker, shares: AssignmentSettings) -> list[ColumnElement[bool]]:
    """What this person may be given: nothing they were given before, no topic they opted out of, no more than their
    share of what may upset."""
    wanted = [~exists().where(Assignment.task_id == Task.id, Assignment.annotator_id == worker.id)]
    if worker.opted_out:
        wanted.append(or_(Task.category.is_(None), Task.category.not_in(worker.opted_out)))
    if shares.risky_per_day and worker.risky_today >= shares.risky_per_day:
        wanted.append(~Task.risky)
    return wanted


def _outside(pool: str, worker: Worker) -> list[ColumnElement[bool]]:
    """Who settles a disagreement had no part in it."""
    if pool != "adjudication":
        return []
    part = aliased(Assignment)
    return [~exists().where(part.task_id == Task.about_id, part.annotator_id == worker.id)]


def _weighted(weights: dict[str, float]) -> list[str]:
    """All names in the order of a draw in proportion to their weights; those without weight at the end."""
    drawn = sorted(
        (name for name, weight in weights.items() if weight > 0),
        key=lambda name: random.random() ** (1 / weights[name]),
        reverse=True,
    )
    return [*drawn, *(name for name, weight in weights.items() if weight <= 0)]


def _count_risky(session: Session, worker: Worker, now: dt.datetime) -> None:
    annotator = annotator_of(session, worker.id)
    annotator.risky_on, annotator.risky_n = now.date(), worker.risky_today + 1


def _take(session: Session, where: ColumnElement[bool]) -> Task | None:
    """The conditional UPDATE that decides who has a place."""
    statement = update(Task).where(where, OPEN).values(taken=Task.taken + 1).returning(Task)
    return session.scalar(statement.execution_options(synchronize_session=False, populate_existing=True))


def _assign(
    session: Session, task: Task, annotator_id: int, now: dt.datetime, lease_s: float, order: list[int] | None = None
) -> Assignment:
    """The assignment of a place that was taken; its items are shown in `order`, or by chance."""
    if not order:
        order = list(range(_items_of(session, task)))
        random.shuffle(order)
    assignment = Assignment(
        task_id=task.id,
        task=task,
        annotator_id=annotator_id,
        lease_token=secrets.token_urlsafe(24),
        expires_at=now + dt.timedelta(seconds=lease_s),
        shown_order=order,
    )
    session.add(assignment)
    session.flush()
    return assignment


def _items_of(session: Session, task: Task) -> int:
    """How many completions a task has, which most kinds tell."""
    usual = form_of(task.kind).ITEMS
    if len(usual) == 1:
        return usual.start
    return session.scalar(select(func.count()).where(TaskItem.task_id == task.id)) or 0


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
