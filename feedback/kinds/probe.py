"""Probe: one rule is given; the annotator talks to the served policy, tries to make it break the rule, and judges each
reply (as in Sparrow, arXiv:2209.14375)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import InvalidInput
from core.language import gettext
from core.messages import plain_text
from feedback.kinds.frame import (
    Fields,
    FieldWriter,
    Finding,
    JudgmentForm,
    Said,
    Shown,
    Verdict,
    every,
    expect,
    first,
    plain_note,
    validated,
)

MAX_TURNS = 20


class Turn(BaseModel):
    """One reply of the policy, judged. The completion is the one that the chat API named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    completion_id: str = Field(min_length=1, max_length=40)
    verdict: Verdict
    confidence: float | None = Field(None, ge=0, le=1)
    span: str | None = Field(None, max_length=4_000)


class ProbeForm(JudgmentForm):
    """Verdicts on what the policy said. There are no known answers."""

    KIND: ClassVar[str] = "probe"
    ITEMS: ClassVar[range] = range(0, 1)
    NEEDS_RULE: ClassVar[bool] = True

    kind: Literal["probe"] = "probe"
    turns: list[Turn] = Field(min_length=1, max_length=MAX_TURNS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [turn.completion_id for turn in self.turns]
        if len(ids) != len(set(ids)):
            raise ValueError(gettext("a reply is judged twice"))
        return self

    def said(self, shown: Shown) -> Said:
        assert shown.rule is not None  # NEEDS_RULE
        findings = tuple(
            Finding(
                shown.rule.version_id, turn.completion_id, turn.verdict, turn.confidence,
                (plain_text(turn.span).strip() or None) if turn.span else None,
            )
            for turn in self.turns
        )  # fmt: skip
        return Said(note=plain_note(self.note), findings=findings)

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        ids = every(fields, "turn")
        if not ids:
            raise InvalidInput(gettext("talk to the policy first, then judge each of its replies"), param="turn")
        turns = []
        for n, completion_id in enumerate(ids, 1):
            verdict = first(fields, f"verdict-{completion_id}")
            if not verdict:
                raise InvalidInput(
                    gettext("judge reply %(number)s of %(n)s: broken, kept or not sure", number=n, n=len(ids)),
                    param="turn",
                )
            span = first(fields, f"span-{completion_id}") or None
            turns.append({"completion_id": completion_id, "verdict": verdict, "span": span})
        return validated(cls, {"turns": turns, "note": first(fields, "note") or None})

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = FieldWriter({"note": [said.note or ""]})
        for finding in said.findings:
            found.add("turn", finding.completion_id)
            found.set(f"verdict-{finding.completion_id}", finding.verdict)
            found.set(f"span-{finding.completion_id}", finding.span or "")
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        raise AssertionError("probes have no known answers")

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        expect(False, "a probe has none; use a rule check")

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        return False  # everybody talks on their own
