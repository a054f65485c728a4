"""Krippendorff's alpha: how far people agree beyond chance. 1 is full agreement, 0 what chance gives, below 0 worse.

    alpha = 1 - D_o / D_e,   D_o = sum of o_ck d_ck,   D_e = sum of (n_c n_k - [c = k] n_c) d_ck / (n - 1)

o is the coincidence matrix (each unit of m answers adds its ordered pairs of answers of different people, each as
1 / (m - 1)), n_c its row sums, n their sum; d is 0 or 1 for nominal answers, and for ordinal ones the squared distance of
mid-ranks. Source: Krippendorff, Content Analysis, 4th ed. 2018, ch. 12. The value comes from the `krippendorff` package;
the interval is the bootstrap's 2.5th to 97.5th percentile over whole tasks, with a fixed seed.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from core.language import N_
from feedback.kinds.rating import ASPECTS
from feedback.quality.acts import Act, Window, load_acts
from feedback.quality.estimate import Estimate, missing

Level = Literal["nominal", "ordinal"]
Floats = npt.NDArray[np.float64]

LEAST_TASKS = 10
RESAMPLES = 1000
SEED = 0

TOO_FEW = N_("only %(n)d tasks were judged by two people or more; %(least)d are needed")
NO_VARIATION = N_("all answers are the same, so agreement beyond chance cannot be told")
HARDLY_ANY_VARIATION = N_("the answers hardly differ: in %(share)d %% of resamples they are all the same")


@dataclass(frozen=True)
class Measure:
    """What is compared in judgments of a kind: `read` gives the answers of an act, by the thing that each is about."""

    kind: str
    name: str
    level: Level
    answers: tuple[Any, ...]  # in order, where they are ordinal
    read: Callable[[Act], Iterable[tuple[Any, Any]]]
    by_rule: bool = False


def _pairs_of_ranks(act: Act) -> Iterator[tuple[Any, Any]]:
    ranks = act.answer.get("ranks") or [] if act.choice != "all_wrong" else []
    for i, j in combinations(range(len(ranks)), 2):
        yield (i, j), (ranks[i] > ranks[j]) - (ranks[i] < ranks[j])


def _aspect(name: str) -> Callable[[Act], Iterable[tuple[Any, Any]]]:
    return lambda act: [("", (act.answer.get("aspects") or {}).get(name))]


VERDICTS = ("broken", "kept", "unsure")
MEASURES = (
    Measure("pairwise", N_("choice"), "nominal", ("a", "b", "tie", "both_bad"), lambda act: [("", act.choice)]),
    Measure("pairwise", N_("strength, −3 to 3"), "ordinal", tuple(range(-3, 4)), lambda act: [("", act.signed)]),
    Measure("ranking", N_("which of two is better"), "nominal", (-1, 0, 1), _pairs_of_ranks),
    Measure("rating", N_("overall, 1 to 5"), "ordinal", tuple(range(1, 6)), lambda act: [("", act.rating)]),
    *(Measure("rating", aspect, "ordinal", tuple(range(1, 6)), _aspect(aspect)) for aspect in ASPECTS),
    Measure("rule_check", N_("verdict"), "nominal", VERDICTS, lambda act: [("", act.verdict)]),
)
OVER_TIME = tuple(m for m in MEASURES if m.name in ("choice", "overall, 1 to 5", "verdict"))


@dataclass(frozen=True)
class Agreement:
    """Agreement on one measure: of all tasks of its kind, of one rule's, or of one week's."""

    measure: Measure
    alpha: Estimate
    rule: str | None = None
    week: dt.date | None = None


def agreement(session: Session, window: Window) -> list[Agreement]:
    """Alpha of each measure, a rule check's also of each rule, then by week; see `by_kind` and `by_week`."""
    acts_of = {kind: load_acts(session, kind, window) for kind in {m.kind: None for m in MEASURES}}
    return [*by_kind(acts_of), *by_week(acts_of)]


def by_kind(acts_of: dict[str, list[Act]]) -> list[Agreement]:
    """Alpha of each measure, and after that of all rule checks each rule's."""
    found = []
    for measure in MEASURES:
        acts = acts_of[measure.kind]
        found.append(Agreement(measure, alpha_of(acts, measure)))
        if measure.kind == "rule_check":
            for rule, checked in sorted(_grouped(acts, lambda act: str(act.rule)).items()):
                found.append(Agreement(measure, alpha_of(checked, measure), rule=rule))
    return found


def by_week(acts_of: dict[str, list[Act]]) -> list[Agreement]:
    """Alpha of the leading measures by the week (Monday, UTC) in which a task got its last judgment; oldest first."""
    found = []
    for measure in OVER_TIME:
        by_task = _grouped(acts_of[measure.kind], lambda act: act.task_id)
        weeks: dict[dt.date, list[Act]] = defaultdict(list)
        for acts in by_task.values():
            last = max(act.at for act in acts).date()
            weeks[last - dt.timedelta(days=last.weekday())] += acts
        found += [Agreement(measure, alpha_of(acts, measure), week=week) for week, acts in sorted(weeks.items())]
    return found


def alpha_of(acts: Sequence[Act], measure: Measure) -> Estimate:
    """Alpha of what these acts say."""
    number = {answer: n for n, answer in enumerate(measure.answers)}
    units: dict[tuple[int, Any], list[int]] = defaultdict(list)
    for act in acts:
        for about, answer in measure.read(act):
            if answer is not None:
                units[act.task_id, about].append(number[answer])
    table = np.zeros((len(units), len(number)), dtype=np.int64)
    for row, answers in enumerate(units.values()):
        np.add.at(table[row], answers, 1)
    return alpha(table, measure.level, np.array([task_id for task_id, _ in units], dtype=np.int64))


def alpha(counts: npt.NDArray[np.int64], level: Level, tasks: npt.NDArray[np.int64] | None = None) -> Estimate:
    """Krippendorff's alpha with its bootstrap interval.

    Args:
        counts: (units, answers) how many people gave each answer; ordinal answers in their order.
        tasks: (units,) what is resampled as a whole; each unit by itself when left out.

    Returns:
        The estimate, n being the tasks with two answers or more to the same thing.
    """
    import krippendorff

    tasks = np.arange(len(counts)) if tasks is None else tasks
    pairable = counts.sum(axis=1) >= 2
    counts, tasks = counts[pairable], tasks[pairable]
    n = len(np.unique(tasks))
    if n < LEAST_TASKS:
        return missing(TOO_FEW, n, least=LEAST_TASKS)
    if (counts.sum(axis=0) > 0).sum() < 2:
        return missing(NO_VARIATION, n)
    value = krippendorff.alpha(
        value_counts=counts, value_domain=list(range(counts.shape[1])), level_of_measurement=level
    )
    drawn = resampled(counts, level, tasks)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 0.9 * RESAMPLES:
        return missing(HARDLY_ANY_VARIATION, n, share=round(100 * (1 - len(drawn) / RESAMPLES)))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), n=n)


def resampled(counts: npt.NDArray[np.int64], level: Level, tasks: npt.NDArray[np.int64]) -> Floats:
    """(RESAMPLES,) alphas of tasks drawn with replacement; NaN where a draw has one answer only.

    A draw's coincidence matrix is the sum of its tasks' matrices. Tasks with equal matrices are drawn as one kind, so that
    the work hangs on how many kinds there are: a few dozen, however many tasks.
    """
    size = counts.shape[1]
    kinds, n_of = _kinds(counts, tasks)
    n = int(n_of.sum())
    drawn = np.random.default_rng(SEED).multinomial(n, n_of / n, size=RESAMPLES).astype(np.float64)
    return np.concatenate([_alphas((part @ kinds).reshape(-1, size, size), level) for part in np.split(drawn, 10)])


def _kinds(counts: npt.NDArray[np.int64], tasks: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(kinds, answers²) the different coincidence matrices of tasks, and (kinds,) how many tasks have each."""
    size = counts.shape[1]
    m = counts.sum(axis=1)
    ordered_pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size, dtype=np.int64)
    of_units = (ordered_pairs / (m - 1)[:, None, None]).reshape(len(counts), -1)  # (units, answers²)
    groups, group = np.unique(tasks, return_inverse=True)
    of_tasks = np.zeros((len(groups), size * size))
    np.add.at(of_tasks, group, of_units)
    kinds, n_of = np.unique(of_tasks.round(9), axis=0, return_counts=True)
    return kinds, n_of


def _alphas(o: Floats, level: Level) -> Floats:
    """(B,) alphas of (B, answers, answers) coincidence matrices."""
    n_c = o.sum(axis=2)
    n = n_c.sum(axis=1)
    if level == "nominal":
        distance: Floats = np.broadcast_to(1.0 - np.eye(o.shape[1]), o.shape)
    else:
        middle = np.cumsum(n_c, axis=1) - n_c / 2
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    observed = (o * distance).sum(axis=(1, 2))
    expected = (n_c[:, :, None] * n_c[:, None, :] * distance).sum(axis=(1, 2)) / (n - 1)  # d_cc is 0
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(expected > 0, 1 - observed / expected, np.nan)
    return found


def _grouped(acts: Iterable[Act], key: Callable[[Act], Any]) -> dict[Any, list[Act]]:
    groups: dict[Any, list[Act]] = defaultdict(list)
    for act in acts:
        groups[key(act)].append(act)
    return groups
