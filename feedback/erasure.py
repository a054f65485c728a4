"""Texts taken out of the database for good. In: whose, or how old. Out: rows with all that is counted, and without a word.

    erase_user(session, key, actor)            all that was written for one end user, judged or not
    expire(db, days, …)                        served texts past their time, which nobody has judged

What goes: the texts of completions (served, withheld, paired), of prompts that no other completion needs, and, of what a
user asks to have erased, corrections, notes and quotes in judgments of them, and drafts. Tasks that wait with them are
cancelled. What stays: rows with tokens, times and verdicts, and judgments with their choice, which no snapshot takes any
more. A frozen snapshot is not changed, for its hash says what was trained on: those that hold such a text are named, and
whoever runs the service removes their folders. Backups are theirs to erase too.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Select, delete, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from access.audit import record
from access.models import Tenant
from core.db import Database, utcnow
from feedback.models import (
    Assignment,
    Completion,
    Correction,
    Draft,
    ImportedPair,
    Judgment,
    Prompt,
    RuleJudgment,
    SnapshotJudgment,
    Task,
    TaskItem,
)

TOGETHER = 500
"""Completions in one transaction."""
SOURCES = ("served", "withheld", "paired", "sampled")


@dataclass
class Erased:
    """What was done, or would be.

    Attributes:
        completions, prompts: whose text is gone.
        tasks: that were cancelled.
        snapshots: ids of those that hold a judgment of what was erased, and so its text.
    """

    completions: int = 0
    prompts: int = 0
    tasks: int = 0
    snapshots: list[int] = field(default_factory=list)

    def add(self, other: "Erased") -> None:
        """Count what another one counts."""
        self.completions += other.completions
        self.prompts += other.prompts
        self.tasks += other.tasks
        self.snapshots = sorted({*self.snapshots, *other.snapshots})


def erase_user(session: Session, user_key: str, actor: str, *, dry_run: bool = False) -> Erased:
    """Take away all texts that were written for an end user, and what they wrote; the user is then known no more.

    Args:
        user_key: as `feedback.consent.user_key` has it, of one tenant or the house.
        actor: the login of who does it, for the audit log, which holds counts alone.
        dry_run: only say what would be done; prompts and tasks are not counted then.
    """
    erased = Erased()
    whose = select(Completion.id).where(Completion.user_key == user_key).order_by(Completion.id)
    ids = list(session.scalars(whose))
    for start in range(0, len(ids), TOGETHER):
        some = ids[start : start + TOGETHER]
        erased.add(Erased(len(some), snapshots=_snapshots_of(session, some)))
        if not dry_run:
            _erase_words_about(session, some)
            erased.add(_empty(session, some))
            session.execute(
                update(Completion).where(Completion.id.in_(some)).values(user_key=None, system_prompt_unit=None)
            )
    if ids and not dry_run:
        record(session, actor, "user.erase", f"user:{user_key[:12]}", after=vars(erased))
    return erased


def expire(db: Database, days: int, actor: str, now: dt.datetime | None = None, *, dry_run: bool = False) -> Erased:
    """Take away served texts that are older than their time and that no judgment refers to, some at a time.

    Args:
        days: of the house, and of tenants without a time of their own; 0: for ever.
        dry_run: only count the completions.
    """
    now, erased = now or utcnow(), Erased()
    with db.read() as session:
        times = list(session.execute(select(Tenant.id, Tenant.retention_days)))
    own = [(tenant_id, days if kept is None else kept) for tenant_id, kept in times]
    for tenant_id, kept_days in [(None, days), *own]:
        if kept_days:
            erased.add(_expire_of(db, tenant_id, now - dt.timedelta(days=kept_days), dry_run=dry_run))
    if erased.completions and not dry_run:
        with db.session() as session:
            record(session, actor, "retention.run", "completions", after={**vars(erased), "days": days})
    return erased


def _expire_of(db: Database, tenant_id: int | None, before: dt.datetime, *, dry_run: bool) -> Erased:
    erased, after = Erased(), ""
    due = _due(tenant_id, before).limit(TOGETHER)
    while True:
        query = due.where(Completion.id > after)
        with db.read() if dry_run else db.session() as session:
            found = list(session.scalars(query if dry_run else query.with_for_update(skip_locked=True)))
            erased.completions += len(found)
            if found and not dry_run:
                erased.add(_empty(session, found))
        if len(found) < TOGETHER:
            return erased
        after = found[-1]


def _due(tenant_id: int | None, before: dt.datetime) -> Select[str]:
    """Ids of completions of a tenant, or the house, whose text may go."""
    of_whom = Completion.tenant_id.is_(None) if tenant_id is None else Completion.tenant_id == tenant_id
    due: Select[str] = (
        select(Completion.id)
        .where(
            of_whom, Completion.erased_at.is_(None), Completion.source.in_(SOURCES), Completion.created_at < before,
            ~_is_judged(),
        )
        .order_by(Completion.id)
    )  # fmt: skip
    return due


def _is_judged() -> ColumnElement[bool]:
    """Whether a judgment refers to a completion, or somebody is at work on it."""
    at_work = exists().where(Assignment.task_id == TaskItem.task_id, Assignment.state.in_(("live", "expired")))
    in_task = exists().where(
        TaskItem.completion_id == Completion.id,
        or_(exists().where(Judgment.task_id == TaskItem.task_id), at_work),
    )
    return or_(
        exists().where(Judgment.completion_id == Completion.id),
        exists().where(RuleJudgment.completion_id == Completion.id),
        in_task,
    )


def _empty(session: Session, ids: Sequence[str]) -> Erased:
    """Take away the texts of completions, and of their prompts where nothing else needs them; cancel what waits."""
    session.execute(update(Completion).where(Completion.id.in_(ids)).values(text="", erased_at=utcnow()))
    about = select(TaskItem.task_id).where(TaskItem.completion_id.in_(ids))
    waiting = update(Task).where(Task.id.in_(about), Task.state == "live").values(state="cancelled")
    tasks = len(session.scalars(waiting.returning(Task.id)).all())
    other = aliased(Completion)
    # A pair of two system prompts asks about the conversation without either, which no completion names.
    shown = select(Task.prompt_id).where(Task.id.in_(about), Task.prompt_id.is_not(None))
    asked = select(Completion.prompt_id).where(Completion.id.in_(ids)).union(shown)
    needed = or_(
        exists().where(other.prompt_id == Prompt.id, other.erased_at.is_(None)),
        exists().where(
            Task.prompt_id == Prompt.id, TaskItem.task_id == Task.id, other.id == TaskItem.completion_id,
            other.erased_at.is_(None),
        ),
    )  # fmt: skip
    imported = exists().where(ImportedPair.prompt_id == Prompt.id)
    found = select(Prompt).where(Prompt.id.in_(asked), Prompt.source == "served", ~needed, ~imported)
    prompts = session.scalars(found.order_by(Prompt.id).with_for_update(of=Prompt)).all()
    for prompt in prompts:
        prompt.messages = [{"role": message["role"], "content": ""} for message in prompt.messages]
        # the hash of a text tells who guesses it that it was said
        prompt.messages_sha256 = hashlib.sha256(f"erased:{prompt.id}".encode()).hexdigest()
    session.flush()
    return Erased(prompts=len(prompts), tasks=tasks)


def _erase_words_about(session: Session, ids: Sequence[str]) -> None:
    """What judgments repeat of these texts: corrections, quotes, notes, drafts."""
    tasks = select(TaskItem.task_id).where(TaskItem.completion_id.in_(ids))
    about = select(Judgment.id).where(or_(Judgment.completion_id.in_(ids), Judgment.task_id.in_(tasks)))
    said_of = or_(RuleJudgment.completion_id.in_(ids), RuleJudgment.judgment_id.in_(about))
    session.execute(update(RuleJudgment).where(said_of).values(span=None))
    edits = or_(Correction.completion_id.in_(ids), Correction.judgment_id.in_(about))
    session.execute(update(Correction).where(edits).values(text=""))
    session.execute(update(Judgment).where(Judgment.id.in_(about)).values(note=None))
    typed = select(Assignment.id).where(Assignment.task_id.in_(tasks))
    session.execute(delete(Draft).where(Draft.assignment_id.in_(typed)))


def _snapshots_of(session: Session, ids: Sequence[str]) -> list[int]:
    tasks = select(TaskItem.task_id).where(TaskItem.completion_id.in_(ids))
    about = or_(Judgment.completion_id.in_(ids), Judgment.task_id.in_(tasks))
    held = select(SnapshotJudgment.snapshot_id).join(Judgment, Judgment.id == SnapshotJudgment.judgment_id)
    return sorted(set(session.scalars(held.where(about).distinct())))
