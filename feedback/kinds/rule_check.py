"""Rule check: does one completion break one rule, how sure is that, and which words show it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from core.errors import InvalidInput
from core.language import gettext
from feedback.kinds.frame import (
    Fields,
    FieldWriter,
    Finding,
    JudgmentForm,
    Said,
    Shown,
    Verdict,
    expect,
    first,
    plain_note,
    quoted,
    validated,
)

CONFIDENCE = {"1": 0.6, "2": 0.8, "3": 0.95}
"""What the page's three words for how sure one is stand for: the probability of being right."""


class RuleCheckForm(JudgmentForm):
    """A verdict on the task's rule. Known answers: `{"verdict": ["broken"]}`, all that are right."""

    KIND: ClassVar[str] = "rule_check"
    ITEMS: ClassVar[range] = range(1, 2)
    NEEDS_RULE: ClassVar[bool] = True

    kind: Literal["rule_check"] = "rule_check"
    verdict: Verdict
    confidence: float | None = Field(None, ge=0, le=1, description="Probability that the verdict is right.")
    span: str | None = Field(None, max_length=4_000, description="The words of the completion that show it.")

    def said(self, shown: Shown) -> Said:
        assert shown.rule is not None  # NEEDS_RULE
        span = quoted(self.span, shown.items[0].blind)
        finding = Finding(shown.rule.version_id, shown.items[0].completion_id, self.verdict, self.confidence, span)
        return Said(note=plain_note(self.note), findings=(finding,))

    @classmethod
    def from_fields(cls, fields: Fields, shown: Shown) -> Self:
        verdict = first(fields, "verdict")
        if not verdict:
            raise InvalidInput(
                gettext("say whether the rule is broken (b), kept (k), or that you are not sure (u)"), param="verdict"
            )
        confidence = first(fields, "confidence")
        if confidence and confidence not in CONFIDENCE:
            raise InvalidInput(
                gettext("confidence is %(confidence)r; it is 1, 2 or 3", confidence=confidence), param="confidence"
            )
        return validated(
            cls,
            {
                "verdict": verdict, "confidence": CONFIDENCE.get(confidence), "span": first(fields, "span") or None,
                "note": first(fields, "note") or None,
            },
        )  # fmt: skip

    @classmethod
    def to_fields(cls, said: Said, shown: Shown) -> dict[str, list[str]]:
        found = FieldWriter({"note": [said.note or ""]})
        finding = said.findings[0]
        found.set("verdict", finding.verdict)
        found.set("span", shown.items[0].blind.hide(finding.span or ""))
        if finding.confidence is not None:
            found.set("confidence", min(CONFIDENCE, key=lambda key: abs(CONFIDENCE[key] - (finding.confidence or 0))))
        return found.fields

    @classmethod
    def passes(cls, said: Said, expected: Mapping[str, Any]) -> bool:
        return said.findings[0].verdict in expected["verdict"]

    @classmethod
    def check_expected(cls, expected: Mapping[str, Any], n: int) -> None:
        right = expected.get("verdict")
        known = isinstance(right, list) and right and set(right) <= {"broken", "kept", "unsure"}
        expect(bool(known) and len(expected) == 1, 'give {"verdict": [one or more of "broken", "kept", "unsure"]}')

    @classmethod
    def disagree(cls, acts: Sequence[Said]) -> bool:
        return {"broken", "kept"} <= {finding.verdict for said in acts for finding in said.findings}
