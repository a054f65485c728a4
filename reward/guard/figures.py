"""What a guard's model is worth, as figures with their n: agreement, thresholds and what is hit on the way of a text."""

import math
from collections.abc import Sequence
from typing import Any

from core.intervals import rate
from reward.evaluation import auc, calibration

LEAST_PEOPLE = 20
TOO_FEW = "only %(n)d verdicts are held out; at least %(least)d are needed"


def agreement(said: Sequence[float], was: Sequence[float], hit: Sequence[bool]) -> dict[str, Any]:
    """P(broken) and hits of the student beside P(broken) of those it is to agree with.

    Returns:
        n, broken (the share whose `was` is above a half), auc of that decision, kappa of the hits and it, recall and
        false_hits (each {rate, n, low, high}), brier, brier_of_mean, ece, bins.
    """
    if not said:
        return {"n": 0, "auc": auc([], [])}
    decided = [y > 0.5 for y in was]
    mean = sum(was) / len(was)
    caught = [h for h, d in zip(hit, decided, strict=True) if d]
    wrong = [h for h, d in zip(hit, decided, strict=True) if not d]
    return {
        "n": len(said),
        "broken": sum(decided) / len(decided),
        "auc": auc(said, decided),
        "kappa": kappa(hit, decided),
        "recall": rate(sum(caught), len(caught)),
        "false_hits": rate(sum(wrong), len(wrong)),
        "brier_of_mean": sum((mean - y) ** 2 for y in was) / len(was),
        **calibration(said, was),
    }


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Cohen's kappa of two decisions; None where both say the same of everything."""
    n = len(one)
    if not n:
        return None
    same = sum(a == b for a, b in zip(one, other, strict=True)) / n
    p, q = sum(one) / n, sum(other) / n
    by_chance = p * q + (1 - p) * (1 - q)
    return (same - by_chance) / (1 - by_chance) if by_chance < 1 else None


def threshold(clean: Sequence[float], false_hits_frac: float) -> float | None:
    """The least threshold that a further clean text reaches with no more than this probability.

    Args:
        clean: of each clean text, the largest P(broken) on its way: a stream is asked again and again.

    Returns:
        The ⌈(n + 1)(1 − f)⌉-th smallest value, just above it (split conformal; Vovk et al. 2005, exchangeable texts are all that
        is asked for); None where n is too small for that.
    """
    place = math.ceil((len(clean) + 1) * (1 - false_hits_frac))
    if place > len(clean):
        return None
    return math.nextafter(sorted(clean)[place - 1], math.inf)
