"""From verdicts to examples for a rule reward model: how likely a completion breaks a rule, all who judged it heard.

One example per completion and rule version. Its target is P(broken | verdicts) by Dawid and Skene 1979, from the matrices
that `feedback.quality.consensus` found; where there are too few shared verdicts for that, each verdict is taken to be right
with probability `ASSUMED`. "Unsure" is no verdict, and a mark beside a pair is one like any other.
"""

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from feedback.models import Completion, Judgment, RuleJudgment, RuleVersion
from feedback.quality.consensus import Verdicts
from feedback.quality.reliability import DIGITS, JudgmentWeights

ASSUMED = 0.9
"""How often a verdict is right where nothing is known of anybody."""

NOBODY_KNOWN = Verdicts(
    {"broken": 0.5, "kept": 0.5},
    {0: {"broken": {"broken": ASSUMED, "kept": 1 - ASSUMED}, "kept": {"broken": 1 - ASSUMED, "kept": ASSUMED}}},
)


@dataclass(frozen=True)
class RuleExample:
    """A completion, a rule's words, and how likely it breaks it. `weight` is how much the example counts."""

    prompt: list[dict[str, str]]
    completion: str
    rule: str  # its lasting name
    rule_text: str
    broken: float  # P(broken), 0 … 1
    weight: float = 1.0
    verdicts: int = 1
    complete: bool = True
    cluster: str = ""
    category: str | None = None
    harmful: bool | None = None
    simulated: bool = False


def rule_examples(
    session: Session, standing: dict[int, Judgment], weights: JudgmentWeights
) -> tuple[list[RuleExample], set[int]]:
    """An example for each completion and rule version that somebody gave a verdict on, in a stable order.

    Args:
        standing: the judgments that count, by id.

    Returns:
        The examples, and the ids of the judgments that they rest on. How reliable somebody is stands in the target, so
        the weight is that of the round alone.
    """
    rows = session.execute(
        select(RuleJudgment, Completion, RuleVersion)
        .join(Completion, Completion.id == RuleJudgment.completion_id)
        .join(RuleVersion, RuleVersion.id == RuleJudgment.rule_version_id)
        .options(joinedload(Completion.prompt), joinedload(RuleVersion.rule))
        .where(RuleJudgment.verdict.in_(("broken", "kept")))
        .order_by(RuleJudgment.id)
    )
    groups: dict[tuple[str, int], list[tuple[RuleJudgment, Completion, RuleVersion, Judgment]]] = defaultdict(list)
    for verdict, completion, version in rows:
        judgment = standing.get(verdict.judgment_id)
        if judgment is not None:
            groups[completion.id, version.id].append((verdict, completion, version, judgment))
    found, used = [], set()
    for group in groups.values():
        _, completion, version, _ = group[0]
        votes = [(judgment.annotator_id, verdict.verdict) for verdict, _, _, judgment in group]
        acts = [judgment for *_, judgment in group]
        used |= {judgment.id for judgment in acts}
        found.append(
            RuleExample(
                completion.prompt.messages, completion.text, version.rule.slug, version.text,
                round((weights.verdicts or NOBODY_KNOWN).broken(votes), DIGITS),
                round(sum(map(weights.by_round, acts)) / len(acts), DIGITS), len(group),
                completion.finish_reason not in ("length", "cancelled", "error"),
                category=completion.prompt.category, harmful=completion.prompt.harmful,
                simulated=any(judgment.simulated for judgment in acts),
            )
        )  # fmt: skip
    return found, used
