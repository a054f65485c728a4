"""Our own form of a task with its judgments: one JSON object. Everything that comes in becomes this first.

A judgment is told as its kind's form tells it (`feedback.kinds`), of completions in the order in which the row has them, with
rules by name: `"rule": "violence"` is its newest version here, `"rule": "violence@2"` a certain one.
"""

import datetime as dt
import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.errors import ImportRowError
from core.messages import Message, plain_text
from feedback.kinds import form_of

Kind = Literal["pairwise", "ranking", "rating", "rule_check", "correction", "probe"]
Pool = Literal["adjudication", "canary", "flagged", "informative", "uniform", "gold", "repeat"]

MAX_TEXT_CHARS = 100_000
MAX_REQUIRED_N = 1000
MAX_PRIORITY = 2**31 - 1


class Row(BaseModel):
    """An object of the file; what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MessageRow(Message):
    """One turn of a conversation, in text that both databases hold."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    content: str = Field(max_length=MAX_TEXT_CHARS)

    @field_validator("content")
    @classmethod
    def _plain(cls, content: str) -> str:
        return plain_text(content)


class TaskSpec(Row):
    """What is asked, of whom, how often."""

    kind: Kind
    messages: list[MessageRow] = Field(
        default_factory=list, max_length=200, description="The conversation up to the completions; empty for a probe."
    )
    completions: list[str] = Field(
        default_factory=list, max_length=6, description="What is judged; two for pairwise, 3 to 6 for ranking."
    )
    rule: str | None = Field(None, max_length=80, description="Rule check and probe: `slug`, or `slug@version`.")
    gold: dict[str, Any] | None = Field(
        None, description='The known answer, by kind: {"choice": ["a"]}, {"best": [0]}, {"rating": [4, 5]}, …'
    )
    explanation: str = Field("", max_length=10_000, description="Why the known answer is right.")
    category: str | None = Field(None, max_length=60, description="The topic, that annotators can opt out of.")
    harmful: bool | None = Field(None, description="Whether the request is harmful; such tasks are blurred first.")
    pool: Pool = Field("uniform", description="Where it waits; a task with a known answer waits in `gold`.")
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="Within a pool, higher ones come first.")
    required_n: int = Field(1, ge=1, le=MAX_REQUIRED_N, description="How many people are to judge it.")
    why: str = Field("imported", min_length=1, max_length=60, description="Why it was chosen, for the annotator.")
    source: str | None = Field(
        None, max_length=200, description="Your name of it; without one, equal contents are one task."
    )
    tenant: str | None = Field(None, max_length=60, description="Key of the tenant whose conversation it is.")

    @field_validator("completions")
    @classmethod
    def _texts(cls, texts: list[str]) -> list[str]:
        plain = [plain_text(text) for text in texts]
        for text in plain:
            if not text.strip():
                raise ValueError("a completion is empty")
            if len(text) > MAX_TEXT_CHARS:
                raise ValueError(f"a completion has {len(text)} characters; at most {MAX_TEXT_CHARS} are taken")
        return plain

    @field_validator("explanation", "category", "why", "source", "tenant")
    @classmethod
    def _plain(cls, text: str | None) -> str | None:
        return None if text is None else plain_text(text)

    @model_validator(mode="after")
    def _fits(self) -> "TaskSpec":
        form = form_of(self.kind)
        if len(self.completions) not in form.ITEMS:
            wanted = f"{form.ITEMS.start} to {form.ITEMS.stop - 1}" if len(form.ITEMS) > 1 else str(form.ITEMS.start)
            raise ValueError(f"{len(self.completions)} completions; a {self.kind} task has {wanted}")
        if len({text.strip() for text in self.completions}) < len(self.completions):
            raise ValueError("two completions are the same text; there is nothing to choose between them")
        if form.ITEMS.stop > 1 and not (self.messages and self.messages[-1].role == "user"):
            raise ValueError("messages must end with a user turn")
        if self.messages and not self.messages[-1].content.strip():
            raise ValueError("the last turn is empty")
        if form.ITEMS.stop == 1 and self.messages:
            raise ValueError("a probe begins without a conversation")
        if form.ITEMS.stop == 1 and self.tenant:
            raise ValueError("a probe begins without a conversation, so it is no tenant's")
        if (self.rule is not None) != form.NEEDS_RULE:
            raise ValueError(f"a {self.kind} task {'needs a' if form.NEEDS_RULE else 'is about no'} rule")
        if (self.gold is not None) != (self.pool == "gold"):
            if self.gold is None:
                raise ValueError("the pool gold is for tasks with a known answer; give `gold`")
            if self.pool != "uniform":
                raise ValueError("a task with a known answer waits in the pool gold")
            object.__setattr__(self, "pool", "gold")
        return self

    def key(self, source: str | None) -> str:
        """Identity of this content under a name of its sender's: equal ones are one task, however often they come."""
        said = [
            self.kind, [[turn.role, turn.content] for turn in self.messages], self.completions, self.rule, self.gold,
            source, *([self.tenant] if self.tenant else []),
        ]  # fmt: skip
        text = json.dumps(said, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()  # `gold` may hold half a surrogate
        return f"import:{digest[:40]}"


class Reply(Row):
    """A reply of the policy that a probe judged: the conversation before it, and its text."""

    messages: list[MessageRow] = Field(min_length=1, max_length=200)
    text: str = Field(max_length=MAX_TEXT_CHARS)


class JudgmentRow(Row):
    """What one person said. A second judgment of the same person stands in place of the first."""

    annotator: str = Field(min_length=1, max_length=100)
    judgment: dict[str, Any] = Field(description="The kind's form, of completions in the order of the row.")
    shown_order: list[int] | None = Field(None, max_length=6, description="Positions as they were shown, if known.")
    replies: dict[str, Reply] = Field(
        default_factory=dict, description="Of a probe: what its completion ids stand for."
    )
    simulated: bool = Field(
        False, description="A program said it: kept apart, and left out of training unless asked for."
    )
    latency_s: float | None = Field(None, ge=0, le=1e9)
    created_at: dt.datetime | None = None

    @field_validator("annotator")
    @classmethod
    def _printable(cls, name: str) -> str:
        name = name.strip()
        if not name or not name.isprintable():
            raise ValueError("a name has printable characters")
        return name

    @field_validator("created_at")
    @classmethod
    def _with_zone(cls, at: dt.datetime | None) -> dt.datetime | None:
        try:
            return at if at is None else (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
        except OverflowError as error:
            raise ValueError("a moment that no calendar has in UTC") from error


class TaskRow(TaskSpec):
    """A task as it is exchanged, with what was said about it."""

    about: str | None = Field(
        None, max_length=200, description="`source` of the task that is settled (adjudication) or shown again (repeat)."
    )
    judgments: list[JudgmentRow] = Field(default_factory=list, max_length=10_000)

    @model_validator(mode="after")
    def _has_its_like(self) -> "TaskRow":
        if (self.about is not None) != (self.pool in ("adjudication", "repeat")):
            raise ValueError("`about` goes with the pools adjudication and repeat, and they need it")
        return self


def read_row(value: Any, line: int) -> TaskRow:
    """A row of a file as a task.

    Raises:
        ImportRowError: the first thing that is wrong with it.
    """
    if isinstance(value, ImportRowError):
        raise value
    if not isinstance(value, dict):
        raise ImportRowError(line, f"is a {type(value).__name__}; expected an object")
    try:
        return TaskRow.model_validate(value)
    except ValidationError as error:
        raise ImportRowError(line, first_wrong(error)) from error


def first_wrong(error: ValidationError) -> str:
    """The first thing that a validation found, in one sentence."""
    wrong = error.errors()[0]
    where = ".".join(str(part) for part in wrong["loc"])
    said = wrong["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return f"{where}: {said}" if where else said
