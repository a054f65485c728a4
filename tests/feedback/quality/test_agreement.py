"""Krippendorff's alpha against values worked out by hand, and what counts as an answer."""

import datetime as dt
from fractions import Fraction

import numpy as np
import pytest
from sqlalchemy.orm import Session

from core.db import utcnow
from feedback.quality import agreement as module
from feedback.quality.acts import Window
from feedback.quality.agreement import Agreement, agreement, alpha, resampled
from tests.factories import make_person, make_task
from tests.feedback.quality.rows import checks, judge, make_rule, pairs

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units, five values.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def as_counts(observers: list[list[int | None]], values: int) -> np.ndarray:
    table = np.zeros((len(observers[0]), values), dtype=np.int64)
    for row in observers:
        for unit, answer in enumerate(row):
            if answer is not None:
                table[unit, answer - 1] += 1
    return table


def by_hand(counts: np.ndarray, level: str) -> Fraction:
    """Alpha in whole numbers and fractions, from the definition: every pair of answers one by one."""
    size = counts.shape[1]
    o = [[Fraction(0)] * size for _ in range(size)]
    for row in counts.tolist():
        m = sum(row)
        for c in range(size):
            for k in range(size):
                if m > 1:
                    o[c][k] += Fraction(row[c] * (row[k] - (c == k)), m - 1)
    n_c = [sum(row) for row in o]
    n = sum(n_c)

    def distance(c: int, k: int) -> Fraction:
        if level == "nominal":
            return Fraction(c != k)
        low, high = min(c, k), max(c, k)
        return (sum(n_c[low : high + 1]) - (n_c[c] + n_c[k]) / 2) ** 2

    observed = sum(o[c][k] * distance(c, k) for c in range(size) for k in range(size))
    expected = sum(n_c[c] * (n_c[k] - (c == k)) * distance(c, k) for c in range(size) for k in range(size)) / (n - 1)
    return 1 - observed / expected


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_worked_example_of_the_literature(level: str, published: float) -> None:
    counts = as_counts(OBSERVERS, 5)
    found = alpha(counts, level)
    assert round(found.value, 3) == published
    assert found.value == pytest.approx(float(by_hand(counts, level)), abs=1e-12)
    assert found.n == 11  # one of the twelve was seen by one observer alone
    assert found.low < found.value < found.high <= 1


def test_alpha_by_hand_in_whole_numbers() -> None:
    # Ten units of two: aa ×4, bb ×4, ab ×2. o_ab = 2, n_a = n_b = 10: D_o = 4, D_e = 2·100/19. alpha = 1 - 76/200.
    counts = np.array([[2, 0]] * 4 + [[0, 2]] * 4 + [[1, 1]] * 2)
    assert alpha(counts, "nominal").value == pytest.approx(1 - 76 / 200)


def test_the_interval_is_that_of_the_package_on_resampled_tasks() -> None:
    import krippendorff

    rng = np.random.default_rng(5)
    counts = rng.multinomial(2, [0.5, 0.3, 0.2], size=40)
    tasks = np.arange(40) // 2  # two units a task
    kinds, n_of = module._kinds(counts, tasks)
    drawn = np.random.default_rng(module.SEED).multinomial(20, n_of / 20, size=module.RESAMPLES)
    like = {tuple(module._kinds(counts[2 * t : 2 * t + 2], tasks[:2])[0][0]): t for t in range(20)}
    assert len(like) == len(kinds) < 20
    for level in ("nominal", "ordinal"):
        ours = resampled(counts, level, tasks)
        for b in range(5):
            chosen = [like[tuple(kind)] for kind, n in zip(kinds, drawn[b], strict=True) for _ in range(n)]
            rows = [row for t in chosen for row in (2 * t, 2 * t + 1)]
            theirs = krippendorff.alpha(value_counts=counts[rows], value_domain=[0, 1, 2], level_of_measurement=level)
            assert ours[b] == pytest.approx(theirs, abs=1e-9)


def test_chance_is_near_zero_and_within_its_interval() -> None:
    counts = np.random.default_rng(1).multinomial(2, [0.5, 0.5], size=400)
    found = alpha(counts, "nominal")
    assert found.low < 0 < found.high
    assert abs(found.value) < 0.12


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (np.zeros((0, 2), dtype=np.int64), "only 0 tasks were judged by two people or more; 10 are needed"),
        (np.array([[1, 1]] * 9 + [[1, 0]] * 5), "only 9 tasks"),
        (np.array([[2, 0]] * 12), "all answers are the same"),
        (np.array([[2, 0]] * 29 + [[0, 2]]), "the answers hardly differ"),
    ],
)
def test_undefined_says_why(counts: np.ndarray, words: str) -> None:
    found = alpha(counts, "nominal")
    assert (found.value, found.low, found.high) == (None, None, None)
    assert words in str(found.undefined)
    assert words in found.plain()["undefined"]


def pick(found: list[Agreement], kind: str, name: str = "choice", rule: str | None = None) -> Agreement:
    return next(a for a in found if (a.measure.kind, a.rule) == (kind, rule) and a.measure.name.startswith(name))


def test_each_kind_is_measured(session: Session) -> None:
    ana, ben = make_person(session), make_person(session)
    one, two = make_rule(session), make_rule(session)
    pairs(session, [{ana: "a", ben: "a"}] * 6 + [{ana: "b", ben: "b"}] * 6 + [{ana: "a", ben: "both_bad"}] * 2)
    checks(session, one.id, [{ana: "broken", ben: "broken"}] * 5 + [{ana: "kept", ben: "kept"}] * 5)
    checks(session, two.id, [{ana: "broken", ben: "kept"}] * 5)
    for n in range(12):
        task = make_task(session, "rating", texts=(None,))
        judge(session, task, ana, rating=1 + n % 4, answer={"aspects": {"clear": 2 + n % 2}})
        judge(session, task, ben, rating=2 + n % 4, answer={"aspects": {"clear": 2 + n % 2}})
        task = make_task(session, "ranking", texts=(None, None, None))
        judge(session, task, ana, answer={"ranks": [1, 2, 3] if n % 2 else [3, 2, 1]})
        judge(session, task, ben, answer={"ranks": [1, 2, 2] if n % 2 else [2, 2, 1]})

    found = agreement(session, Window())
    # choice: aa ×6, bb ×6, a+both_bad ×2. o off the diagonal = 4, n = 28, n_a = 14, n_b = 12, n_bb = 2.
    choice = pick(found, "pairwise").alpha
    assert choice.value == pytest.approx(1 - 4 * 27 / (28**2 - 14**2 - 12**2 - 2**2))
    assert choice.n == 14
    assert pick(found, "pairwise", "strength").alpha.n == 12  # "both bad" has no place on the line
    assert pick(found, "pairwise", "strength").alpha.value == 1
    assert pick(found, "rating", "clear").alpha.value == 1
    assert 0 < pick(found, "rating", "overall").alpha.value < 1
    assert "only 0 tasks" in str(pick(found, "rating", "helpful").alpha.undefined)
    ranking = pick(found, "ranking", "which").alpha
    assert ranking.n == 12  # tasks, not the 36 pairs
    assert 0 < ranking.value < 1
    assert pick(found, "rule_check", "verdict").alpha.n == 15
    assert pick(found, "rule_check", "verdict", one.rule.slug).alpha.value == 1
    assert "only 5 tasks" in str(pick(found, "rule_check", "verdict", two.rule.slug).alpha.undefined)


def test_what_does_not_count(session: Session) -> None:
    ana, ben, script = make_person(session), make_person(session), make_person(session, scripted=True)
    done = pairs(session, [{ana: "a", ben: "a"}] * 6 + [{ana: "b", ben: "b"}] * 6)
    before = pick(agreement(session, Window()), "pairwise").alpha
    assert (before.value, before.n) == (1, 12)

    late = make_person(session)
    for task in done:
        judge(session, task, late, choice="b", strength=1, state="surplus")
    for pool in ("gold", "repeat", "adjudication"):
        for task in pairs(session, [{ana: "a", ben: "b"}] * 3):
            task.pool = pool
    pairs(session, [{ana: "a", script: "b"}] * 12)
    session.flush()
    assert pick(agreement(session, Window()), "pairwise").alpha == before

    with_script = pick(agreement(session, Window(simulated=True)), "pairwise").alpha
    assert with_script.n == 24
    assert with_script.value < 1


def test_a_changed_mind_counts_as_it_is_now(session: Session) -> None:
    ana, ben = make_person(session), make_person(session)
    done = pairs(session, [{ana: "a", ben: "b"}] * 6 + [{ana: "b", ben: "b"}] * 6)
    from feedback.models import Judgment

    for task in done[:6]:
        old = session.query(Judgment).filter_by(task_id=task.id, annotator_id=ana.id).one()
        session.add(
            Judgment(
                kind="pairwise", task_id=task.id, assignment_id=old.assignment_id, annotator_id=ana.id, choice="b",
                strength=2, supersedes_id=old.id,
            )
        )  # fmt: skip
    session.flush()
    found = pick(agreement(session, Window()), "pairwise").alpha
    assert found.n == 12
    assert "all answers are the same" in str(found.undefined)


def test_only_the_newest_tasks_are_looked_at(session: Session) -> None:
    ana, ben = make_person(session), make_person(session)
    pairs(session, [{ana: "a", ben: "b"}] * 10)
    pairs(session, [{ana: "a", ben: "a"}] * 10 + [{ana: "b", ben: "b"}] * 10)
    assert pick(agreement(session, Window(tasks=20)), "pairwise").alpha.value == 1
    assert pick(agreement(session, Window(tasks=30)), "pairwise").alpha.value < 1


def test_weeks_begin_on_monday(session: Session) -> None:
    ana, ben = make_person(session), make_person(session)
    sunday = dt.datetime(2026, 11, 8, 23, 59, tzinfo=dt.UTC)
    assert sunday.weekday() == 6
    pairs(session, [{ana: "a", ben: "a"}, {ana: "b", ben: "b"}] * 6, at=sunday)
    pairs(session, [{ana: "a", ben: "b"}, {ana: "b", ben: "b"}] * 6, at=sunday + dt.timedelta(minutes=2))
    found = [a for a in agreement(session, Window()) if a.week and a.measure.kind == "pairwise"]
    assert [(a.week, a.alpha.n) for a in found] == [(dt.date(2026, 11, 2), 12), (dt.date(2026, 11, 9), 12)]
    assert found[0].alpha.value == 1
    assert found[1].alpha.value < 0.5
    tomorrow = Window(since=utcnow() + dt.timedelta(days=1))
    assert not any(a.week for a in agreement(session, tomorrow))
