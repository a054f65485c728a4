"""Tasks and who works on them: making, claiming, renewing, skipping and flagging. In: prompt and completions. Out: leases.

A task has `required_n` slots. A slot is claimed by one conditional UPDATE whose row count decides, so a task is
never over-assigned on SQLite nor on PostgreSQL. Leases run out; a slot whose lease ran out is free again.
Rows are locked in one order on PostgreSQL: person, task, slot. SQLite has one writer and needs no row locks.
"""

import datetime as dt
import random
import secrets
from typing import cast

from sqlalchemy import ColumnElement, CursorResult, and_, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.audit import record
from access.models import Person
from core.db import utcnow
from core.errors import Conflict, InvalidInput, NotFound
from feedback.models import Assignment, Completion, Prompt, Task, TaskSlot


def create_pairwise_task(
    session: Session,
    *,
    prompt_id: int,
    completion_a_id: str,
    completion_b_id: str,
    source: str,
    required_n: int = 1,
    priority: int = 0,
    why: str = "uniform",
) -> Task:
    """Ask for `required_n` judgments of two completions of one prompt.

    Args:
        source: what the task is made from; a second call with it returns the first task, even when it is done.
        priority: higher ones are handed out first.
        why: why these two were chosen, in a few words that the annotator may read.

    Raises:
        NotFound: the prompt or a completion does not exist.
        InvalidInput: one completion twice, one of another prompt, or no judgments wanted.
    """
    found = _task_of(session, source)
    if found is not None:
        return found
    _check_pair(session, prompt_id, completion_a_id, completion_b_id)
    if required_n < 1:
        raise InvalidInput(f"required_n is {required_n}; a task needs at least one judgment", param="required_n")
    task = Task(
        kind="pairwise",
        source=source,
        prompt_id=prompt_id,
        completion_a_id=completion_a_id,
        completion_b_id=completion_b_id,
        required_n=required_n,
        priority=priority,
        why=why,
    )
    try:
        with session.begin_nested():
            session.add(task)
            session.flush()
            session.add_all(TaskSlot(task_id=task.id, number=n) for n in range(1, required_n + 1))
    except IntegrityError:
        found = _task_of(session, source)  # somebody made it at the same moment
        if found is None:
            raise
        return found
    return task


def next_assignment(session: Session, annotator_id: int, lease_s: float) -> Assignment | None:
    """What the annotator works on now: their own live task first, else the next one that wants them.

    Own work whose lease ran out comes back while its task has room, so nothing typed is lost. Then tasks are
    handed out by priority, then age, leaving out those the annotator was given before.

    Returns:
        A live assignment that is leased for `lease_s` seconds from its claim, or None when nothing is left.
    """
    lock_annotator(session, annotator_id)
    now = utcnow()
    own = session.scalars(
        select(Assignment)
        .join(Task)
        .where(Assignment.annotator_id == annotator_id, Assignment.state == "live", Task.state == "live")
        .order_by(Assignment.id)
    )
    for assignment in own:
        if assignment.expires_at > now or _hold(session, assignment, now, lease_s):
            return assignment
    while (slot := _next_free_slot(session, annotator_id, now)) is not None:
        claimed = _claim(session, slot, annotator_id, now, lease_s)
        if claimed is not None:
            return claimed
    return None


def claim_task(session: Session, task_id: int, annotator_id: int, lease_s: float) -> Assignment | None:
    """Assign one given task; None when it has no free slot or the annotator was given it before.

    An assignment of this task that the annotator holds already is returned as it is.
    """
    lock_annotator(session, annotator_id)
    own = session.scalar(
        select(Assignment).where(Assignment.task_id == task_id, Assignment.annotator_id == annotator_id)
    )
    if own is not None:
        return own if own.state == "live" else None
    now = utcnow()
    free = and_(TaskSlot.task_id == task_id, _free(now))
    while (slot := session.scalar(select(TaskSlot).where(free).order_by(TaskSlot.number).limit(1))) is not None:
        claimed = _claim(session, slot, annotator_id, now, lease_s)
        if claimed is not None:
            return claimed
    return None


def find_assignment(session: Session, token: str, annotator_id: int) -> Assignment:
    """The annotator's assignment of this lease token, in whatever state.

    Raises:
        NotFound: no such token, or it is somebody else's; the answer does not tell which.
    """
    assignment = session.scalar(
        select(Assignment).where(Assignment.lease_token == token, Assignment.annotator_id == annotator_id)
    )
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
        Conflict: it was submitted or skipped already, or others have taken all its slots.
    """
    assignment = _live_assignment(session, token, annotator_id)
    if not _hold(session, assignment, utcnow(), lease_s):
        raise Conflict("the lease ran out and others took this task; what you submit is kept as a surplus judgment")
    return assignment


def skip(session: Session, token: str, annotator_id: int, reason: str) -> Assignment:
    """Give a task back; the annotator does not see it again. A second call changes nothing."""
    assignment = find_assignment(session, token, annotator_id)
    if assignment.state == "skipped":
        return assignment
    assignment = _live_assignment(session, token, annotator_id)
    session.execute(
        update(TaskSlot)
        .where(TaskSlot.task_id == assignment.task_id, TaskSlot.lease_token == token, TaskSlot.state == "leased")
        .values(state="open", lease_token=None, expires_at=None)
    )
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


def complete_slot(session: Session, assignment: Assignment) -> bool:
    """Count a submitted assignment: its own slot, else any free one of its task. Ends the task with its last slot.

    Returns:
        False when no slot was left, so that the judgment is surplus.
    """
    task_id = assignment.task_id
    task = session.scalars(select(Task).where(Task.id == task_id).with_for_update(key_share=True)).one()
    done: dict[str, object] = {"state": "done", "lease_token": assignment.lease_token, "expires_at": None}
    counted = task.state == "live" and (
        _take(session, _own_slot(assignment), done) or _take_free(session, task_id, utcnow(), done)
    )
    assignment.state = "done" if counted else "surplus"
    session.flush()
    if counted and not session.scalar(select(exists().where(TaskSlot.task_id == task_id, TaskSlot.state != "done"))):
        task.state = "done"
        session.flush()
    return counted


def _task_of(session: Session, source: str) -> Task | None:
    return session.scalar(select(Task).where(Task.source == source, Task.state != "cancelled").order_by(Task.id))


def _check_pair(session: Session, prompt_id: int, a_id: str, b_id: str) -> None:
    if session.get(Prompt, prompt_id) is None:
        raise NotFound(f"there is no prompt {prompt_id}")
    if a_id == b_id:
        raise InvalidInput(f"both completions are {a_id}; a pair needs two different ones")
    for completion_id in (a_id, b_id):
        completion = session.get(Completion, completion_id)
        if completion is None:
            raise NotFound(f"there is no completion {completion_id}")
        if completion.prompt_id != prompt_id:
            raise InvalidInput(f"completion {completion_id} belongs to prompt {completion.prompt_id}, not {prompt_id}")


def _live_assignment(session: Session, token: str, annotator_id: int) -> Assignment:
    lock_annotator(session, annotator_id)
    assignment = find_assignment(session, token, annotator_id)
    session.refresh(assignment)
    if assignment.state != "live":
        raise Conflict(f"this task is already {assignment.state}; open /annotate for your next one")
    return assignment


def _free(now: dt.datetime) -> ColumnElement[bool]:
    return or_(TaskSlot.state == "open", and_(TaskSlot.state == "leased", TaskSlot.expires_at <= now))


def _own_slot(assignment: Assignment) -> ColumnElement[bool]:
    return and_(
        TaskSlot.task_id == assignment.task_id,
        TaskSlot.lease_token == assignment.lease_token,
        TaskSlot.state == "leased",
    )


def _next_free_slot(session: Session, annotator_id: int, now: dt.datetime) -> TaskSlot | None:
    """The slot to try next. On PostgreSQL, slots that others are claiming right now are passed over."""
    given = exists().where(Assignment.task_id == Task.id, Assignment.annotator_id == annotator_id)
    free_slots = (
        select(TaskSlot)
        .join(Task, Task.id == TaskSlot.task_id)
        .where(Task.state == "live", ~given, _free(now))
        .order_by(Task.id, TaskSlot.number)
        .limit(1)
        .with_for_update(of=TaskSlot, skip_locked=True)
    )
    # One priority after the other: each query walks the index (state, priority, id) and stops at its first hit.
    priorities = select(Task.priority).where(Task.state == "live").distinct().order_by(Task.priority.desc())
    for priority in session.scalars(priorities).all():
        slot = session.scalar(free_slots.where(Task.priority == priority))
        if slot is not None:
            return slot
    return None


def _claim(session: Session, slot: TaskSlot, annotator_id: int, now: dt.datetime, lease_s: float) -> Assignment | None:
    """Try to take a slot; None when somebody else was quicker."""
    token = secrets.token_urlsafe(24)
    expires_at = now + dt.timedelta(seconds=lease_s)
    lease: dict[str, object] = {"state": "leased", "lease_token": token, "expires_at": expires_at}
    if not _take(session, and_(TaskSlot.id == slot.id, _free(now)), lease):
        return None
    assignment = Assignment(
        task_id=slot.task_id,
        annotator_id=annotator_id,
        lease_token=token,
        expires_at=expires_at,
        left_is_a=random.random() < 0.5,
    )
    session.add(assignment)
    session.flush()
    return assignment


def _hold(session: Session, assignment: Assignment, now: dt.datetime, lease_s: float) -> bool:
    """Lease the assignment's own slot again, or a free one of its task; False when there is none."""
    expires_at = now + dt.timedelta(seconds=lease_s)
    lease: dict[str, object] = {"state": "leased", "lease_token": assignment.lease_token, "expires_at": expires_at}
    held = _take(session, _own_slot(assignment), lease) or _take_free(session, assignment.task_id, now, lease)
    if held:
        assignment.expires_at = expires_at
        session.flush()
    return held


def _take_free(session: Session, task_id: int, now: dt.datetime, values: dict[str, object]) -> bool:
    free = and_(TaskSlot.task_id == task_id, _free(now))
    while (slot_id := session.scalar(select(TaskSlot.id).where(free).order_by(TaskSlot.number).limit(1))) is not None:
        if _take(session, and_(TaskSlot.id == slot_id, _free(now)), values):
            return True
    return False


def _take(session: Session, where: ColumnElement[bool], values: dict[str, object]) -> bool:
    """The conditional UPDATE that decides who has a slot."""
    statement = update(TaskSlot).where(where).values(**values).execution_options(synchronize_session=False)
    return cast(CursorResult[object], session.execute(statement)).rowcount == 1
