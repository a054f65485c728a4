"""What can be told of each annotator: how much, how fast, how right, how even-handed.

Counts are of the whole window. What needs each judgment (time, sides, repeats) looks at everybody's newest ones, which an
index finds, so that a page costs the same at a million judgments.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import case, exists, func, select
from sqlalchemy.orm import Session

from access.models import Person
from core.language import N_
from core.settings import QualitySettings
from feedback.models import Assignment, Completion, GoldResult, Judgment, Task, TaskItem
from feedback.quality.acts import Window, counts
from feedback.quality.consensus import Consensus
from feedback.quality.estimate import Estimate, missing, share

MOST_PEOPLE = 300

NO_GOLD = N_("they have answered no task whose answer is known")
NO_SIDE = N_("none of their judgments prefers one of two sides")
NO_REPEAT = N_("no pair that they judged was shown to them again")
NO_TIME = N_("none of their judgments has a time")
NOT_SHARED = N_("none of their judgments is of a task that others judged too")


@dataclass(frozen=True)
class Track:
    """One annotator's figures. `seconds` is the median per task; `looked_at` bounds those of single judgments."""

    person_id: int
    judgments: int
    looked_at: int
    gold: Estimate
    left: Estimate
    swap: Estimate
    fast: Estimate
    seconds: Estimate
    skips: int
    flags: int
    on_rules: Estimate
    on_pairs: Estimate


def judging(session: Session, window: Window) -> list[int]:
    """Ids of people who judged tasks, by login; at most `MOST_PEOPLE`."""
    judged = exists().where(Judgment.annotator_id == Person.id, Judgment.assignment_id.is_not(None), _in(window))
    return list(session.scalars(select(Person.id).where(judged).order_by(Person.login).limit(MOST_PEOPLE)))


def tracks(
    session: Session, window: Window, settings: QualitySettings, *, rules: Consensus, pairs: Consensus
) -> list[Track]:
    """Everybody's figures, in the order of their logins."""
    people = judging(session, window)
    judged = dict(_by_person(session, select(Judgment.annotator_id, func.count()), people, window))
    gold = {
        row[0]: (row[1], row[2])
        for row in session.execute(
            select(GoldResult.annotator_id, func.sum(case((GoldResult.passed, 1), else_=0)), func.count())
            .join(Judgment, Judgment.id == GoldResult.judgment_id)
            .where(GoldResult.annotator_id.in_(people), _in(window))
            .group_by(GoldResult.annotator_id)
        )
    }
    passed_over = _skips(session, people, window)
    found = []
    for who in people:
        acts = _newest(session, who, window, settings.newest_judgments)
        skips, flags = passed_over.get(who, (0, 0))
        found.append(
            Track(
                who, judged.get(who, 0), len(acts), share(*gold.get(who, (0, 0)), NO_GOLD), _left(acts),
                _swap(session, who, acts), _fast(acts, settings), _seconds(acts), skips, flags,
                _reliability(rules, who), _reliability(pairs, who),
            )
        )  # fmt: skip
    return found


def _by_person(session: Session, columns: Any, people: list[int], window: Window) -> Iterable[tuple[int, int]]:
    query = columns.where(
        Judgment.annotator_id.in_(people), Judgment.assignment_id.is_not(None), Judgment.supersedes_id.is_(None),
        _in(window),
    )  # fmt: skip
    return ((who, n) for who, n in session.execute(query.group_by(Judgment.annotator_id)))


def _skips(session: Session, people: list[int], window: Window) -> dict[int, tuple[int, int]]:
    """Tasks given back by annotator: without a flag, and flagged."""
    flagged = Assignment.skip_reason.startswith("flagged:")
    query = select(Assignment.annotator_id, func.count(), func.sum(case((flagged, 1), else_=0))).where(
        Assignment.annotator_id.in_(people), Assignment.state == "skipped"
    )
    if window.since is not None:
        query = query.where(Assignment.created_at >= window.since)
    return {who: (n - flags, flags) for who, n, flags in session.execute(query.group_by(Assignment.annotator_id))}


@dataclass(frozen=True)
class _Own:
    """One of an annotator's own judgments."""

    task_id: int
    kind: str
    pool: str
    about_id: int | None
    choice: str | None
    left: int
    latency_s: float | None
    characters: int


def _newest(session: Session, who: int, window: Window, limit: int) -> list[_Own]:
    characters = (
        select(func.sum(func.length(Completion.text)))
        .join(TaskItem, TaskItem.completion_id == Completion.id)
        .where(TaskItem.task_id == Judgment.task_id)
        .scalar_subquery()
    )
    query = (
        select(
            Judgment.task_id, Task.kind, Task.pool, Task.about_id, Judgment.choice, Assignment.shown_order,
            Judgment.latency_s, characters,
        )
        .join(Assignment, Assignment.id == Judgment.assignment_id)
        .join(Task, Task.id == Judgment.task_id)
        .where(Judgment.annotator_id == who, counts(Judgment, window))
        .order_by(Judgment.created_at.desc(), Judgment.id.desc())
        .limit(limit)
    )  # fmt: skip
    return [
        _Own(task_id, kind, pool, about_id, choice, order[0] if order else 0, latency_s, length or 0)
        for task_id, kind, pool, about_id, choice, order, latency_s, length in session.execute(query)
    ]


def _left(acts: list[_Own]) -> Estimate:
    """How often the side that was shown left is preferred; known answers and repeats apart."""
    sided = [
        act
        for act in acts
        if act.choice in ("a", "b") and act.kind == "pairwise" and act.pool not in ("gold", "repeat")
    ]
    return share(sum("ab".index(str(act.choice)) == act.left for act in sided), len(sided), NO_SIDE)


def _swap(session: Session, who: int, acts: list[_Own]) -> Estimate:
    """How often a pair is judged as before when it comes again with its sides swapped: the same choice of four."""
    again = {act.about_id: act.choice for act in acts if act.pool == "repeat" and act.kind == "pairwise"}
    first = select(Judgment.task_id, Judgment.choice).where(
        Judgment.annotator_id == who, Judgment.task_id.in_(again), counts(Judgment, Window(simulated=True))
    )
    same = [again[task_id] == choice for task_id, choice in session.execute(first)] if again else []
    return share(sum(same), len(same), NO_REPEAT)


def _fast(acts: list[_Own], settings: QualitySettings) -> Estimate:
    """How often a judgment came sooner than its texts can be read."""
    timed = [act for act in acts if act.latency_s is not None]
    fast = sum(float(act.latency_s or 0) < least_s(act.characters, settings) for act in timed)
    return share(fast, len(timed), NO_TIME)


def least_s(characters: int, settings: QualitySettings) -> float:
    """Seconds below which a judgment of so much text is too fast."""
    return max(settings.fast_floor_s, characters / settings.fast_chars_per_s)


def _seconds(acts: list[_Own]) -> Estimate:
    times = [act.latency_s for act in acts if act.latency_s is not None]
    return Estimate(median(times), n=len(times)) if times else missing(NO_TIME)


def _reliability(consensus: Consensus, who: int) -> Estimate:
    if consensus.undefined:
        return Estimate(None, undefined=consensus.undefined)
    return consensus.reliability.get(who) or missing(NOT_SHARED)


def _in(window: Window) -> Any:
    """The condition that a judgment lies in the window, superseded or not."""
    found = Judgment.created_at.is_not(None) if window.since is None else Judgment.created_at >= window.since
    return found if window.simulated else found & ~Judgment.simulated


SORTS: dict[str, Callable[[Track], float]] = {
    "judgments": lambda t: -t.judgments,
    "gold": lambda t: _or_last(t.gold.value),
    "left": lambda t: -abs((t.left.value if t.left.value is not None else 0.5) - 0.5),
    "swap": lambda t: _or_last(t.swap.value),
    "fast": lambda t: -(t.fast.value or 0),
    "seconds": lambda t: _or_last(t.seconds.value),
}
"""Orders of a list, what a lead should look at first; the logins' order is the default."""


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def standing_of(session: Session, people: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Login and standing by person; read anew each time, for it is acted on."""
    from feedback.models import Annotator

    query = (
        select(Person.id, Person.login, Person.role, Person.scripted, Annotator.standing, Annotator.standing_why)
        .outerjoin(Annotator, Annotator.person_id == Person.id)
        .where(Person.id.in_(list(people)))
    )
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in session.execute(query):
        found[row.id] = {
            "login": row.login, "role": row.role, "scripted": row.scripted, "standing": row.standing or "good",
            "why": row.standing_why or "",
        }  # fmt: skip
    return found
