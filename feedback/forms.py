"""What an annotator sends, checked: the pairwise judgment in terms of left and right, as it was shown."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

Side = Literal["left", "right"]


def plain_text(text: str) -> str:
    """Text as it is stored: newlines as in Unix, no NUL (PostgreSQL refuses it), no half surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode()


class RuleVerdict(BaseModel):
    """One rule, judged on one of the two completions as shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule_version_id: int = Field(ge=1, le=2**31 - 1)
    side: Side
    verdict: Literal["broken", "kept", "unsure"] = "broken"
    span: str | None = Field(None, max_length=4_000, description="The words of the completion that show it.")


class Corrections(TypedDict, total=False):
    """Edited texts by side as shown."""

    left: str
    right: str


class PairwiseForm(BaseModel):
    """A pairwise judgment in terms of what the annotator saw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: Literal["left", "right", "tie", "both_bad"]
    strength: int | None = Field(None, ge=0, le=3, description="1 slightly … 3 much better; 0 for a tie or both bad.")
    rule_verdicts: list[RuleVerdict] = Field(default_factory=list, max_length=400)
    corrections: Corrections = Field(default_factory=Corrections)
    note: str | None = Field(None, max_length=10_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        preferred = self.choice in ("left", "right")
        if self.strength is None:
            object.__setattr__(self, "strength", 1 if preferred else 0)
        if preferred and self.strength == 0:
            raise ValueError("a preferred side needs a strength of 1, 2 or 3; send choice 'tie' for the same")
        if not preferred and self.strength:
            raise ValueError(f"choice {self.choice!r} has strength 0")
        judged = [(v.rule_version_id, v.side) for v in self.rule_verdicts]
        if len(judged) != len(set(judged)):
            raise ValueError("a rule is judged twice on the same side")
        return self
