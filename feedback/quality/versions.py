"""Which of two policy versions people prefer, by the pairs that set their answers side by side (`finetune.compare`)."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Subquery, func, select
from sqlalchemy.orm import Session

from core.language import N_
from feedback.models import Completion, Judgment, Task, TaskItem
from feedback.quality.acts import Window, counts
from feedback.quality.estimate import Estimate, share

NOTHING = N_("nobody has preferred either yet")


@dataclass(frozen=True)
class Compared:
    """What people say of a policy version beside an older one, by their ids."""

    newer_id: int
    older_id: int
    preferred: Estimate  # share for the newer one of the judgments that prefer either
    ties: int
    both_bad: int
    waiting: int  # tasks


def compared(session: Session, window: Window) -> list[Compared]:
    """All pairs of versions that were compared, the newest first; tasks that wait are counted whenever they were made."""
    said: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    judged = _pairs(Judgment.choice).join(Judgment, Judgment.task_id == Task.id).where(counts(Judgment, window))
    for a, b, choice, n in session.execute(judged.group_by(Judgment.choice)):
        newer = {"a": a > b, "b": b > a}.get(choice)
        word = choice if newer is None else "newer" if newer else "older"
        said[max(a, b), min(a, b)][word] += n
    for a, b, state, n in session.execute(_pairs(Task.state).where(Task.state == "live").group_by(Task.state)):
        said[max(a, b), min(a, b)][state] += n
    return [
        Compared(
            *pair, share(each["newer"], each["newer"] + each["older"], NOTHING), each["tie"], each["both_bad"],
            each["live"],
        )
        for pair, each in sorted(said.items(), reverse=True)
    ]  # fmt: skip


def _pairs(what: Any) -> Select[int, int, str, int]:
    """The versions behind each pair of the pool `canary`, `what`, and how many there are."""
    a, b = _wrote(0), _wrote(1)
    found: Select[int, int, str, int] = (
        select(a.c.version, b.c.version, what, func.count())
        .select_from(Task)
        .join(a, a.c.task_id == Task.id)
        .join(b, b.c.task_id == Task.id)
        .where(Task.pool == "canary", Task.kind == "pairwise", a.c.version != b.c.version)
        .group_by(a.c.version, b.c.version)
    )
    return found


def _wrote(position: int) -> Subquery:
    """Which version wrote the completion in this position of a task."""
    return (
        select(TaskItem.task_id, Completion.policy_version_id.label("version"))
        .join(Completion, Completion.id == TaskItem.completion_id)
        .where(TaskItem.position == position, Completion.policy_version_id.is_not(None))
        .subquery()
    )
