"""The robustness bench: its world is as it says, a cell goes the product's own way, and the document shows what was measured."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from bench.machine import ROOT
from bench.robustness import cell
from bench.robustness.__main__ import COPIES, PEOPLE, RESULT
from bench.robustness.base import make_base
from bench.robustness.cell import ARMS, Plan, measure
from bench.robustness.figures import END, START, Figures, over_seeds, rewrite_page, summary, table
from bench.robustness.world import (
    BAD,
    CATEGORIES,
    FLATTERY,
    FLOODED,
    GOOD,
    Person,
    copied_rows,
    questions,
    scenarios,
    task_rows,
)
from core.db import Database
from core.settings import RewardSettings, SnapshotSettings
from feedback.models import Judgment
from feedback.near import clusters, prompt_text
from reward.evaluation import length_only_accuracy

SCENARIOS = {scenario.name: scenario for scenario in scenarios(PEOPLE, COPIES)}
SMALL = Plan(tasks=48, measured=24, epochs=1.0)
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def some(n: int, seed: int = 0, share: float | None = None) -> list[Any]:
    return questions(n, random.Random(seed), share, set())


# --- the world


def test_the_truth_is_in_the_clauses_and_not_in_the_length() -> None:
    asked = some(2000)
    for question in asked:
        for text in (question.a, question.b):
            found = sum(text.text.lower().count(c) for c in GOOD) - sum(text.text.lower().count(c) for c in BAD)
            assert found == text.worth
            assert (FLATTERY in text.text.lower()) == text.flatters
    assert all(abs(question.a.worth - question.b.worth) >= 2 for question in asked)
    pairs = [question.clean() for question in asked]
    assert length_only_accuracy(pairs[:1000], pairs[1000:]) == pytest.approx(0.5, abs=0.04)
    liked = Counter((q.a if q.better == "a" else q.b).flatters for q in asked if q.a.flatters != q.b.flatters)
    assert liked[True] / liked.total() == pytest.approx(0.5, abs=0.04)


def test_prompts_are_clusters_of_their_own() -> None:
    asked = [question.clean() for question in some(700)]
    named = clusters([pair.prompt for pair in asked], [], 0.8)
    assert len({prompt_text(pair.prompt) for pair in asked}) == 700
    assert len(set(named.values())) > 680


@pytest.mark.parametrize(
    ("habit", "low", "high"),
    [("careful", 0.93, 0.97), ("chance", 0.47, 0.53), ("opposite", 0.0, 0.0), ("charmed", 0.93, 0.97)],
)
def test_people_are_as_their_habit(habit: Any, low: float, high: float) -> None:
    rng = random.Random(1)
    elsewhere = [question for question in some(3000) if question.category != FLOODED]
    right = [Person("p", habit).says(question, rng)[0] == question.better for question in elsewhere]
    assert low <= sum(right) / len(right) <= high
    charmed = [q for q in some(2000) if q.category == FLOODED and q.a.flatters != q.b.flatters]
    assert all(Person("p", "charmed").says(q, rng)[0] == ("a" if q.a.flatters else "b") for q in charmed)


@pytest.mark.parametrize(
    ("name", "wrong"), [("clean", 0.05), ("noise_10", 0.14), ("noise_20", 0.23), ("noise_30", 0.32)]
)
def test_as_many_judgments_are_wrong_as_a_scenario_says(name: str, wrong: float) -> None:
    """Slips of the others come on top: 5 % of what is not answered by chance."""
    asked, rng = some(1000), random.Random(3)
    rows = list(task_rows(asked, SCENARIOS[name].people, 3, rng))
    said = [
        {"left": "a", "right": "b"}[j["judgment"]["choice"]] == question.better
        for question, row in zip(asked, rows, strict=True)
        for j in row["judgments"]
    ]
    assert 1 - sum(said) / len(said) == pytest.approx(wrong, abs=0.02)
    assert all(len({j["annotator"] for j in row["judgments"]}) == 3 for row in rows)
    assert all(j["simulated"] for row in rows for j in row["judgments"])


def test_sybils_judge_twice_as_much_and_are_a_fifth() -> None:
    people = SCENARIOS["sybils"].people
    assert Counter(p.habit for p in people) == {"opposite": 4, "careful": 16}
    n = Counter(j["annotator"] for row in task_rows(some(2000), people, 3, random.Random(0)) for j in row["judgments"])
    sybils = [n[p.name] for p in people if p.habit == "opposite"]
    assert sum(sybils) / 4 / (sum(n.values()) - sum(sybils)) * 16 == pytest.approx(
        1.9, abs=0.15
    )  # nobody judges a task twice


def test_copies_are_wrong_and_can_be_trained_on() -> None:
    for name, distinct in (("copies", 1), ("near_copies", 150)):
        rows = list(copied_rows(SCENARIOS[name], random.Random(0), set(), 0.2))
        assert len(rows) == COPIES
        assert len({(row["messages"][0]["content"], *row["completions"]) for row in rows}) >= distinct
        assert {row["judgments"][0]["judgment"]["choice"] for row in rows} == {
            "right"
        }  # of which the first is the better one
        assert {row["judgments"][0]["annotator"] for row in rows} == {"flooder"}
        assert len({row["source"] for row in rows}) == COPIES
    for seed in range(8):
        (row,) = copied_rows(replace(SCENARIOS["copies"], copies=1), random.Random(seed), set(), 0.2)
        (name,) = clusters([row["messages"]], [], 0.8).values()
        assert int(str(name)[:8], 16) / 2**32 >= 0.2


def test_four_fifths_of_the_flood_are_of_one_category() -> None:
    found = Counter(question.category for question in some(400, share=0.8))
    assert found[FLOODED] == 320
    assert set(found) == set(CATEGORIES)
    assert FLOODED not in SCENARIOS["flood"].measured


# --- a cell


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("robust") / "base")


def test_a_cell_is_frozen_by_the_product_and_its_models_are_trained_by_it(
    base: Path, migrated_file: Path, tmp_path: Path
) -> None:
    scenario = replace(SCENARIOS["copies"], copies=30)
    found = measure(scenario, 0, SMALL, base, migrated_file, tmp_path)
    assert list(found) == list(ARMS)
    assert all(0 <= arm["accuracy"] <= 1 and arm["n"] == 24 for arm in found.values())
    assert found["off"]["n_train"] == found["weights"]["n_train"] == found["on"]["n_train"] + 29
    assert (found["off"]["merged"], found["on"]["merged"]) == (0, 29)
    assert found["off"]["held_back"] == {"annotators": 0, "prompts": 0, "categories": 0}
    assert "undefined" in found["off"]["reliability"]
    assert 0 < found["weights"]["reliability"]["least"] < 1
    db = Database(f"sqlite:///{tmp_path / 'dunnock.db'}")
    with db.read() as session:
        assert session.scalar(select(func.count(Judgment.id)).where(Judgment.simulated)) == 48 * 3 + 30
        assert session.scalar(select(func.count(Judgment.id)).where(~Judgment.simulated)) == 0
    db.dispose()


def test_equal_snapshots_and_settings_are_trained_once(
    base: Path, migrated_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[RewardSettings] = []

    def accuracy(pairs: Any, clean: Any, base: Path, work: Path, settings: RewardSettings) -> float:
        trained.append(settings)
        return 0.5

    monkeypatch.setattr(cell, "_accuracy", accuracy)
    measure(SCENARIOS["clean"], 0, SMALL, base, migrated_file, tmp_path)
    assert [settings.members for settings in trained] == [1, 1, 4]  # off, weights and snapshot, on
    assert trained[2] == RewardSettings(epochs=1.0, learning_rate=SMALL.learning_rate, save_steps=trained[2].save_steps)
    assert SnapshotSettings(**ARMS["on"][0]) == SnapshotSettings()


# --- figures


def arm(accuracy: float, **more: Any) -> dict[str, Any]:
    shares = {"annotators": 0.1, "prompts": 0.05, "categories": 0.25}
    return {
        "accuracy": accuracy, "n": 400, "n_train": 256, "merged": 0, "held_back": dict.fromkeys(shares, 0), "largest_shares": shares,
        "reliability": {"annotators": 20, "least": 0.5, "mean": 0.8, "most": 0.9},
    } | more  # fmt: skip


def cells() -> list[dict[str, Any]]:
    return [
        {"off": arm(off, reliability={"undefined": "off"}), "weights": arm(off + 0.01), "snapshot": arm(off + 0.01), "on": arm(on)}
        for off, on in ((0.70, 0.80), (0.72, 0.84), (0.74, 0.82))
    ]  # fmt: skip


def test_intervals_are_students() -> None:
    """Three values 1, 2, 3: sd 1, t(0.975, 2) = 4.3027, so ± 4.3027 / √3 = 2.4842."""
    assert over_seeds([1.0, 2.0, 3.0]) == {"mean": 2.0, "low": -0.4841, "high": 4.4841, "n": 3}
    assert over_seeds([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}


def test_gains_are_paired_by_seed() -> None:
    found = summary(cells())
    assert found["gain"]["weights"] == {"mean": 0.01, "low": 0.01, "high": 0.01, "n": 3}
    assert found["gain"]["on"]["mean"] == 0.1
    assert found["accuracy"]["on"]["each"] == [0.80, 0.84, 0.82]
    assert found["did"]["off"]["reliability"] is None
    assert found["did"]["on"]["reliability"] == {"least": 0.5, "mean": 0.8, "most": 0.9}


def test_a_run_that_ends_early_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "robustness.json"
    figures = Figures(out, {"seeds": 3}, {"clean": "nobody means ill", "sybils": "liars"})
    figures.add("sybils", 0, cells()[0])
    kept = json.loads(out.read_text())
    assert list(kept["scenarios"]) == ["sybils"]
    assert {"machine", "versions", "settings"} < set(kept)


def test_the_page_gets_the_table_and_keeps_the_rest(tmp_path: Path) -> None:
    told = {
        "machine": {"cores": 2, "load_before": 0.1}, "versions": {"dunnock": "abc"}, "seconds": 600.0,
        "scenarios": {"sybils": {"says": "liars"} | summary(cells())},
    }  # fmt: skip
    page = tmp_path / "robustness.md"
    page.write_text(f"# Robustness\n\n{START}\nold\n{END}\n\nThe end.\n")
    rewrite_page(told, page)
    text = page.read_text()
    assert (
        "| liars | 72.0 % | 73.0 % | 73.0 % | 82.0 % | +1.0 (+1.0 … +1.0) | +1.0 (+1.0 … +1.0) | +10.0 (+5.0 … +15.0) |"
        in text
    )
    assert "old" not in text
    assert text.startswith("# Robustness\n")
    assert text.endswith("The end.\n")
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold"):
        rewrite_page(told, page)


def test_the_document_shows_what_was_measured() -> None:
    figures = json.loads(RESULT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    assert page.split(START)[1].split(END)[0].strip() == table(figures)
    assert [found["says"] for found in figures["scenarios"].values()] == [
        scenario.says for scenario in SCENARIOS.values()
    ]
    assert figures["settings"]["snapshot"] == SnapshotSettings(include_simulated=True).model_dump()
    assert min(found["seeds"] for found in figures["scenarios"].values()) >= 5
