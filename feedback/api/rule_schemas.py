"""What `/api/v1/rules` takes and answers with. What may be written is what `feedback.rules.words` says."""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field

from core.db import MAX_ID
from core.openapi import Problem
from feedback.api.schemas import Answer, Query
from feedback.rules.words import Note, RuleEdit, RuleWords

Version = Annotated[int, Field(ge=1, le=MAX_ID)]


class RuleExample(Answer):
    """A conversation in which a rule is kept, or broken."""

    text: str
    reason: str = ""


class RuleVersionAnswer(Answer):
    """What a rule says, from one edit to the next."""

    id: int = Field(description="What judgments name it by.")
    slug: str
    tenant: str | None = Field(description="Key of the tenant whose completions alone it is for.")
    version: int
    title: str
    category: str
    text: str
    refusal_text: str
    kept_examples: list[RuleExample]
    broken_examples: list[RuleExample]
    severity: int = Field(description="1 low … 3 high.")
    active: bool
    note: str = Field(description="What was changed, and why.")
    author: str | None = Field(description="Who made this version; null for the starter set.")
    created_at: dt.datetime


class RuleQuery(Query):
    """Which rules."""

    active: bool | None = Field(None, description="Only those whose newest version is in force, or is not.")


class RuleList(Answer):
    """Rules in their newest version."""

    data: list[RuleVersionAnswer]


class RuleAnswer(Answer):
    """A rule in all its versions, the newest first."""

    slug: str
    versions: list[RuleVersionAnswer]


class RuleBody(RuleWords):
    """A rule to be made."""

    note: Note = ""
    tenant: str | None = Field(
        None, max_length=60, description="Key of the tenant whose completions alone it is to be for."
    )

    def words(self) -> RuleWords:
        """What it says, without the note and the tenant."""
        return RuleWords.model_construct(**{name: getattr(self, name) for name in RuleWords.model_fields})


class RuleEditBody(RuleEdit):
    """A version to be made; what is left out stays as it is in `base`."""

    base: Version = Field(description="Number of the version that it is made from.")
    note: Note = Field(description="What is changed, and why; not empty.")


class RuleSwitchBody(Query):
    """A rule to be retired or restored."""

    base: Version = Field(description="Number of the version that was looked at.")
    note: Note = Field(description="Why; not empty.")


class RuleConflict(Problem):
    """An error (RFC 9457). Where somebody else was faster, `type` is `urn:dunnock:edit_conflict`, with two numbers."""

    base: int | None = Field(None, description="The version that the change was made from.")
    newest: int | None = Field(None, description="The version that is current now.")


class RuleDiffQuery(Query):
    """Which two versions."""

    first: Version = Field(alias="from", description="Number of a version.")
    second: Version = Field(alias="to", description="Number of another one, older or newer.")


class DiffRun(Answer):
    """Words that stand in both texts, or in one of them."""

    kind: Literal["same", "del", "ins"]
    text: str


class RuleFieldChange(Answer):
    """A field that differs."""

    name: str
    before: Any
    after: Any
    diffs: list[list[DiffRun]] = Field(description="Word by word: of a text, or of each example that differs.")


class RuleDiff(Answer):
    """What differs between two versions."""

    slug: str
    first: int = Field(alias="from")
    second: int = Field(alias="to")
    changes: list[RuleFieldChange]
