"""Own work shown again, its sides the other way round: does somebody say the same twice, and what does the side do to it?"""

import random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, join, select
from sqlalchemy.orm import Session

from core.db import table_of
from feedback.assignment.claim import is_wanted
from feedback.models import Assignment, Task
from feedback.tasks import copy_task

LOOK_BACK = 200
"""Own assignments that a repeat is drawn from, the newest ones that are old enough."""

REPEATED = ("pairwise", "ranking", "rating", "rule_check")

TRIES = 8
"""Pieces of own work that are drawn before it is given up, because they were shown again already: all of somebody who did few."""

_ASSIGNMENT, _TASK = table_of(Assignment), table_of(Task)
_MINE = _ASSIGNMENT.c.annotator_id == bindparam("who")
_BY_TASK = join(_ASSIGNMENT, _TASK, _TASK.c.id == _ASSIGNMENT.c.task_id)
_DONE = (
    select(
        _ASSIGNMENT.c.task_id, _ASSIGNMENT.c.shown_order, _TASK.c.pool, _TASK.c.kind, _TASK.c.category, _TASK.c.risky
    )
    .select_from(_BY_TASK)
    .where(_MINE, _ASSIGNMENT.c.state.in_(("done", "surplus")), _TASK.c.kind.in_(REPEATED), _TASK.c.pool != "gold")
    .order_by(_ASSIGNMENT.c.id.desc())
    .limit(LOOK_BACK)
    .offset(bindparam("after"))
)  # fmt: skip
_ASKED = (  # in whatever state: one that was skipped, or is still at hand, was asked too
    select(_TASK.c.id)
    .select_from(_BY_TASK)
    .where(_TASK.c.about_id == bindparam("of_task"), _TASK.c.pool == "repeat", _MINE)
    .limit(1)
)


def make_repeat(
    session: Session, annotator_id: int, after: int, *, opted_out: Sequence[str] = (), calm: bool = False
) -> tuple[Row[Any], list[int]] | None:
    """A task that asks this annotator once more what they judged before, its one place taken.

    Args:
        after: so many of their newest assignments are too fresh to be asked again.
        opted_out, calm: what is not asked again; see `claim.take_next`.

    Returns:
        The `claim.FACTS` of the task and the order to show it in, the reverse of the first time; None where nothing can
        be repeated.
    """
    session.flush()
    connection = session.connection()
    rows = connection.execute(_DONE, {"who": annotator_id, "after": after}).all()
    done = [row for row in rows if row.pool != "repeat" and is_wanted(row, opted_out, calm=calm)]
    for drawn in random.sample(done, min(TRIES, len(done))):
        if connection.scalar(_ASKED, {"who": annotator_id, "of_task": drawn.task_id}) is None:
            source, why = f"repeat:{drawn.task_id}:{annotator_id}", "own work shown again"
            copy = copy_task(session, drawn.task_id, source=source, pool="repeat", why=why, taken=1)
            return None if copy is None else (copy, list(reversed(drawn.shown_order)))
    return None
