"""The flip rate: the formula, its sources, what it comes to in a simulated crowd, and how a snapshot keeps it."""

import json
import random
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from access.models import Person
from core.settings import SnapshotSettings
from feedback.dataset import freeze
from feedback.models import Judgment, Task, TaskItem
from feedback.quality.acts import Window
from feedback.quality.flips import flip_rate, flip_rates, from_agreement
from feedback.tasks import create_gold
from tests.factories import make_completion, make_person, make_prompt, make_task
from tests.feedback.quality.rows import choose, judge, pairs


@pytest.mark.parametrize(("agree", "epsilon"), [(100, 0.0), (82, 0.1), (68, 0.2), (58, 0.3)])
def test_the_formula(agree: int, epsilon: float) -> None:
    assert (1 - epsilon) ** 2 + epsilon**2 == pytest.approx(agree / 100)
    found = from_agreement([(1, 1)] * agree + [(1, 0)] * (100 - agree), "overlap")
    assert found.value == pytest.approx(epsilon)
    assert (found.n, found.source) == (100, "overlap")
    assert found.low <= epsilon < found.high <= 0.5


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([(1, 1)] * 29, "only 29 pairs have two people who each preferred a side; 30 are needed"),
        ([(1, 1)] * 20 + [(1, 0)] * 20, "no more often than chance (50.0 % of 40)"),
    ],
)
def test_undefined_says_why(tasks: list[tuple[int, int]], words: str) -> None:
    found = from_agreement(tasks, "overlap")
    assert found.value is None
    assert words in str(found.undefined)


def test_many_reports_of_few_pairs_are_not_many_pairs() -> None:
    few = from_agreement([(10, 10), (10, 4)] * 20, "overlap")
    many = from_agreement([(1, 1)] * 280 + [(1, 0)] * 120, "overlap")
    assert few.value == pytest.approx(many.value)
    assert few.high - few.low > 1.5 * (many.high - many.low)


@pytest.mark.parametrize("epsilon", [0.05, 0.15, 0.3])
def test_a_simulated_crowd_lies_in_the_interval_as_often_as_it_says(epsilon: float) -> None:
    rng = random.Random(11)
    inside = 0
    for _ in range(200):
        tasks = []
        for _ in range(150):
            wrong = [rng.random() < epsilon for _ in range(3)]
            same = [wrong[0] == wrong[1], wrong[0] == wrong[2], wrong[1] == wrong[2]]
            tasks.append((3, sum(same)))
        found = from_agreement(tasks, "overlap")
        inside += found.value is not None and found.low <= epsilon <= found.high
    assert inside >= 180  # 95 % of 200 is 190; 180 has a chance of 1 in 700 then


def crowd(session: Session, n: int, disagree: int, people: tuple[Person, Person]) -> list[Task]:
    ana, ben = people
    return pairs(session, [{ana: "a", ben: "b" if i < disagree else "a"} for i in range(n)])


def test_overlap_comes_first(either: Session) -> None:
    ana, ben = make_person(either), make_person(either)
    assert "no source has enough" in str(flip_rate(either).undefined)
    crowd(either, 100, 18, (ana, ben))
    pairs(either, [{ana: "tie", ben: "a"}, {ana: "both_bad", ben: "b"}] * 10)  # no side is turned round
    found = flip_rate(either)
    assert (found.source, found.n) == ("overlap", 100)
    assert found.value == pytest.approx(0.1)


def test_simulated_judgments_are_no_peoples(session: Session) -> None:
    crowd(session, 40, 4, (make_person(session, scripted=True), make_person(session, scripted=True)))
    assert flip_rate(session).value is None
    assert flip_rate(session, Window(simulated=True)).value is not None


def repeat(session: Session, first: Task, person: Person, choice: str) -> None:
    task = Task(
        kind="pairwise", source=f"repeat:{first.id}:{person.id}", prompt_id=first.prompt_id, about_id=first.id,
        pool="repeat", items=[TaskItem(position=i.position, completion_id=i.completion_id) for i in first.items],
    )  # fmt: skip
    session.add(task)
    session.flush()
    choose(session, task, {person: choice}, order=[1, 0])


def test_repeats_then_gold(either: Session) -> None:
    ana, ben = make_person(either), make_person(either)
    for n, task in enumerate(pairs(either, [{ana: "a"}] * 40)):
        repeat(either, task, ana, "b" if n < 4 else "a")
        repeat(either, task, ben, "b")  # ben never judged it before: no repeat of his
    found = flip_rates(either)
    assert found["overlap"].value is None
    assert found["repeats"].n == 40
    assert found["repeats"].value == pytest.approx((1 - (2 * 0.9 - 1) ** 0.5) / 2)
    assert flip_rate(either).source == "repeats"

    prompt = make_prompt(either)
    ids = [make_completion(either, prompt).id for _ in range(2)]
    gold = create_gold(either, "pairwise", prompt.id, ids, {"choice": ["a", "tie"]}, source="gold:1")
    vague = create_gold(either, "pairwise", prompt.id, ids, {"choice": ["a", "b"]}, source="gold:2")
    for n in range(40):
        person = make_person(either)
        judge(either, gold, person, choice="b" if n < 6 else "a", strength=1)
        judge(either, vague, person, choice="b", strength=1)
    by_gold = flip_rates(either)["gold"]
    assert (by_gold.value, by_gold.n) == (pytest.approx(6 / 40), 40)
    assert flip_rate(either).source == "repeats"


def test_a_snapshot_is_frozen_with_it(session: Session, tmp_path: Path) -> None:
    ana, ben = make_person(session), make_person(session)
    for n in range(50):
        prompt = make_prompt(session, f"{n} {random.Random(n).random()} question about the bird of number {n * 7919}")
        task = make_task(session, "pairwise", prompt)
        choose(session, task, {ana: "a", ben: "tie" if n < 8 else "b" if n < 15 else "a"})
    settings = SnapshotSettings()
    snapshot = freeze(session, tmp_path, settings)
    kept = json.loads((tmp_path / snapshot.path / "manifest.json").read_text())["flip_rate"]
    assert kept == flip_rate(session).plain()
    assert (kept["source"], kept["n"]) == ("overlap", 42)
    assert 0 < kept["low"] < kept["value"] < kept["high"] < 0.5
    assert freeze(session, tmp_path, settings).id == snapshot.id  # the same judgments, the same hash

    session.query(Judgment).order_by(Judgment.id.desc()).first().surplus = True
    session.flush()
    assert freeze(session, tmp_path, settings).content_sha256 != snapshot.content_sha256
