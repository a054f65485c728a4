"""The flip rate: how likely a pairwise preference is reported the wrong way round. Training smooths its labels by it.

Let each report of a preference (a side, not "same" or "both bad") be turned round with probability e, independently.
Two reports of the same pair agree when both are right or both are wrong:

    p = (1 - e)² + e² = 1 - 2 e + 2 e²,   so   e = (1 - sqrt(2 p - 1)) / 2   for p > 1/2

Three sources of p or e, in the order in which they are believed:

    overlap   two people on the same pair. What separates them is slips and taste, as in the labels that training sees.
    repeats   one person twice on the same pair, sides swapped. Their taste repeats itself, so this is a lower bound.
    gold      known answers: e is the share that preferred the other side. These pairs are clear ones: a lower bound too.

Krippendorff's alpha of the same choices is no fourth source: with sides at random D_e is 1/2, alpha is 2 p - 1, and
e = (1 - sqrt(alpha)) / 2 says what the overlap says. A label that rests on several judgments is turned round less often
than one report; for those e is an upper bound.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from core.intervals import wilson
from core.language import N_
from feedback.models import Gold, Judgment, Task
from feedback.quality.acts import APART, Window, counts
from feedback.quality.estimate import Estimate, Reason, missing, share

LEAST = 30
NEWEST = 20_000
"""Tasks that are looked at, the newest ones."""

TOO_FEW = {
    "overlap": N_("only %(n)d pairs have two people who each preferred a side; %(least)d are needed"),
    "repeats": N_("only %(n)d pairs were shown to the same person again and had a side preferred both times; %(least)d are needed"),
    "gold": N_("only %(n)d answers to pairs with one known better side preferred a side; %(least)d are needed"),
}  # fmt: skip
CHANCE = N_("reports of the same pair agree no more often than chance (%(percent).1f %% of %(n)d)")
NOTHING = N_("no source has enough judgments of people: %(reasons)s")

SIDES = ("a", "b")


def flip_rate(session: Session, window: Window | None = None) -> Estimate:
    """The flip rate by the first source that allows an estimate, which `source` names.

    Args:
        window: which judgments count; all of people by default, in the newest `NEWEST` tasks.
    """
    found = flip_rates(session, window)
    for estimate in found.values():
        if estimate.value is not None:
            return estimate
    reasons = "; ".join(f"{source}: {estimate.undefined}" for source, estimate in found.items())
    return Estimate(None, undefined=Reason(NOTHING, {"reasons": reasons}))


def flip_rates(session: Session, window: Window | None = None) -> dict[str, Estimate]:
    """The flip rate by source, the most believed first."""
    window = replace(window or Window(), tasks=NEWEST)
    return {
        "overlap": from_agreement(_overlap(session, window), "overlap"),
        "repeats": from_agreement(_repeats(session, window), "repeats"),
        "gold": _from_gold(session, window),
    }


def from_agreement(tasks: Sequence[tuple[int, int]], source: str) -> Estimate:
    """e from how often two reports agree.

    Args:
        tasks: for each pair of texts, how many pairs of reports it has and how many of them agree.

    The interval is Wilson's of p, at the n that has the variance of a ratio over tasks (pairs of reports of one task are
    not independent), put through the formula; n of the result is the number of tasks.
    """
    n = len(tasks)
    if n < LEAST:
        return missing(TOO_FEW[source], n, least=LEAST)
    pairs, agreeing = sum(m for m, _ in tasks), sum(a for _, a in tasks)
    p = agreeing / pairs
    variance = math.fsum((a - p * m) ** 2 for m, a in tasks) / pairs**2 * n / (n - 1)
    effective = min(p * (1 - p) / variance, pairs) if variance else n
    low, high = wilson(p * effective, effective)
    if p <= 0.5:
        return missing(CHANCE, n, percent=100 * p)
    return Estimate(_flips(p), _flips(high), _flips(low), n=n, source=source)


def _flips(p: float) -> float:
    return (1 - math.sqrt(max(0.0, 2 * p - 1))) / 2


def _overlap(session: Session, window: Window) -> list[tuple[int, int]]:
    one, other = aliased(Judgment), aliased(Judgment)
    newest = (
        select(Task.id)
        .where(Task.kind == "pairwise", Task.pool.not_in(APART), Task.done >= 2)
        .order_by(Task.id.desc())
        .limit(window.tasks)
    )
    query = (
        select(func.count(), func.sum(case((one.choice == other.choice, 1), else_=0)))
        .select_from(one)
        .join(other, (other.task_id == one.task_id) & (other.id > one.id))
        .where(one.task_id.in_(newest), one.annotator_id != other.annotator_id, *_decided(one, other, window))
        .group_by(one.task_id)
    )
    return [(int(m), int(a)) for m, a in session.execute(query)]


def _repeats(session: Session, window: Window) -> list[tuple[int, int]]:
    first, again = aliased(Judgment), aliased(Judgment)
    newest = (
        select(Task.id, Task.about_id)
        .where(Task.kind == "pairwise", Task.pool == "repeat", Task.done >= 1)
        .order_by(Task.id.desc())
        .limit(window.tasks)
        .subquery()
    )
    query = (
        select(case((first.choice == again.choice, 1), else_=0))
        .select_from(newest)
        .join(again, again.task_id == newest.c.id)
        .join(first, (first.task_id == newest.c.about_id) & (first.annotator_id == again.annotator_id))
        .where(*_decided(first, again, window))
    )
    return [(1, int(same)) for same in session.scalars(query)]


def _decided(one: Any, other: Any, window: Window) -> tuple[Any, ...]:
    return counts(one, window), counts(other, window), one.choice.in_(SIDES), other.choice.in_(SIDES)


def _from_gold(session: Session, window: Window) -> Estimate:
    golds = select(Gold.task_id, Gold.expected).join(Task).where(Task.kind == "pairwise")
    known: dict[int, dict[str, Any]] = {row.task_id: row.expected for row in session.execute(golds)}
    wrong = total = 0
    query = (
        select(Judgment.task_id, Judgment.choice, func.count())
        .where(
            Judgment.task_id.in_(select(Gold.task_id)), Judgment.kind == "pairwise", counts(Judgment, window),
            Judgment.choice.in_(SIDES),
        )
        .group_by(Judgment.task_id, Judgment.choice)
    )  # fmt: skip
    for task_id, choice, n in session.execute(query):
        sides = [side for side in known.get(task_id or 0, {}).get("choice", []) if side in SIDES]
        if len(sides) == 1:
            total += n
            wrong += n if choice != sides[0] else 0
    if total < LEAST:
        return missing(TOO_FEW["gold"], total, least=LEAST)
    return replace(share(wrong, total, ""), source="gold")
