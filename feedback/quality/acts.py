"""Which judgments count, and those of tasks that several people judged.

Counted are standing judgments of tasks: not superseded, not surplus, not simulated unless asked for. Known answers,
repeats and what reviewers settle are apart: they measure annotators, or are not independent of the others.
"""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, func, select
from sqlalchemy.orm import Session, aliased

from feedback.models import Assignment, Judgment, Rule, RuleJudgment, RuleVersion, Task

APART = ("gold", "repeat", "adjudication")


@dataclass(frozen=True)
class Window:
    """Which judgments a figure is about.

    `tasks` bounds the work: of tasks that several people judged, so many of the newest are looked at.
    """

    since: dt.datetime | None = None
    simulated: bool = False
    tasks: int = 2000


@dataclass
class Act:
    """One person's judgment of a task that others judged too."""

    task_id: int
    annotator_id: int
    at: dt.datetime
    choice: str | None = None
    strength: int | None = None
    rating: int | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    verdict: str | None = None
    rule: str | None = None
    left: int = 0  # the position that was shown first

    @property
    def signed(self) -> int | None:
        """Strength in -3 … 3, negative for the first position; None for "both bad", which has no place on that line."""
        sign = {"a": -1, "b": 1, "tie": 0}.get(self.choice or "")
        return None if sign is None else sign * (self.strength or 0)


def counts(judgment: Any, window: Window) -> ColumnElement[bool]:
    """The condition that a judgment (the class, or an alias of it) counts."""
    later = aliased(Judgment)
    found: ColumnElement[bool] = (
        ~judgment.surplus & ~exists().where(later.supersedes_id == judgment.id) & judgment.annotator_id.is_not(None)
    )
    if not window.simulated:
        found &= ~judgment.simulated
    if window.since is not None:
        found &= judgment.created_at >= window.since
    return found


def overlapping(kind: str, window: Window) -> Select[int]:
    """Ids of the newest tasks of a kind that two people or more judged."""
    counted = select(Judgment.id).where(Judgment.task_id == Task.id, counts(Judgment, window))
    return (
        select(Task.id)
        .where(Task.kind == kind, Task.pool.not_in(APART), Task.done >= 2, counted.exists())
        .order_by(Task.id.desc())
        .limit(window.tasks)
    )


def load_acts(session: Session, kind: str, window: Window) -> list[Act]:
    """What people said of the tasks of `overlapping`, by task and then by time; one person's act is there once."""
    query = (
        select(
            Judgment.task_id, Judgment.annotator_id, Judgment.created_at, Judgment.choice, Judgment.strength,
            Judgment.rating, Judgment.answer, Assignment.shown_order,
        )
        .join(Assignment, Assignment.id == Judgment.assignment_id)
        .where(Judgment.task_id.in_(overlapping(kind, window)), counts(Judgment, window))
        .order_by(Judgment.task_id, Judgment.id)
    )  # fmt: skip
    if kind == "rule_check":
        query = (
            query.add_columns(RuleJudgment.verdict, Rule.slug)
            .join(RuleJudgment, RuleJudgment.judgment_id == Judgment.id)
            .join(RuleVersion, RuleVersion.id == RuleJudgment.rule_version_id)
            .join(Rule, Rule.id == RuleVersion.rule_id)
        )
    return [
        Act(
            row.task_id, row.annotator_id, row.created_at, row.choice, row.strength, row.rating, row.answer or {},
            left=row.shown_order[0] if row.shown_order else 0,
            verdict=row.verdict if kind == "rule_check" else None, rule=row.slug if kind == "rule_check" else None,
        )
        for row in session.execute(query)
    ]  # fmt: skip


def left_out(session: Session, window: Window) -> int:
    """How many judgments of tasks are simulated and therefore not counted; 0 where they are asked for."""
    if window.simulated:
        return 0
    query = select(func.count(Judgment.id)).where(Judgment.simulated, Judgment.task_id.is_not(None))
    if window.since is not None:
        query = query.where(Judgment.created_at >= window.since)
    return session.scalar(query) or 0
