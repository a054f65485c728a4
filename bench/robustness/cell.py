"""One cell of the table: a scenario and a seed, from judgments in a database to the accuracy of reward models.

All arms of a cell are frozen from one database and measured on the same clean pairs, so that their differences are paired.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import policy.models  # noqa: F401 (a table that completions point to)
from bench.robustness.world import Scenario, copied_rows, questions, task_rows
from core.db import Database
from core.settings import RewardSettings, SnapshotSettings
from feedback.dataset import Preference, freeze, load_pairs
from feedback.exchange.loading import load
from feedback.exchange.reading import Read
from feedback.exchange.rows import read_row
from reward.preference import train_reward

OFF: dict[str, Any] = {
    "reliability_weights": False, "merge_doubles": False, "max_annotator_share": 1.0, "max_prompt_share": 1.0,
    "max_category_share": 1.0,
}  # fmt: skip
ALONE: dict[str, Any] = {"members": 1, "sd_weight": 0.0}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "off": (OFF, ALONE),
    "weights": (OFF | {"reliability_weights": True}, ALONE),
    "snapshot": ({}, ALONE),
    "on": ({}, {}),
}
"""Settings of the snapshot and of the reward model that differ from the product's own: nothing; the weights alone; all that a
snapshot does, with one member; and all, with an ensemble."""


NO_CHECKPOINTS = 100_000
"""Steps between checkpoints: a run of seconds is begun anew."""


@dataclass(frozen=True)
class Plan:
    """How large a cell is, and what the tiny base needs.

    Attributes:
        tasks: pairs that are judged, held-out ones of the snapshot included.
        required_n: people who judge each.
        measured: clean pairs that the models are measured on.
        epochs, learning_rate: of the reward models; everything else that decides a result is the product's own.
    """

    tasks: int = 240
    required_n: int = 3
    measured: int = 300
    epochs: float = 3.0
    learning_rate: float = 1e-2

    def reward(self, seed: int, **more: Any) -> RewardSettings:
        """The settings that the stage `reward` would have."""
        return RewardSettings(
            epochs=self.epochs, learning_rate=self.learning_rate, save_steps=NO_CHECKPOINTS, seed=seed, **more
        )  # fmt: skip


def measure_apart(scenario: Scenario, seed: int, plan: Plan, base: Path, empty: Path) -> dict[str, Any]:
    """A cell in a process of its own, by one thread, in a folder that is gone afterwards."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dk-robust-") as work:
        return measure(scenario, seed, plan, base, empty, Path(work))


def measure(scenario: Scenario, seed: int, plan: Plan, base: Path, empty: Path, work: Path) -> dict[str, Any]:
    """The accuracy of each arm, and what its snapshot told: {arm: {accuracy, n_train, …}}.

    Args:
        empty: a database file with the newest schema and nothing in it.
        work: an empty folder.
    """
    # Not `hash`, which is another in each process.
    rng = random.Random(f"{scenario.name} {seed}")
    known: set[str] = set()
    asked = questions(plan.tasks, rng, scenario.share, known)
    rows = [
        *task_rows(asked, scenario.people, plan.required_n, rng),
        *copied_rows(scenario, rng, known, SnapshotSettings().heldout_frac),
    ]
    clean = [q.clean() for q in questions(plan.measured, rng, None, known) if q.category in scenario.measured]
    database = work / "dunnock.db"
    shutil.copy(empty, database)
    db = Database(f"sqlite:///{database}")
    report = load(db, (Read(n, read_row(row, n)) for n, row in enumerate(rows)), "bench")
    if report.errors or report.tasks != len(rows):
        raise RuntimeError(f"{report.tasks} of {len(rows)} tasks went in: {report.errors[:3]}")
    found: dict[str, Any] = {}
    frozen: dict[str, tuple[Path, dict[str, Any]]] = {}
    trained: dict[str, float] = {}
    for arm, (snapshot_more, reward_more) in ARMS.items():
        asked_for = json.dumps(snapshot_more)
        if asked_for not in frozen:
            frozen[asked_for] = _frozen(db, work / "artifacts", snapshot_more)
        path, manifest = frozen[asked_for]
        pairs = load_pairs(path, "train", ties=True)
        settings = plan.reward(seed, **reward_more)
        key = f"{settings.model_dump_json()} {(path / 'train.jsonl').read_text(encoding='utf-8')}"
        if key not in trained:  # equal pairs and settings give equal models
            trained[key] = _accuracy(pairs, clean, base, work / arm, settings)
        found[arm] = {"accuracy": trained[key], "n": len(clean), **_told(manifest, pairs)}
    db.dispose()
    return found


def _frozen(db: Database, artifacts: Path, more: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder of a snapshot and its manifest; its row is taken back, so that no arm's judgments are of an older round."""
    with db.session() as session:
        snapshot = freeze(session, artifacts, SnapshotSettings(include_simulated=True, **more))
        found = artifacts / snapshot.path, snapshot.manifest
        session.rollback()
    return found


def _accuracy(
    pairs: Sequence[Preference], clean: Sequence[Preference], base: Path, work: Path, settings: RewardSettings
) -> float:
    out = work / "out"
    out.mkdir(parents=True)
    facts = train_reward(pairs, clean, base, work / "checkpoints", out, settings, device="cpu")
    if facts["n"] != len(clean):
        raise RuntimeError(
            f"{facts['n']} of {len(clean)} clean pairs were measured; {facts['dropped_long_heldout']} are too long"
        )
    accuracy: float = facts["accuracy"]
    shutil.rmtree(work)
    return accuracy


def _told(manifest: dict[str, Any], pairs: Sequence[Preference]) -> dict[str, Any]:
    """What the snapshot's manifest says of its defences, in a line."""
    counts, shares = manifest["counts"], manifest["shares"]
    return {
        "n_train": len(pairs),
        "merged": counts.get("merged_equal", 0) + counts.get("merged_near", 0),
        "held_back": {name: facts.get("held_back", 0) for name, facts in shares.items()},
        "largest_shares": {name: facts.get("left") for name, facts in shares.items()},
        "reliability": manifest["weights"]["pairs"],
    }
