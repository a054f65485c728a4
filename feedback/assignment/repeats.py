"""Own work shown again, its sides the other way round: does somebody say the same twice, and what does the side do to it?"""

import random

from sqlalchemy import select
from sqlalchemy.orm import Session

from feedback.models import Assignment, Task, TaskItem

LOOK_BACK = 200
"""Own assignments that a repeat is drawn from, the newest ones that are old enough."""

REPEATED = ("pairwise", "ranking", "rating", "rule_check")


def make_repeat(session: Session, annotator_id: int, after: int) -> tuple[Task, list[int]] | None:
    """A task that asks this annotator once more what they judged before, its one place taken.

    Args:
        after: so many of their newest assignments are too fresh to be asked again.

    Returns:
        The task and the order to show it in, the reverse of the first time; None where nothing can be repeated.
    """
    done = session.execute(
        select(Assignment.task_id, Assignment.shown_order, Task.pool)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.annotator_id == annotator_id, Assignment.state.in_(("done", "surplus")))
        .where(Task.kind.in_(REPEATED), Task.pool != "gold")
        .order_by(Assignment.id.desc())
        .limit(after + LOOK_BACK)
    ).all()
    asked = set(
        session.scalars(  # in whatever state: one that was skipped, or is still at hand, was asked too
            select(Task.about_id)
            .join(Assignment, Assignment.task_id == Task.id)
            .where(Assignment.annotator_id == annotator_id, Task.pool == "repeat")
        )
    )
    old = [row for row in done[after:] if row.pool != "repeat" and row.task_id not in asked]
    if not old:
        return None
    chosen = random.choice(old)
    first = session.get_one(Task, chosen.task_id)
    task = Task(
        kind=first.kind, source=f"repeat:{first.id}:{annotator_id}", prompt_id=first.prompt_id, about_id=first.id,
        rule_version_id=first.rule_version_id, required_n=1, taken=1, pool="repeat", category=first.category,
        risky=first.risky, why="own work shown again",
        items=[TaskItem(position=item.position, completion_id=item.completion_id) for item in first.items],
    )  # fmt: skip
    session.add(task)
    session.flush()
    return task, list(reversed(chosen.shown_order))
