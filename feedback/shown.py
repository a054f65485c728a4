"""What an assignment shows, read in one statement however many completions it has."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from feedback.blind import Blind
from feedback.kinds.frame import Shown, ShownItem, ShownRule
from feedback.models import Assignment, Completion, Prompt, Rule, RuleVersion, Task, TaskItem

TELLING = ("adjudication", "canary", "flagged", "informative")
ANY = "drawn evenly from everything there is to judge"
"""Why, as far as is told of an even sample, of known answers and of repeats alike: who knew would judge those with more care."""

_QUERY = (
    select(
        TaskItem.position,
        TaskItem.completion_id,
        Completion.text,
        Prompt.messages,
        RuleVersion.id.label("rule_version_id"),
        RuleVersion.text.label("rule_text"),
        Rule.slug,
    )
    .select_from(Task)
    .outerjoin(TaskItem, TaskItem.task_id == Task.id)
    .outerjoin(Completion, Completion.id == TaskItem.completion_id)
    .outerjoin(Prompt, Prompt.id == Task.prompt_id)
    .outerjoin(RuleVersion, RuleVersion.id == Task.rule_version_id)
    .outerjoin(Rule, Rule.id == RuleVersion.rule_id)
    .order_by(TaskItem.position)
)


def load_shown(session: Session, assignment: Assignment) -> Shown:
    """The assignment as its annotator sees it; `assignment.task` is read if it is not there yet."""
    task = assignment.task
    rows: Sequence[Row[Any]] = session.execute(_QUERY.where(Task.id == task.id)).all()
    by_position = {row.position: row for row in rows if row.position is not None}
    head = rows[0]
    rule = None if head.rule_version_id is None else ShownRule(head.rule_version_id, head.slug, head.rule_text)
    return Shown(
        assignment_id=assignment.id,
        annotator_id=assignment.annotator_id,
        task_id=task.id,
        token=assignment.lease_token,
        state=assignment.state,
        expires_at=assignment.expires_at,
        created_at=assignment.created_at,
        kind=task.kind,
        pool=task.pool,
        about_id=task.about_id,
        why=task.why if task.pool in TELLING else ANY,
        risky=task.risky,
        messages=head.messages or [],
        items=[
            ShownItem(position, by_position[position].completion_id, Blind.of(by_position[position].text))
            for position in assignment.shown_order
        ],
        rule=rule,
    )
