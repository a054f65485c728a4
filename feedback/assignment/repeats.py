"""Own work shown again, its sides the other way round: does somebody say the same twice, and what does the side do to it?"""

from typing import Any

from sqlalchemy import Row, bindparam, exists, func, select
from sqlalchemy.orm import Session

from core.db import table_of
from feedback.models import Assignment, Task
from feedback.tasks import copy_task

LOOK_BACK = 200
"""Own assignments that a repeat is drawn from, the newest ones that are old enough."""

REPEATED = ("pairwise", "ranking", "rating", "rule_check")

_ASSIGNMENT, _TASK = table_of(Assignment), table_of(Task)
_MINE = _ASSIGNMENT.c.annotator_id == bindparam("who")
_DONE = (
    select(_ASSIGNMENT.c.task_id, _ASSIGNMENT.c.shown_order, _TASK.c.pool)
    .join(_TASK, _TASK.c.id == _ASSIGNMENT.c.task_id)
    .where(_MINE, _ASSIGNMENT.c.state.in_(("done", "surplus")), _TASK.c.kind.in_(REPEATED), _TASK.c.pool != "gold")
    .order_by(_ASSIGNMENT.c.id.desc())
    .limit(LOOK_BACK)
    .offset(bindparam("after"))
    .subquery()
)
_AGAIN, _ASKED = _TASK.alias(), _ASSIGNMENT.alias()
_WAS_ASKED = exists().where(  # in whatever state: one that was skipped, or is still at hand, was asked too
    _AGAIN.c.about_id == _DONE.c.task_id,
    _AGAIN.c.pool == "repeat",
    _ASKED.c.task_id == _AGAIN.c.id,
    _ASKED.c.annotator_id == bindparam("who"),
)
_DRAW = (
    select(_DONE.c.task_id, _DONE.c.shown_order)
    .where(_DONE.c.pool != "repeat", ~_WAS_ASKED)
    .order_by(func.random())
    .limit(1)
)


def make_repeat(session: Session, annotator_id: int, after: int) -> tuple[Row[Any], list[int]] | None:
    """A task that asks this annotator once more what they judged before, its one place taken.

    Args:
        after: so many of their newest assignments are too fresh to be asked again.

    Returns:
        The `claim.FACTS` of the task and the order to show it in, the reverse of the first time; None where nothing can
        be repeated.
    """
    session.flush()
    drawn = session.connection().execute(_DRAW, {"who": annotator_id, "after": after}).one_or_none()
    if drawn is None:
        return None
    source, why = f"repeat:{drawn.task_id}:{annotator_id}", "own work shown again"
    copy = copy_task(session, drawn.task_id, source=source, pool="repeat", why=why, taken=1)
    return None if copy is None else (copy, list(reversed(drawn.shown_order)))
