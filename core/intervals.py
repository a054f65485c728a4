"""Intervals and paired tests that reports are made with. Rates are shares in [0, 1]; 95 % unless said."""

import math
from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a rate; (0, 1) where n is 0. Source: Wilson 1927, JASA 22:209."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    denominator = 1 + z * z / n
    return max(0.0, (centre - spread) / denominator), min(1.0, (centre + spread) / denominator)


def rate(successes: int, n: int) -> dict[str, Any]:
    """`{rate, n, low, high}` with the Wilson interval, as reports hold it."""
    low, high = wilson(successes, n)
    return {"rate": successes / n if n else None, "n": n, "low": low, "high": high}


def upper_clopper_pearson(successes: int, n: int, alpha: float = 0.05) -> float:
    """One-sided upper bound of a rate at level 1 − alpha; 1.0 where n is 0. Source: Clopper & Pearson 1934."""
    if n == 0 or successes >= n:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(1 - alpha, successes + 1, n - successes))


def mcnemar_p(worse: int, better: int) -> float:
    """One-sided exact McNemar p-value that `worse` discordant pairs outnumber `better` by more than chance."""
    if worse + better == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(worse, worse + better, 0.5, alternative="greater").pvalue)


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """`{mean, n, low, high}`: normal 95 % interval of a mean (of paired differences, say)."""
    n = len(values)
    if n == 0:
        return {"mean": None, "n": 0, "low": None, "high": None}
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    half = Z95 * math.sqrt(variance / n)
    return {"mean": mean, "n": n, "low": mean - half, "high": mean + half}
