"""What `/api/v1` takes and answers with, the schemas of its document: the frame of all, annotation, tasks and judgments."""

import datetime as dt
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.db import MAX_ID
from feedback.exchange.rows import Kind, MessageRow, Pool, TaskSpec

MAX_PAGE = 200


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


class Query(BaseModel):
    """A query."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Query):
    """Which part of a list: rows come by id, oldest first."""

    after: int = Field(0, ge=0, le=MAX_ID, description="Rows with larger ids; `next_after` of the page before.")
    limit: int = Field(50, ge=1, le=MAX_PAGE, description="At most so many rows.")


# Assignments ----------------------------------------------------------------------------------------------------------


class RuleShown(Answer):
    """The rule that a task is about."""

    version_id: int
    slug: str
    title: str
    text: str


class VerdictShown(Answer):
    """A verdict on a rule, of a judgment that is to be settled."""

    rule_version_id: int
    item: int | None
    verdict: str
    confidence: float | None
    span: str | None


class JudgmentShown(Answer):
    """A judgment that is to be settled, in terms of what is shown; what it says nothing of is left out."""

    choice: str | None = None
    strength: int | None = None
    rating: int | None = None
    aspects: dict[str, int] | None = None
    ranks: list[int] | None = None
    note: str | None = None
    rule_verdicts: list[VerdictShown]
    corrections: dict[str, str] = Field(description="Edited texts by item.")


class AssignmentShown(Answer):
    """A task as its annotator sees it."""

    token: str
    expires_at: dt.datetime
    kind: Kind
    why: str
    messages: list[dict[str, str]]
    completions: list[str] = Field(description="In the order to show them; a judgment speaks of them by it.")
    rule: RuleShown | None = None
    judgments: list[JudgmentShown] | None = Field(None, description="What is to be settled, for reviewers.")


class NextAnswer(Answer):
    """The caller's task, or null where nothing is left."""

    assignment: AssignmentShown | None


class JudgedAnswer(Answer):
    """What was stored, and the next task where it was asked for."""

    judgment_id: int
    surplus: bool = Field(description="It came when all places were taken; it is kept and not counted.")
    assignment: AssignmentShown | None = None
    why_none: str | None = Field(None, description="Why no next task could be given, where that was asked for.")


# Tasks ----------------------------------------------------------------------------------------------------------------


class TaskBody(TaskSpec):
    """A task to be made."""

    @model_validator(mode="after")
    def _not_of_our_making(self) -> "TaskBody":
        if self.pool in ("adjudication", "repeat"):
            raise ValueError(f"tasks in the pool {self.pool} are made by themselves, out of judgments")
        return self


class TaskQuery(Page):
    """Which tasks."""

    kind: Kind | None = None
    pool: Pool | None = None
    state: Literal["live", "done", "cancelled"] | None = None
    tenant: str | None = Field(None, max_length=60, description="Only of this tenant's conversations, by its key.")


class PriorityBody(Query):
    """A task's new priority."""

    priority: int = Field(
        ge=-(2**31) + 1, le=2**31 - 1, description="Within its pool, higher ones are handed out first."
    )


class TaskAnswer(Answer):
    """A task and how far it is."""

    id: int
    kind: Kind
    state: Literal["live", "done", "cancelled"]
    pool: Pool
    priority: int
    required_n: int = Field(description="Judgments wanted; of a task with a known answer, as many as there are people.")
    taken: int
    done: int
    category: str | None
    risky: bool
    why: str
    source: str
    prompt_id: int | None
    rule_version_id: int | None
    about_id: int | None
    created_at: dt.datetime


class CompletionAnswer(Answer):
    """A completion that a task asks about."""

    id: str
    text: str
    source: str
    policy_version_id: int | None


class GoldAnswer(Answer):
    """A known answer."""

    expected: dict[str, Any]
    explanation: str


class TaskDetail(TaskAnswer):
    """A task with its texts."""

    messages: list[MessageRow]
    completions: list[CompletionAnswer] = Field(description="In the order of the positions that judgments name.")
    gold: GoldAnswer | None
    tenant: str | None = Field(description="Key of the tenant whose conversation it is.")


class TaskPage(Answer):
    """A page of tasks."""

    data: list[TaskAnswer]
    next_after: int | None


# Judgments ------------------------------------------------------------------------------------------------------------


class JudgmentQuery(Page):
    """Which judgments."""

    kind: Kind | Literal["thumbs"] | None = None
    annotator: str | None = Field(None, max_length=120, pattern=r"^[^\x00]*$", description="A login.")
    simulated: bool = Field(False, description="Take those of programs too; they are marked.")


class FindingAnswer(Answer):
    """A verdict on a rule for a completion."""

    rule_version_id: int
    completion_id: str
    verdict: Literal["broken", "kept", "unsure"]
    confidence: float | None
    span: str | None


class CorrectionAnswer(Answer):
    """An edited completion."""

    completion_id: str
    text: str


class JudgmentAnswer(Answer):
    """One act of one annotator, in terms of positions: `a` is the first of a pair's completions, `b` the second."""

    id: int
    kind: Kind | Literal["thumbs"]
    task_id: int | None
    completion_id: str | None
    annotator: str | None
    choice: str | None
    strength: int | None
    rating: int | None
    thumbs: int | None
    answer: dict[str, Any] | None
    note: str | None
    findings: list[FindingAnswer]
    corrections: list[CorrectionAnswer]
    shown_order: list[int] | None
    latency_s: float | None
    simulated: bool
    surplus: bool
    imported: bool
    supersedes_id: int | None
    created_at: dt.datetime


class JudgmentPage(Answer):
    """A page of judgments."""

    data: list[JudgmentAnswer]
    next_after: int | None


class ExportQuery(Query):
    """What is exported."""

    simulated: bool = Field(False, description="Take simulated rows too; they are marked.")


class ExportRow(BaseModel):
    """A row of JSON a line; its fields are those of the form (docs/data.md)."""

    model_config = ConfigDict(extra="allow")
