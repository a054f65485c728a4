"""What an assignment shows. Its texts are read when they are asked for, in one statement however many there are."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import ColumnElement, bindparam, exists, select
from sqlalchemy.orm import Session

from core.db import table_of
from core.errors import NotFound
from core.language import gettext
from feedback.blind import Blind
from feedback.kinds.frame import Contents, Shown, ShownItem, ShownRule
from feedback.models import Assignment, Completion, Draft, Prompt, Rule, RuleVersion, Task, TaskItem

TELLING = ("adjudication", "canary", "flagged", "informative")
ANY = "drawn evenly from everything there is to judge"
"""Why, as far as is told of an even sample, of known answers and of repeats alike: who knew would judge those with more care."""

_CONTENTS = (
    select(
        TaskItem.position, TaskItem.completion_id, Completion.text, Prompt.messages, Prompt.tenant_id, RuleVersion.id, Rule.slug,
        RuleVersion.text.label("rule_text"), RuleVersion.title, RuleVersion.kept_examples, RuleVersion.broken_examples,
    )
    .select_from(Task)
    .outerjoin(TaskItem, TaskItem.task_id == Task.id)
    .outerjoin(Completion, Completion.id == TaskItem.completion_id)
    .outerjoin(Prompt, Prompt.id == Task.prompt_id)
    .outerjoin(RuleVersion, RuleVersion.id == Task.rule_version_id)
    .outerjoin(Rule, Rule.id == RuleVersion.rule_id)
    .where(Task.id == bindparam("of_task"))
)  # fmt: skip
_FIND = (
    select(
        Assignment.id, Assignment.task_id, Assignment.state, Assignment.expires_at, Assignment.created_at,
        Assignment.shown_order, Task.kind, Task.pool, Task.why, Task.risky, Task.about_id, Task.required_n,
        exists().where(Draft.assignment_id == Assignment.id).label("has_draft"),
    )
    .join(Task, Task.id == Assignment.task_id)
    .where(Assignment.lease_token == bindparam("token"), Assignment.annotator_id == bindparam("who"))
)  # fmt: skip
_FIND_LOCKED = _FIND.with_for_update(of=table_of(Assignment))


def asked_in(shown: Shown) -> list[ColumnElement[bool]]:
    """Which completions are part of a probe: what the policy answered to this annotator since they were given it."""
    return [
        Completion.source == "served",
        Completion.person_id == shown.annotator_id,
        Completion.created_at >= shown.created_at,
    ]


class TaskFacts(Protocol):
    """What is told of a task beside its texts: a row of it, or the part of one that was read."""

    @property
    def kind(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def risky(self) -> bool: ...
    @property
    def about_id(self) -> int | None: ...
    @property
    def required_n(self) -> int: ...


def find_shown(session: Session, token: str, annotator_id: int, *, lock: bool = False) -> Shown:
    """The annotator's assignment of this lease token, in whatever state.

    Args:
        lock: hold its row, on PostgreSQL, until the transaction ends; its state is then what it says.

    Raises:
        NotFound: no such token, or it is somebody else's; the answer does not tell which.
    """
    session.flush()
    statement = _FIND_LOCKED if lock else _FIND
    row = session.connection().execute(statement, {"token": token, "who": annotator_id}).one_or_none()
    if row is None:
        raise NotFound(gettext("this task is not yours or does not exist; open /annotate for your next one"))
    return make_shown(
        session, row, assignment_id=row.id, task_id=row.task_id, annotator_id=annotator_id, token=token, state=row.state,
        expires_at=row.expires_at, created_at=row.created_at, order=row.shown_order,
        has_draft=row.has_draft,
    )  # fmt: skip


def load_shown(session: Session, assignment: Assignment) -> Shown:
    """What an assignment shows; `assignment.task` is read if it is not there yet."""
    return make_shown(
        session, assignment.task, assignment_id=assignment.id, task_id=assignment.task_id,
        annotator_id=assignment.annotator_id, token=assignment.lease_token, state=assignment.state,
        expires_at=assignment.expires_at, created_at=assignment.created_at, order=assignment.shown_order,
    )  # fmt: skip


def make_shown(  # noqa: PLR0913 (each is a fact of the assignment)
    session: Session,
    task: TaskFacts,
    *,
    assignment_id: int,
    task_id: int,
    annotator_id: int,
    token: str,
    state: str,
    expires_at: dt.datetime,
    created_at: dt.datetime,
    order: Sequence[int],
    has_draft: bool = True,
) -> Shown:
    """What is shown of a task in this order, out of what was read already."""
    return Shown(
        assignment_id=assignment_id,
        annotator_id=annotator_id,
        task_id=task_id,
        token=token,
        state=state,
        expires_at=expires_at,
        created_at=created_at,
        order=tuple(order),
        kind=task.kind,
        pool=task.pool,
        about_id=task.about_id,
        required_n=task.required_n,
        why=task.why if task.pool in TELLING else ANY,
        risky=task.risky,
        has_draft=has_draft,
        read=lambda: _contents(session, task_id, order),
    )


def _contents(session: Session, task_id: int, order: Sequence[int]) -> Contents:
    rows: Sequence[Any] = session.connection().execute(_CONTENTS, {"of_task": task_id}).all()
    by_position = {row.position: row for row in rows}
    head = rows[0]
    return Contents(
        messages=[_blind_turn(turn) for turn in head.messages or []],
        items=[
            ShownItem(position, by_position[position].completion_id, Blind.of(by_position[position].text))
            for position in order
        ],
        rule=None
        if head.id is None
        else ShownRule(head.id, head.slug, head.title, head.rule_text, head.kept_examples, head.broken_examples),
        tenant_id=head.tenant_id,
    )


def _blind_turn(turn: dict[str, str]) -> dict[str, str]:
    """A turn of the conversation; what people wrote is shown as they wrote it."""
    return turn if turn["role"] == "user" else {**turn, "content": Blind.of(turn["content"]).text}
