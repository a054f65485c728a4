"""How much one judgment weighs in training: how reliable its annotator is, times how recent its round.

Reliability is the probability that the texts decide and not a habit or a slip, as `feedback.quality.consensus` estimates it
without knowing the truth: NoisyBT's on pairs, Dawid and Skene's on rules. Of somebody who judged too little of what others
judged too it is the mean of all who are known; where it is undefined for everybody, each judgment weighs the same.

A judgment's round is the first snapshot that holds it; those that none holds yet are the newest round. Each round back
weighs `decay` times as much. Only the order of the rounds counts, so freezing the same content again changes no weight.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.language import N_
from feedback.models import Judgment, SnapshotJudgment
from feedback.quality.acts import Window
from feedback.quality.consensus import Consensus, Verdicts, pair_consensus, rule_consensus
from feedback.quality.estimate import Reason

DIGITS = 3
"""Weights are rounded, so that the last bits of an optimiser on another machine give no other snapshot."""

SWITCHED_OFF = N_("the settings say that everybody counts alike")

LEAST = 0.01
"""The least that a known reliability counts: a judgment of no use weighs next to nothing, but its pair stays defined."""


def _one(judgment: Judgment) -> float:
    return 1.0


@dataclass(frozen=True)
class JudgmentWeights:
    """Weights by judgment, for pairs and for rules; by default every judgment weighs 1."""

    on_pairs: Callable[[Judgment], float] = _one
    on_rules: Callable[[Judgment], float] = _one
    by_round: Callable[[Judgment], float] = _one  # the round's factor alone
    verdicts: Verdicts | None = None  # what Dawid and Skene's matrices say of verdicts, where there are enough
    facts: dict[str, Any] = field(default_factory=dict)  # for the snapshot's manifest


def judgment_weights(
    session: Session, judgments: Iterable[Judgment], *, decay: float, simulated: bool, by_reliability: bool = True
) -> JudgmentWeights:
    """The weights of these judgments as the database knows annotators and rounds now.

    Args:
        decay: factor for each round back, in (0, 1].
        simulated: let simulated judgments speak for the reliability of those who made them.
        by_reliability: look at what annotators are worth; else it is undefined for everybody.
    """
    window = Window(simulated=simulated)
    pairs = pair_consensus(session, window) if by_reliability else Consensus(undefined=Reason(SWITCHED_OFF))
    rules = rule_consensus(session, window) if by_reliability else Consensus(undefined=Reason(SWITCHED_OFF))
    age = _ages(session, [judgment.id for judgment in judgments])

    def weigh(consensus: Consensus) -> Callable[[Judgment], float]:
        known = {who: max(LEAST, e.value) for who, e in consensus.reliability.items() if e.value is not None}
        mean = math.fsum(known.values()) / len(known) if known else 1.0

        def weight(judgment: Judgment) -> float:
            reliability = known.get(judgment.annotator_id, mean) if judgment.annotator_id is not None else mean
            return round(reliability * decay ** age.get(judgment.id, 0), DIGITS)

        return weight

    facts = {"pairs": _facts(pairs), "rules": _facts(rules), "rounds": 1 + max(age.values(), default=0)}
    return JudgmentWeights(
        weigh(pairs), weigh(rules), lambda j: round(decay ** age.get(j.id, 0), DIGITS), rules.verdicts, facts
    )


def _ages(session: Session, ids: list[int]) -> dict[int, int]:
    """How many rounds back each judgment was first frozen; 0 is the newest round among them."""
    query = select(SnapshotJudgment.judgment_id, func.min(SnapshotJudgment.snapshot_id)).group_by(
        SnapshotJudgment.judgment_id
    )
    wanted = set(ids)
    first = {judgment: snapshot for judgment, snapshot in session.execute(query) if judgment in wanted}
    newest = max(first.values(), default=0) + 1
    rounds = sorted({first.get(i, newest) for i in ids}, reverse=True)
    place = {round_: n for n, round_ in enumerate(rounds)}
    return {i: place[first.get(i, newest)] for i in ids}


def _facts(consensus: Consensus) -> dict[str, Any]:
    """How many annotators have a reliability, and its range; or why none has. It names nobody."""
    values = sorted(round(e.value, DIGITS) for e in consensus.reliability.values() if e.value is not None)
    if not values:
        why = consensus.undefined or next((e.undefined for e in consensus.reliability.values() if e.undefined), None)
        return {"annotators": 0, "undefined": str(why) if why else "nobody judged anything"}
    mean = round(math.fsum(values) / len(values), DIGITS)
    return {"annotators": len(values), "least": values[0], "mean": mean, "most": values[-1]}
