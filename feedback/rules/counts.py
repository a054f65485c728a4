"""How often people found a rule broken or kept: counts of verdicts, and the rate where one can be told.

What counts is what people said last: simulated, superseded and surplus judgments do not. Someone who compares two
completions marks only what is broken, so those marks are counted but say nothing of how often the rule is kept; the rate
rests on judgments that ask for a verdict either way.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from core.intervals import rate
from feedback.models import Judgment, RuleJudgment, RuleVersion

MARKING_KINDS = ("pairwise", "ranking", "rating", "correction")
"""Kinds of judgments in which a rule that is not marked got no verdict."""


@dataclass(frozen=True)
class VerdictCounts:
    """Verdicts on one rule, or on one version of it."""

    marked: int = 0  # as broken, while comparing completions
    broken: int = 0  # these three where a verdict was asked for
    kept: int = 0
    unsure: int = 0

    @property
    def broken_rate(self) -> dict[str, Any]:
        """`{rate, n, low, high}` of broken among broken and kept, with the 95 % Wilson interval."""
        return rate(self.broken, self.broken + self.kept)


NONE = VerdictCounts()


def counts_by_rule(session: Session, rule_ids: Iterable[int]) -> dict[int, VerdictCounts]:
    """Counts over all versions of each rule; a rule without verdicts is left out."""
    return _counts(session, RuleVersion.rule_id, RuleVersion.rule_id.in_(list(rule_ids)))


def counts_by_version(session: Session, version_ids: Iterable[int]) -> dict[int, VerdictCounts]:
    """Counts of each version, by its id; a version without verdicts is left out."""
    return _counts(session, RuleVersion.id, RuleVersion.id.in_(list(version_ids)))


def _counts(session: Session, key: Any, which: ColumnElement[bool]) -> dict[int, VerdictCounts]:
    later = aliased(Judgment)
    marking = Judgment.kind.in_(MARKING_KINDS).label("marking")
    query = (
        select(key, RuleJudgment.verdict, marking, func.count())
        .join(RuleJudgment, RuleJudgment.rule_version_id == RuleVersion.id)
        .join(Judgment, Judgment.id == RuleJudgment.judgment_id)
        .where(
            which,
            Judgment.simulated.is_(False),
            Judgment.surplus.is_(False),
            ~select(later.id).where(later.supersedes_id == Judgment.id).exists(),
        )
        .group_by(key, RuleJudgment.verdict, marking)
    )
    found: dict[int, dict[str, int]] = {}
    for of, verdict, marked, n in session.execute(query):
        if not marked:
            found.setdefault(of, {})[verdict] = n
        elif verdict == "broken":
            found.setdefault(of, {})["marked"] = n
    return {of: VerdictCounts(**counts) for of, counts in found.items()}
