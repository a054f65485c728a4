"""What a reward model is worth, from its numbers alone: no model is run here, no file is read.

Every figure has its n; one that cannot be had says `undefined` and why. Shares have Wilson intervals, AUC Hanley and
McNeil's (1982, Radiology 143:29). Calibration is the expected calibration error over ten bins of equal width (Guo et al. 2017,
arXiv:1706.04599), before and after temperature scaling. The temperature that a figure is reported with was fitted on the other
half of the prompt clusters; the one that is recorded for use, on all.
"""

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from core.errors import StageError
from core.intervals import Z95, rate
from feedback.dataset import Preference, RuleExample

BINS = 10
HISTOGRAM_BINS = 20
LEAST_TO_FIT = 10
TEMPERATURES = (0.05, 20.0)
LENGTH_STEPS = (-200, -50, -10, 11, 51, 201)
"""Edges of the buckets of length difference, in characters: chosen less rejected."""

TOO_FEW_TO_FIT = "only %(n)d pairs are in the smaller half of the held-out clusters; %(least)d are needed"
ONE_SIDE = "all %(n)d verdicts are on one side"
NO_VERDICTS = "there are no verdicts"


def evaluate_pairs(
    pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float], *, length_only: float
) -> dict[str, Any]:
    """The evaluation of a preference reward model on held-out pairs, of which it gives the rewards.

    The bar: the accuracy's lower 95 % bound lies above `length_only`, what going by length alone gets right.

    Returns:
        accuracy, n, low, high, length_only, clears_bar; calibration; by_category, by_length; and rewards, a histogram.
    """
    right = [c > r for c, r in zip(chosen, rejected, strict=True)]
    found = rate(sum(right), len(right))
    gaps = [c - r for c, r in zip(chosen, rejected, strict=True)]
    return {
        "accuracy": found["rate"],
        "n": found["n"],
        "low": found["low"],
        "high": found["high"],
        "length_only": length_only,
        "clears_bar": found["low"] > length_only,
        "calibration": calibrate_pairs(gaps, [p.cluster for p in pairs]),
        "by_category": _by([p.category or "" for p in pairs], right),
        "by_length": _by([length_bucket(p) for p in pairs], right),
        "rewards": histogram({"chosen": chosen, "rejected": rejected}),
    }


def demand_apart(train: Sequence[Preference | RuleExample], heldout: Sequence[Preference | RuleExample]) -> None:
    """Raise StageError where a prompt cluster is on both sides: what is measured then would have been trained on."""
    both = {row.cluster for row in train if row.cluster} & {row.cluster for row in heldout}
    if both:
        raise StageError(
            f"{len(both)} prompt clusters are both trained on and held out, {min(both)} for one; snapshots keep them apart, so"
            " this one was not made by `feedback.dataset.freeze`. Freeze a new one."
        )


def length_only_accuracy(train: Sequence[Preference], heldout: Sequence[Preference]) -> float:
    """Accuracy of always taking the longer side (or the shorter, whichever did better on `train`); a tie counts half."""

    def longer_wins(pairs: Sequence[Preference]) -> float:
        points = [0.5 if len(p.chosen) == len(p.rejected) else float(len(p.chosen) > len(p.rejected)) for p in pairs]
        return sum(points) / len(points)

    return longer_wins(heldout) if longer_wins(train) >= 0.5 else 1 - longer_wins(heldout)


def length_bucket(pair: Preference) -> str:
    """The bucket of a pair's length difference, as its bounds: "-50…-11" characters."""
    place = bisect.bisect_right(LENGTH_STEPS, len(pair.chosen) - len(pair.rejected))
    low = "" if place == 0 else str(LENGTH_STEPS[place - 1])
    high = "" if place == len(LENGTH_STEPS) else str(LENGTH_STEPS[place] - 1)
    return f"{low}…{high}"


def calibrate_pairs(gaps: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    """How far the confidence σ(|gap| / T) lies from the share that is right, at T = 1 and at a fitted T.

    Args:
        gaps: reward of the chosen side less that of the rejected one.
        clusters: names of the pairs' prompt clusters; a cluster is fitted on or reported, never both.

    Returns:
        temperature (fitted on all), ece (T = 1), ece_scaled with `bins`, brier and brier_scaled, n; the scaled ones
        undefined where a half has too few pairs.
    """
    halves = [_half(cluster, i) for i, cluster in enumerate(clusters)]
    found: dict[str, Any] = {"n": len(gaps), **_confidence(gaps, [1.0] * len(gaps))}
    if gaps:
        found["temperature"] = fit_temperature(gaps)
    smaller = min(halves.count(0), halves.count(1))
    if smaller < LEAST_TO_FIT:
        return found | {"undefined": TOO_FEW_TO_FIT % {"n": smaller, "least": LEAST_TO_FIT}}
    fitted = [fit_temperature([g for g, h in zip(gaps, halves, strict=True) if h != half]) for half in (0, 1)]
    scaled = _confidence(gaps, [fitted[half] for half in halves])
    return found | {"ece_scaled": scaled["ece"], "brier_scaled": scaled["brier"], "bins_scaled": scaled["bins"]}


def fit_temperature(logits: Sequence[float], targets: Sequence[float] | None = None) -> float:
    """T > 0 that minimises the mean cross-entropy of σ(logit / T), within `TEMPERATURES`: where all are right, T has no least.

    Args:
        targets: probabilities; without them every logit is of something that is so, as a pair's gap.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    values = np.asarray(logits, dtype=float)
    so = np.ones(len(values)) if targets is None else np.asarray(targets, dtype=float)
    low, high = (math.log(t) for t in TEMPERATURES)

    def loss(t: float) -> float:
        scaled = values / math.exp(t)
        return float((so * np.logaddexp(0.0, -scaled) + (1 - so) * np.logaddexp(0.0, scaled)).mean())

    best = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(math.exp(best.x))


def calibration(said: Sequence[float], was: Sequence[float], *, low: float = 0.0) -> dict[str, Any]:
    """Probabilities against what was (0, 1, or between), binned evenly over [low, 1].

    Returns:
        ece, brier, and bins: [{low, high, n, said, was}] of those that are not empty.
    """
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    width = (1 - low) / BINS
    for p, y in zip(said, was, strict=True):
        groups[min(BINS - 1, max(0, int((p - low) / width)))].append((p, y))
    bins = []
    for place, inside in sorted(groups.items()):
        n = len(inside)
        mean_p, mean_y = (math.fsum(v[k] for v in inside) / n for k in (0, 1))
        bins.append(
            {"low": low + place * width, "high": low + (place + 1) * width, "n": n, "said": mean_p, "was": mean_y}
        )
    total = len(said)
    return {
        "ece": math.fsum(b["n"] * abs(b["said"] - b["was"]) for b in bins) / total if total else None,
        "brier": math.fsum((p - y) ** 2 for p, y in zip(said, was, strict=True)) / total if total else None,
        "bins": bins,
    }


def auc(scores: Sequence[float], positive: Sequence[bool]) -> dict[str, Any]:
    """P(a positive scores above a negative), a tie counting half: {value, low, high, n, positives} or {undefined, n}."""
    n, n_positive = len(scores), sum(positive)
    n_negative = n - n_positive
    if not n_positive or not n_negative:
        return {"n": n, "positives": n_positive, "undefined": ONE_SIDE % {"n": n} if n else NO_VERDICTS}
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    above = math.fsum(float(r) for r, p in zip(ranks, positive, strict=True) if p) - n_positive * (n_positive + 1) / 2
    value = above / (n_positive * n_negative)
    a = (above + 0.5) / (n_positive * n_negative + 1)  # else a perfect order of two verdicts would have no interval
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + (n_positive - 1) * (q1 - a * a) + (n_negative - 1) * (q2 - a * a)) / (
        n_positive * n_negative
    )
    half = Z95 * math.sqrt(max(0.0, variance))
    low, high = min(value, max(0.0, a - half)), max(value, min(1.0, a + half))
    return {"value": value, "low": low, "high": high, "n": n, "positives": n_positive}


def histogram(values: dict[str, Sequence[float]]) -> dict[str, Any]:
    """Counts by name over `HISTOGRAM_BINS` even bins of all values: {edges, counts, mean, sd}."""
    import numpy as np

    every = np.concatenate([np.asarray(v, dtype=float) for v in values.values()]) if values else np.zeros(0)
    if not every.size:
        return {"edges": [], "counts": {name: [] for name in values}, "mean": None, "sd": None}
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1.0, HISTOGRAM_BINS + 1)
    counts = {name: np.histogram(np.asarray(v, dtype=float), edges)[0].tolist() for name, v in values.items()}
    return {"edges": edges.tolist(), "counts": counts, "mean": float(every.mean()), "sd": float(every.std())}


def _confidence(gaps: Sequence[float], temperatures: Sequence[float]) -> dict[str, Any]:
    said = [_sigmoid(abs(g) / t) for g, t in zip(gaps, temperatures, strict=True)]
    return calibration(said, [0.5 if g == 0 else float(g > 0) for g in gaps], low=0.5)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _half(cluster: str, place: int) -> int:
    """0 or 1, by the cluster's hash; by place where there is none."""
    return int(cluster[-4:], 16) % 2 if cluster else place % 2


def _by(names: Sequence[str], right: Sequence[bool]) -> list[dict[str, Any]]:
    """Accuracy by name, each with n and interval, in the order of the names."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for name, is_right in zip(names, right, strict=True):
        groups[name].append(is_right)
    return [{"name": name, **rate(sum(found), len(found))} for name, found in sorted(groups.items(), key=_place)]


def _place(entry: tuple[str, Any]) -> tuple[float, str]:
    """Buckets of numbers in their order, other names by the alphabet."""
    first = entry[0].split("…")[0]
    try:
        return (float(first), "") if first else (-math.inf, entry[0])
    except ValueError:
        return 0.0, entry[0]
