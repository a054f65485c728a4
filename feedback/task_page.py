"""What the pairwise page shows, and how its fields become a judgment and back.

In: an assignment and the fields typed so far. Out: a `TaskPage` for the template; a `PairwiseForm` for the store.
Fields are lists of strings by name, the shape of a posted form and of a draft alike: `scale` (1 … 7 or both_bad),
`broken-left`, `broken-right` (rule version ids), `span-left-7`, `correction-left`, `correction-right`, `note`.
"""

import datetime as dt
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db import utcnow
from core.errors import InvalidInput
from feedback.forms import PairwiseForm
from feedback.models import Assignment, Correction, Judgment, RuleJudgment, RuleVersion, Task
from feedback.rules import active_rules

Fields = Mapping[str, list[str]]

SCALE: dict[str, tuple[str, int]] = {
    "1": ("left", 3),
    "2": ("left", 2),
    "3": ("left", 1),
    "4": ("tie", 0),
    "5": ("right", 1),
    "6": ("right", 2),
    "7": ("right", 3),
    "both_bad": ("both_bad", 0),
}
SIDES = ("left", "right")
_NOT_KEPT = {"csrf_token", "once", "shown_at", "supersedes"}


@dataclass(frozen=True)
class Progress:
    """How far the queue and the annotator are; counts of tasks and of the annotator's judgments since midnight UTC."""

    done: int
    total: int
    today: int


@dataclass(frozen=True)
class Reply:
    """One completion as shown, with what is typed about it."""

    side: str
    letter: str
    text: str
    correction: str
    broken: dict[str, str]  # rule version id → quoted words


@dataclass(frozen=True)
class TaskPage:
    """Everything that the template of a pairwise task shows. No policy's name is in it."""

    token: str
    messages: list[dict[str, str]]
    replies: list[Reply]
    rules: list[RuleVersion]
    scale: str
    note: str
    risky: bool
    why: str
    once: str
    shown_at: float
    supersedes_id: int | None


def build_page(session: Session, assignment: Assignment, fields: Fields, last: Judgment | None = None) -> TaskPage:
    """The page of an assignment, filled in with `fields`; with `last`, the page that judges it again."""
    task = session.get_one(Task, assignment.task_id)
    replies = [
        Reply(
            side=side,
            letter=letter,
            text=text,
            correction=_first(fields, f"correction-{side}") or text,
            broken={number: _first(fields, f"span-{side}-{number}") for number in _all(fields, f"broken-{side}")},
        )
        for side, letter, text in zip(SIDES, "AB", shown_texts(assignment), strict=True)
    ]
    return TaskPage(
        token=assignment.lease_token,
        messages=task.prompt.messages,
        replies=replies,
        rules=active_rules(session),
        scale=_first(fields, "scale"),
        note=_first(fields, "note"),
        risky=bool(task.prompt.harmful),
        why=task.why,
        once=secrets.token_hex(12),
        shown_at=time.time(),
        supersedes_id=None if last is None else last.id,
    )


def shown_texts(assignment: Assignment) -> list[str]:
    """The two completions of a pairwise task, left and right as they are shown."""
    texts = [assignment.task.completion_a.text, assignment.task.completion_b.text]
    return texts if assignment.left_is_a else texts[::-1]


def form_of(fields: Fields) -> PairwiseForm:
    """The judgment that the fields say.

    Raises:
        InvalidInput: nothing was chosen, or a field cannot be read.
    """
    scale = _first(fields, "scale")
    if scale not in SCALE:
        raise InvalidInput("choose which reply is better (keys 1 to 7), or that both are bad (x)", param="scale")
    choice, strength = SCALE[scale]
    verdicts = [
        {"rule_version_id": number, "side": side, "verdict": "broken", "span": _first(fields, f"span-{side}-{number}")}
        for side in SIDES
        for number in dict.fromkeys(_all(fields, f"broken-{side}"))
    ]
    corrections = {side: text for side in SIDES if (text := _first(fields, f"correction-{side}"))}
    try:
        return PairwiseForm.model_validate(
            {
                "choice": choice,
                "strength": strength,
                "rule_verdicts": [{**v, "span": v["span"] or None} for v in verdicts],
                "corrections": corrections,
                "note": _first(fields, "note") or None,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{where}: {first['msg']}", param=where) from error


def fields_of(session: Session, judgment: Judgment, assignment: Assignment) -> dict[str, list[str]]:
    """The fields that led to a judgment, in the order that was shown: the inverse of `form_of`."""
    task = session.get_one(Task, assignment.task_id)
    a_side, b_side = SIDES if assignment.left_is_a else reversed(SIDES)
    side_of = {task.completion_a_id: a_side, task.completion_b_id: b_side}
    choice = {"a": a_side, "b": b_side}.get(str(judgment.choice), str(judgment.choice))
    scale = next(key for key, said in SCALE.items() if said == (choice, judgment.strength))
    fields: dict[str, list[str]] = {"scale": [scale], "note": [judgment.note or ""]}
    for verdict in session.scalars(select(RuleJudgment).where(RuleJudgment.judgment_id == judgment.id)):
        if verdict.verdict == "broken":
            side, number = side_of[verdict.completion_id], str(verdict.rule_version_id)
            fields.setdefault(f"broken-{side}", []).append(number)
            fields[f"span-{side}-{number}"] = [verdict.span or ""]
    for correction in session.scalars(select(Correction).where(Correction.judgment_id == judgment.id)):
        fields[f"correction-{side_of[correction.completion_id]}"] = [correction.text]
    return fields


def kept_fields(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """What of a posted form or of a draft is worth keeping: lists of strings, without tokens."""
    return {name: _all(fields, name) for name in fields if name not in _NOT_KEPT}


def progress_of(session: Session, annotator_id: int) -> Progress:
    """Counts for the page's head."""
    states = dict(iter(session.execute(select(Task.state, func.count()).group_by(Task.state))))
    midnight = dt.datetime.combine(utcnow().date(), dt.time(), dt.UTC)
    today = session.scalar(
        select(func.count(Judgment.id)).where(
            Judgment.annotator_id == annotator_id,
            Judgment.created_at >= midnight,
            Judgment.kind == "pairwise",
            Judgment.supersedes_id.is_(None),
        )
    )
    done = states.get("done", 0)
    return Progress(done=done, total=done + states.get("live", 0), today=today or 0)


def _all(fields: Mapping[str, Any], name: str) -> list[str]:
    values = fields.get(name)
    if isinstance(values, str):
        return [values]
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _first(fields: Mapping[str, Any], name: str) -> str:
    return next(iter(_all(fields, name)), "")
