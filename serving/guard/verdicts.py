"""What a check says of a text. No text of the message stands in a verdict's JSON unless it is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Side = Literal["input", "output"]
Outcome = Literal["clear", "hit", "not_scanned", "timed_out"]
GRAVITY: dict[Outcome, int] = {"clear": 0, "not_scanned": 1, "timed_out": 2, "hit": 3}
"""Which outcome stands for several."""


@dataclass(frozen=True)
class Verdict:
    """The word of one check on one text.

    Attributes:
        check: "secrets", "pii", "prompt_injection", "system_prompt_leak", "rules", …
        side: what a user sent, or what the policy wrote.
        outcome: "clear" only where the check has seen all of `upto`; what was not looked at is never clear.
        kind: what was hit ("aws_access_key", a rule's name); for a check that has several, which one this is of.
        rule_version_id: the words of the rule that was asked about.
        score, threshold: of checks that measure; a hit is at or above its threshold.
        latency_s: seconds that the check took, all its pieces together.
        upto: characters, from the text's beginning, that the check has cleared.
        start, end: where in the text the hit stands.
        quote: the characters of the hit.
    """

    check: str
    side: Side
    outcome: Outcome
    kind: str = ""
    rule_version_id: int | None = None
    score: float | None = None
    threshold: float | None = None
    latency_s: float = 0.0
    upto: int = 0
    start: int | None = None
    end: int | None = None
    quote: str = field(default="", repr=False)

    @property
    def key(self) -> tuple[str, Side, str, int | None]:
        """What tells verdicts of the same check of the same thing, on different pieces."""
        return (self.check, self.side, self.kind, self.rule_version_id)

    def as_json(self, *, with_text: bool = False) -> dict[str, Any]:
        """The verdict as JSON has it, without what is not known.

        Args:
            with_text: with the characters of the hit. They may be the very secret, so only for who may see it.
        """
        said = {
            "check": self.check,
            "side": self.side,
            "outcome": self.outcome,
            "kind": self.kind or None,
            "rule_version_id": self.rule_version_id,
            "score": None if self.score is None else round(self.score, 4),
            "threshold": self.threshold,
            "latency_s": round(self.latency_s, 6),
            "upto": self.upto,
            "start": self.start,
            "end": self.end,
            "quote": (self.quote or None) if with_text else None,
        }
        return {name: value for name, value in said.items() if value is not None}


def stops(verdict: Verdict, *, fail_closed: bool) -> bool:
    """Whether a text with this verdict may not go on: a hit always, a check without an answer if the guard fails closed."""
    return verdict.outcome == "hit" or (fail_closed and verdict.outcome != "clear")


def first_stop(verdicts: Iterable[Verdict], *, fail_closed: bool) -> Verdict | None:
    """The gravest verdict that stops a text: a hit before a time-out, that before what was not scanned; None if none does."""
    stopping = [verdict for verdict in verdicts if stops(verdict, fail_closed=fail_closed)]
    return max(stopping, key=lambda verdict: GRAVITY[verdict.outcome], default=None)


def merge(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """One verdict of each check, kind of a measuring check, and rule version, out of those on a text's pieces.

    The gravest outcome stays: a reply of which one piece was not scanned has not been scanned. Scores: the highest; latencies
    are summed; `upto` is the last one that was cleared.
    """
    merged: dict[tuple[str, Side, str, int | None], Verdict] = {}
    for verdict in verdicts:
        known = merged.get(verdict.key)
        if known is None:
            merged[verdict.key] = verdict
            continue
        graver = verdict if GRAVITY[verdict.outcome] > GRAVITY[known.outcome] else known
        scores = [v.score for v in (known, verdict) if v.score is not None]
        merged[verdict.key] = replace(
            graver,
            score=max(scores, default=None),
            latency_s=known.latency_s + verdict.latency_s,
            upto=max(known.upto, verdict.upto) if graver.outcome == "clear" else graver.upto,
        )
    return list(merged.values())
