"""Measures that need the model's own probabilities: KL to the base, reference answers, capability.

One model is loaded, with the candidate's adapter beside it; "base" is adapters off. All on the same
texts, so that candidate and base are compared pair by pair. No text is generated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.intervals import mean_interval
from core.messages import user
from evals.prober import Item, Prober
from evals.suites import CapabilityItem
from training.run import Progress, part_of, silent


@dataclass(frozen=True)
class Likelihoods:
    """What the candidate does to the base's probabilities.

    Attributes:
        kl: per-token KL(candidate ‖ base) in nats over the candidate's own benign completions: mean, n, low, high.
        reference_nll: nats per token on reference answers: candidate, base, and their paired difference.
        capability: share of items whose right option is the likeliest: candidate and base, with n.
        fluency: nats per token that the *base* gives to each policy's benign completions, and paired difference.
    """

    kl: dict[str, Any]
    reference_nll: dict[str, Any]
    capability: dict[str, Any]
    fluency: dict[str, Any]


def measure(
    prober: Prober,
    own: Sequence[Item],
    base_own: Sequence[Item],
    references: Sequence[Item],
    items: Sequence[CapabilityItem],
    progress: Progress = silent,
) -> Likelihoods:
    """All likelihood measures of a candidate.

    Args:
        own: benign prompts with the candidate's completions; `base_own` with the base's, in the same order.
        references: benign prompts with good answers that we wrote.
    """
    usable = [
        (mine, theirs) for mine, theirs in zip(own, base_own, strict=True) if mine[1].strip() and theirs[1].strip()
    ]
    scored = prober.compare(
        [u[0] for u in usable] + [u[1] for u in usable] + list(references),
        kl=len(usable),
        progress=part_of(progress, 0.0, 0.5),
    )
    mine, theirs, known = scored[: len(usable)], scored[len(usable) : 2 * len(usable)], scored[2 * len(usable) :]
    options = [(item, text) for item in items for text in (item.right, *item.wrong)]
    answers = prober.compare(
        [(user(item.question), text) for item, text in options], progress=part_of(progress, 0.5, 1.0)
    )
    ids = [item.id for item, _ in options]
    return Likelihoods(
        kl=mean_interval([s.kl for s in mine]),
        reference_nll=_paired([s.nll for s in known], [s.base_nll for s in known]),
        capability={
            "n": len(items),
            "candidate": _right_share(ids, [s.nll for s in answers]),
            "base": _right_share(ids, [s.base_nll for s in answers]),
        },
        fluency=_paired([s.base_nll for s in mine], [s.base_nll for s in theirs]),
    )


def _paired(candidate: list[float], base: list[float]) -> dict[str, Any]:
    return {
        "candidate": mean_interval(candidate)["mean"],
        "base": mean_interval(base)["mean"],
        "difference": mean_interval([c - b for c, b in zip(candidate, base, strict=True)]),
    }


def _right_share(ids: Sequence[str], nlls: Sequence[float]) -> float:
    """Share of items whose first option, the right one, is the likeliest per token."""
    by_item: dict[str, list[float]] = {}
    for item, nll in zip(ids, nlls, strict=True):
        by_item.setdefault(item, []).append(nll)
    return sum(min(found) == found[0] for found in by_item.values()) / len(by_item) if by_item else float("nan")
