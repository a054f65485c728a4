"""Rates, means and quantiles of rows that come in clusters: replies of one user are alike, and count for less than as many users' would.

In: a query of rows with a group, a cluster and a number. Out: an `Estimate` for each group, out of six sums over its clusters that the
database makes, however many rows there are. A mean is a ratio Σs/Σn over k clusters, its variance k/(k−1)·Σ(s−r·n)²/(Σn)²
(linearised; Cochran 1977, Sampling Techniques, 3rd ed., eq. 6.13). A rate has the Wilson interval at the n of independent rows
that would have that variance. A quantile has Woodruff's interval (1952, JASA 47:635): the quantiles at the ends of the interval of
the share below it. A difference has the interval of Zou & Donner (2008, Statist. Med. 27:1693), for two Wilson intervals Newcombe's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, Select, and_, case, cast, func, or_, select
from sqlalchemy.orm import Session

from core.intervals import Z95, wilson
from core.language import N_
from feedback.quality.estimate import Estimate, missing

FEW = N_("there is nothing to set beside it")


@dataclass(frozen=True)
class Sums:
    """Sums over clusters of their rows n and of a number s: Σn, Σs, Σn², Σn·s, Σs², of k clusters."""

    k: int = 0
    n: float = 0
    s: float = 0
    nn: float = 0
    ns: float = 0
    ss: float = 0

    @property
    def mean(self) -> float:
        return self.s / self.n

    @property
    def variance(self) -> float | None:
        """Of the mean; None of fewer than two clusters."""
        if self.k < 2:
            return None
        r = self.mean
        squares = max(0.0, self.ss - 2 * r * self.ns + r * r * self.nn)
        return self.k / (self.k - 1) * squares / self.n**2

    def rate(self, otherwise: str) -> Estimate:
        """The mean of numbers that are 0 or 1; where all are alike, as many rows are taken for independent as there are clusters."""
        if not self.n:
            return missing(otherwise)
        p, variance = self.mean, self.variance
        alone = p * (1 - p) / variance if variance and 0 < p < 1 else float(self.k)
        return Estimate(p, *wilson(p * min(alone, self.n), min(alone, self.n)), n=int(self.n))

    def average(self, otherwise: str) -> Estimate:
        """The mean of any numbers, with its normal interval."""
        if not self.n:
            return missing(otherwise)
        if (variance := self.variance) is None:
            return Estimate(self.mean, n=int(self.n))
        half = Z95 * math.sqrt(variance)
        return Estimate(self.mean, self.mean - half, self.mean + half, n=int(self.n))


def is_so(condition: Any) -> Any:
    """1 where a condition holds, else 0: PostgreSQL makes no numbers of booleans."""
    return case((condition, 1), else_=0)


def sums_of(session: Session, rows: Select[Any]) -> dict[int, Sums]:
    """By group, the sums of rows.

    Args:
        rows: with the columns `arm` (int), `unit` (its cluster) and `s` (a number; rows where it is NULL are left out).
    """
    each = rows.subquery()
    s = cast(each.c.s, Float)
    of_unit = select(each.c.arm, func.count(s).label("n"), func.sum(s).label("s"))
    unit = of_unit.where(each.c.s.is_not(None)).group_by(each.c.arm, each.c.unit).subquery()
    n, total = cast(unit.c.n, Float), unit.c.s
    query = select(
        unit.c.arm, func.count(), func.sum(n), func.sum(total), func.sum(n * n), func.sum(n * total), func.sum(total * total)
    ).group_by(unit.c.arm)  # fmt: skip
    return {arm: Sums(k, *map(float, sums)) for arm, k, *sums in session.execute(query)}


def quantiles(session: Session, rows: Select[Any], q: float, otherwise: str) -> dict[int, Estimate]:
    """By group, the quantile of s; without an interval where that would reach beyond the largest or smallest of all.

    Args:
        rows: as of `sums_of`.
        q: above 0 and below 1.
    """
    each = rows.subquery()
    known = each.c.s.is_not(None)
    counted = select(each.c.arm, func.count()).where(known).group_by(each.c.arm)
    n = {arm: int(count) for arm, count in session.execute(counted)}
    at = _ranked(session, each, {arm: {_rank(q, m)} for arm, m in n.items()})
    value = {arm: found[_rank(q, n[arm])] for arm, found in at.items()}
    if not value:
        return {}
    below = or_(*(and_(each.c.arm == arm, each.c.s <= v) for arm, v in value.items()))
    shares = sums_of(session, select(each.c.arm, each.c.unit, is_so(below).label("s")).where(known))
    ends: dict[int, tuple[int, int]] = {}
    for arm, found in shares.items():
        if (variance := found.variance) is not None:
            half = Z95 * math.sqrt(variance or q * (1 - q) / found.k)
            ends[arm] = (math.floor((q - half) * n[arm]), math.ceil((q + half) * n[arm]))
    inside = {arm: set(pair) for arm, pair in ends.items() if pair[0] >= 1 and pair[1] <= n[arm]}
    bounds = _ranked(session, each, inside)
    return {
        arm: Estimate(v, bounds[arm][ends[arm][0]], bounds[arm][ends[arm][1]], n=n[arm])
        if arm in bounds
        else Estimate(v, n=n[arm])
        for arm, v in value.items()
    }


def difference(one: Estimate | None, other: Estimate | None) -> Estimate:
    """One less the other, with the interval that theirs give; of nothing where one of them is undefined."""
    if one is None or other is None or one.value is None or other.value is None:
        return missing(FEW)
    d, n = one.value - other.value, min(one.n, other.n)
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Estimate(d, n=n)
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(d, d - down, d + up, n=n)


def _rank(q: float, n: int) -> int:
    return max(1, math.ceil(q * n))


def _ranked(
    session: Session, each: Any, wanted: dict[int, Iterable[int]] | dict[int, set[int]]
) -> dict[int, dict[int, float]]:
    """Of each group the values at these ranks, the smallest being 1."""
    if not wanted:
        return {}
    rank = func.row_number().over(partition_by=each.c.arm, order_by=each.c.s).label("rank")
    ranked = select(each.c.arm, each.c.s, rank).where(each.c.s.is_not(None)).subquery()
    here = or_(*(and_(ranked.c.arm == arm, ranked.c.rank.in_(ranks)) for arm, ranks in wanted.items()))
    found: dict[int, dict[int, float]] = {}
    for arm, value, at in session.execute(select(ranked).where(here)):
        found.setdefault(arm, {})[at] = float(value)
    return found
