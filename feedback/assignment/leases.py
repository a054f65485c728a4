"""Who works on which task: claiming, holding, giving back, finishing. In: an annotator. Out: leases.

A place of a task is taken by one conditional UPDATE of the task's count, whose row count decides, so a task is never
over-assigned on SQLite nor on PostgreSQL. A lease that ran out keeps its place until somebody needs it. Every step costs
the same at ten tasks and at a million: the next task is read off the index `ix_task_open`, in one statement for all pools.

Rows are locked in one order on PostgreSQL: person, assignment, task. What others hold of a further task, or of leases that
ran out, is passed over and never waited for. SQLite has one writer and needs no row locks.
"""

import datetime as dt
import random
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, case, func, insert, join, literal_column, select, update
from sqlalchemy.orm import Session, contains_eager

from access.audit import record
from access.models import Person
from access.people import LockedPerson, lock_person
from core.db import expire_known, table_of, utcnow
from core.errors import Conflict, Forbidden, NotFound
from core.language import N_, gettext, retold
from core.messages import plain_text
from core.settings import AssignmentSettings, GoldSettings
from feedback.assignment.annotators import STANDING_WHYS, annotator_of
from feedback.assignment.claim import FACTS, is_any_open, is_wanted, take_gold, take_next
from feedback.assignment.gold import measure_skip
from feedback.assignment.repeats import make_repeat
from feedback.assignment.shown import find_shown, make_shown
from feedback.kinds import form_of
from feedback.kinds.frame import Shown
from feedback.models import Annotator, Assignment, Task, TaskItem

SWEEP = 100
"""Leases given back at a time."""

SWEEP_CHANCE = 1 / 16
"""How often a claim that needs no place gives back those that ran out; one that finds nothing always does."""

STATE_WORDS = {
    "live": N_("open"),
    "expired": N_("expired"),
    "done": N_("done"),
    "surplus": N_("done"),
    "skipped": N_("skipped"),
}
PATIENCE_S = 1.0
"""How long a claim that finds nothing looks again, while there is something that others take at that moment."""

LOOK_AGAIN_S = 0.01
OPTED_OUT = "a topic that they do not want"
"""Why work that was held goes back to others once its annotator opted out of its topic."""

REVIEWERS = ("reviewer", "lead", "admin")
MAX_REASON = 200

TASK, ASSIGNMENT = table_of(Task), table_of(Assignment)
LIVE = TASK.c.state == literal_column("'live'")  # literal, as in the partial indexes, or no planner would use them
ROOM = LIVE & (TASK.c.taken < TASK.c.required_n)
HELD = ASSIGNMENT.c.state == literal_column("'live'")
UNFINISHED = ASSIGNMENT.c.state.in_((literal_column("'live'"), literal_column("'expired'")))
# Statements of every call stand ready; to build one anew takes longer than to run it.
HAS = (
    select(
        Annotator.standing, Annotator.standing_why, Annotator.opted_out, Annotator.risky_on, Annotator.risky_n,
        Assignment.id, Assignment.task_id, Assignment.lease_token, Assignment.state, Assignment.expires_at, Task.pool, Task.kind,
        Task.category, Task.risky,
    )
    .select_from(Person)
    .outerjoin(Annotator, Annotator.person_id == Person.id)
    .outerjoin(
        join(Assignment, Task, (Task.id == Assignment.task_id) & LIVE),
        (Assignment.annotator_id == Person.id) & UNFINISHED,
    )
    .where(Person.id == bindparam("who"))
    .order_by(Assignment.id)
)  # fmt: skip
"""How a person stands, with each piece of their unfinished work; one row without any where there is none."""

ASSIGN = insert(ASSIGNMENT).returning(ASSIGNMENT.c.id)
SET_STATE = update(ASSIGNMENT).where(ASSIGNMENT.c.id == bindparam("of_assignment")).values(state=bindparam("to"))
OF_TASK = TASK.c.id == bindparam("of_task")
LOCK_IF_FREE = select(TASK.c.id).where(OF_TASK).with_for_update(skip_locked=True)
TAKE = update(TASK).where(OF_TASK, ROOM).values(taken=TASK.c.taken + 1).returning(*(TASK.c[name] for name in FACTS))
GIVE_BACK = update(TASK).where(OF_TASK).values(taken=TASK.c.taken - 1)
ENDED = case((TASK.c.done + 1 >= TASK.c.required_n, literal_column("'done'")), else_=TASK.c.state)
FINISH_HELD = update(TASK).where(OF_TASK, LIVE).values(done=TASK.c.done + 1, state=ENDED).returning(TASK.c.state)
FINISH_LATE = (
    update(TASK)
    .where(OF_TASK, ROOM)
    .values(done=TASK.c.done + 1, state=ENDED, taken=TASK.c.taken + 1)
    .returning(TASK.c.state)
)


@dataclass(frozen=True)
class Worker:
    """The person who asks for work, and what they are not to be given."""

    id: int
    role: str
    opted_out: tuple[str, ...]
    risky_today: int


def next_assignment(
    session: Session,
    who: int | LockedPerson,
    lease_s: float,
    *,
    shares: AssignmentSettings | None = None,
    beside: Collection[str] = (),
) -> Assignment | None:
    """As `next_shown`, as a row."""
    found = next_shown(session, who, lease_s, shares=shares, beside=beside)
    return None if found is None else session.get_one(Assignment, found.assignment_id)


def next_shown(
    session: Session,
    who: int | LockedPerson,
    lease_s: float,
    *,
    shares: AssignmentSettings | None = None,
    beside: Collection[str] = (),
) -> Shown | None:
    """What an annotator works on now: their own unfinished task first, else the next one that wants them.

    Own work whose lease ran out comes back while its task has room, so nothing typed is lost; what is on a topic that the
    annotator does not want any more is given back to others instead. Then a pool is drawn by
    its share, and from it the task that is nearest to complete, then by priority and rank, leaving out those the
    annotator was given before and topics they do not want to see. An empty pool's share falls to the others.
    Disagreements wait for reviewers and come first; they are given to nobody who had a part in them.

    Args:
        who: the id of a person, or the person whom this transaction has locked.
        shares: how often each pool is drawn; the defaults when left out.
        beside: lease tokens of unfinished work that the annotator has at hand, e.g. while the next task is fetched.

    Returns:
        What a live assignment shows, leased for `lease_s` seconds, or None when nothing is left.

    Raises:
        NotFound: no such person.
        Forbidden: the person was paused; code `annotator_paused`.
    """
    shares = shares or AssignmentSettings()
    person = who if isinstance(who, LockedPerson) else lock_person(session, who)
    now = utcnow()
    session.flush()
    has = session.connection().execute(HAS, {"who": person.id}).all()
    worker = _worker(person, has[0], now)
    for row in has:
        if row.id is None or row.lease_token in beside or not may_see(worker.role, row.pool):
            continue
        wanted = is_wanted(row, worker.opted_out)
        if wanted and row.expires_at > now and row.state == "live":
            return find_shown(session, row.lease_token, worker.id)
        if not _lock_if_free(session, row.task_id):
            continue  # it comes back with the next call
        if not wanted:
            skip(session, row.lease_token, worker.id, OPTED_OUT)
        elif _hold(session, row.id, now, lease_s):
            return find_shown(session, row.lease_token, worker.id)
    if random.random() < SWEEP_CHANCE:
        release_expired(session, now)
    taken, order = _take_measured(session, worker, shares)
    taken = taken or _take_next(session, worker, shares, now)
    if taken is None:
        return None
    expire_known(session, Task, taken.id)
    if taken.risky:
        _count_risky(session, worker, now)
    return _assign(session, taken, worker.id, now, lease_s, order)


def may_see(role: str, pool: str) -> bool:
    """Whether somebody of this role may be shown a task of this pool, also one that they were given in another role."""
    return pool != "adjudication" or role in REVIEWERS


def claim_task(session: Session, task_id: int, annotator_id: int, lease_s: float) -> Assignment | None:
    """Assign one given task; None when it has no free place or the annotator was given it before.

    An assignment of this task that the annotator holds already is returned as it is.
    """
    lock_person(session, annotator_id)
    own = session.scalar(
        select(Assignment).where(Assignment.task_id == task_id, Assignment.annotator_id == annotator_id)
    )
    if own is not None:
        return own if own.state == "live" else None
    now = utcnow()
    task = _take(session, task_id) or (
        _take(session, task_id) if release_expired(session, now, task_id=task_id) else None
    )
    if task is None:
        return None
    return session.get_one(Assignment, _assign(session, task, annotator_id, now, lease_s).assignment_id)


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
        raise NotFound(gettext("this task is not yours or does not exist; open /annotate for your next one"))
    return assignment


def renew(session: Session, token: str, annotator_id: int, lease_s: float) -> Assignment:
    """Hold a task for `lease_s` seconds from now; one that ran out is taken again if it has room.

    Raises:
        Conflict: it was submitted or skipped already, or others have taken all its places.
    """
    assignment = _unfinished_one(session, token, annotator_id)
    if not _hold(session, assignment.id, utcnow(), lease_s):
        raise Conflict(
            gettext("the lease ran out and others took this task; what you submit is kept as a surplus judgment")
        )
    return assignment


def skip(
    session: Session, token: str, annotator_id: int, reason: str, *, gold: GoldSettings | None = None
) -> Assignment:
    """Give a task back; the annotator does not see it again. A second call changes nothing.

    Args:
        gold: with it, tasks with known answers that are skipped too often count as not passed.
    """
    if (found := find_assignment(session, token, annotator_id)).state == "skipped":
        return found
    assignment = _unfinished_one(session, token, annotator_id)
    if assignment.state == "live":
        _give_back(session, assignment.task_id)
    assignment.state = "skipped"
    assignment.skip_reason = plain_text(reason).strip()[:MAX_REASON] or "no reason given"
    if assignment.task.pool == "repeat":  # it was this annotator's alone
        assignment.task.state = "cancelled"
    session.flush()
    if gold is not None and assignment.task.pool == "gold":
        measure_skip(session, annotator_id, gold)
    return assignment


def flag(session: Session, token: str, annotator_id: int, reason: str) -> Assignment:
    """Give a task back and tell the leads that something is wrong with it (an entry in the audit log)."""
    person = lock_person(session, annotator_id)
    before = find_assignment(session, token, annotator_id).state
    assignment = skip(session, token, annotator_id, f"flagged: {reason.strip()}")
    if before != "skipped":
        record(
            session,
            person.login,
            "task.flag",
            f"task:{assignment.task_id}",
            after={"reason": plain_text(reason).strip()[:MAX_REASON]},
        )
    return assignment


@dataclass(frozen=True)
class Finished:
    """What a submit did to its task."""

    counted: bool  # False: its place was lost and no other is free, so that the judgment is surplus
    last: bool  # it was the last that the task wanted


def finish(session: Session, shown: Shown) -> Finished:
    """Count a submitted assignment, whose row the caller has locked, towards its task; the last one ends the task."""
    held = shown.state == "live"
    connection = session.connection()
    ended = connection.execute(FINISH_HELD if held else FINISH_LATE, {"of_task": shown.task_id}).one_or_none()
    state = "done" if ended is not None else "surplus"
    connection.execute(SET_STATE, {"of_assignment": shown.assignment_id, "to": state})
    if held and ended is None:
        _give_back(session, shown.task_id)  # the task was cancelled meanwhile
    expire_known(session, Task, shown.task_id)
    expire_known(session, Assignment, shown.assignment_id)
    return Finished(ended is not None, ended is not None and ended.state == "done")


def release_expired(session: Session, now: dt.datetime, task_id: int | None = None) -> int:
    """Give back places whose leases ran out, the oldest first and at most `SWEEP` at a time; returns how many."""
    session.flush()
    stale = (
        select(ASSIGNMENT.c.id, ASSIGNMENT.c.task_id)
        .join(TASK, TASK.c.id == ASSIGNMENT.c.task_id)
        .where(HELD, ASSIGNMENT.c.expires_at <= now)
    )
    if task_id is not None:
        stale = stale.where(ASSIGNMENT.c.task_id == task_id)
    stale = stale.order_by(ASSIGNMENT.c.expires_at).limit(SWEEP).with_for_update(skip_locked=True)
    connection = session.connection()
    found = connection.execute(stale).all()  # with their tasks, or not at all: a sweep waits for nobody
    for assignment_id, of_task in found:
        connection.execute(SET_STATE, {"of_assignment": assignment_id, "to": "expired"})
        expire_known(session, Assignment, assignment_id)
        _give_back(session, of_task)
    return len(found)


def _worker(person: LockedPerson, has: Row[Any], now: dt.datetime) -> Worker:
    if has.standing == "paused":
        raise Forbidden(
            gettext(
                "your work is paused: %(why)s; a lead can let you go on",
                why=retold(has.standing_why or "", STANDING_WHYS),
            ),
            code="annotator_paused",
        )
    risky_today = has.risky_n if has.risky_on == now.date() else 0
    return Worker(person.id, person.role, tuple(has.opted_out or ()), risky_today)


def _unfinished_one(session: Session, token: str, annotator_id: int) -> Assignment:
    lock_person(session, annotator_id)
    assignment = find_assignment(session, token, annotator_id, lock=True)
    if assignment.state not in ("live", "expired"):
        raise Conflict(
            gettext(
                "this task is already %(state)s; open /annotate for your next one",
                state=gettext(STATE_WORDS.get(assignment.state, assignment.state)),
            )
        )
    return assignment


def _take_measured(session: Session, worker: Worker, shares: AssignmentSettings) -> tuple[Row[Any] | None, list[int]]:
    """In their shares, a task with a known answer, or own earlier work and the order to show it in; else nothing."""
    drawn = _weighted(shares.weights())[0]
    if drawn == "gold":
        return take_gold(session.connection(), worker.id, **_passed_over(worker, shares)), []
    if drawn != "repeat":
        return None, []
    return make_repeat(session, worker.id, shares.repeat_after, **_passed_over(worker, shares)) or (None, [])


def _take_next(session: Session, worker: Worker, shares: AssignmentSettings, now: dt.datetime) -> Row[Any] | None:
    """Take a place of the next task that the annotator was not given before, whichever pool it waits in."""
    rest = {pool: weight for pool, weight in shares.weights().items() if pool not in ("gold", "repeat")}
    pools = [*(["adjudication"] if worker.role in REVIEWERS else []), "canary", *_weighted(rest)]
    passed_over = _passed_over(worker, shares)
    if (task := take_next(session.connection(), worker.id, pools, **passed_over)) is not None:
        return task
    release_expired(session, now)
    until = time.monotonic() + PATIENCE_S
    while (task := take_next(session.connection(), worker.id, pools, everywhere=True, **passed_over)) is None:
        if time.monotonic() > until or not is_any_open(session.connection(), worker.id, pools, **passed_over):
            return None
        time.sleep(LOOK_AGAIN_S)
    return task


def _passed_over(worker: Worker, shares: AssignmentSettings) -> dict[str, Any]:
    """What this person is not to be given: topics they opted out of, and more than their share of what may upset."""
    enough = bool(shares.risky_per_day) and worker.risky_today >= shares.risky_per_day
    return {"opted_out": worker.opted_out, "calm": enough}


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


def _lock_if_free(session: Session, task_id: int) -> bool:
    """Hold a further task's row, unless somebody else does. To wait for it, e.g. for an import that marks tasks as upsetting,
    while holding the one that was judged just now, could be to wait for each other."""
    return session.connection().execute(LOCK_IF_FREE, {"of_task": task_id}).one_or_none() is not None


def _take(session: Session, task_id: int) -> Row[Any] | None:
    """The conditional UPDATE that decides who has a place."""
    found = session.connection().execute(TAKE, {"of_task": task_id}).one_or_none()
    expire_known(session, Task, task_id)
    return found


def _assign(
    session: Session, task: Row[Any], annotator_id: int, now: dt.datetime, lease_s: float,
    order: Sequence[int] = (),
) -> Shown:  # fmt: skip
    """The assignment of a place that was taken; the task's items are shown in `order`, or by chance."""
    shown_order = list(order)
    if not shown_order:
        shown_order = list(range(_items_of(session, task)))
        random.shuffle(shown_order)
    token, expires_at = secrets.token_urlsafe(24), now + dt.timedelta(seconds=lease_s)
    made = session.connection().execute(
        ASSIGN,
        {
            "task_id": task.id, "annotator_id": annotator_id, "lease_token": token, "shown_order": shown_order,
            "expires_at": expires_at, "state": "live", "created_at": now,
        },
    )  # fmt: skip
    return make_shown(
        session, task, assignment_id=made.scalar_one(), task_id=task.id, annotator_id=annotator_id, token=token,
        state="live", expires_at=expires_at, created_at=now, order=shown_order,
    )  # fmt: skip


def _items_of(session: Session, task: Row[Any]) -> int:
    """How many completions a task has, which most kinds tell."""
    usual = form_of(task.kind).ITEMS
    if len(usual) == 1:
        return usual.start
    return session.scalar(select(func.count()).where(TaskItem.task_id == task.id)) or 0


def _hold(session: Session, assignment_id: int, now: dt.datetime, lease_s: float) -> bool:
    """Lease an unfinished assignment from now on, taking a place again where it lost its own; False when all are taken."""
    assignment = session.get_one(Assignment, assignment_id, populate_existing=True, with_for_update=True)
    if assignment.state != "live" and _take(session, assignment.task_id) is None:
        return False
    assignment.state = "live"
    assignment.expires_at = now + dt.timedelta(seconds=lease_s)
    session.flush()
    return True


def _give_back(session: Session, task_id: int) -> None:
    session.connection().execute(GIVE_BACK, {"of_task": task_id})
    expire_known(session, Task, task_id)
