"""A reward model and rounds of one stage, for tests of what trains. A module that uses them has a fixture `base`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.artifacts import hash_folder, write_json
from core.db import Database
from core.settings import RewardSettings, Settings
from feedback.models import Snapshot
from finetune.cycle import request_cycle
from finetune.models import StageRun
from reward.preference import train_reward
from tests.finetune.cases import SMALL, Build, Case, pairs, register_reward, verdicts, write_rows


@pytest.fixture(scope="module")
def reward_model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the base, for the rounds that need one."""
    out = tmp_path_factory.mktemp("reward") / "out"
    out.mkdir()
    train_reward(
        pairs(0, 12), pairs(1000, 4), base, out.parent / "w", out, RewardSettings(**SMALL["reward"]), device="cpu"
    )
    return out


@pytest.fixture
def build(database: Database, settings: Settings, base: Path, reward_model: Path) -> Build:
    """A function that makes a case of a kind; what it trains on is good unless it is given."""

    def build(
        kind: str,
        train: Sequence[Any] | None = None,
        heldout: Sequence[Any] | None = None,
        *,
        base_model: Path = base,
        scorer: Path = reward_model,
        **changes: Any,
    ) -> Case:
        tiny = settings.model_copy(update={"base_model": str(base_model), "device": "cpu"})
        some = verdicts if kind == "rules" else pairs
        given = (some(0, 24) if train is None else train, some(1000, 8) if heldout is None else heldout)
        preferences = (pairs(0, 12), pairs(1000, 4)) if kind == "rules" else given
        folder = tiny.artifact_dir / "snapshots" / "given"
        folder.mkdir(parents=True)
        for split, rows in zip(("train", "heldout"), preferences, strict=True):
            write_rows(folder / f"{split}.jsonl", rows)
        for split, rows in zip(("train", "heldout"), given if kind == "rules" else ((), ()), strict=True):
            write_rows(folder / f"rules-{split}.jsonl", rows)
        write_json(folder / "manifest.json", {})
        overrides = {name: dict(group) for name, group in SMALL.items()}
        if kind in ("reward", "rules"):
            overrides["reward"] |= changes
        elif kind == "dpo":
            overrides["update"] |= changes
        else:
            of_update = {name: changes.pop(name) for name in ("adapter", "reference") if name in changes}
            overrides["update"] |= of_update | {"method": kind}
            overrides["ppo"] |= changes
        with database.session() as session:
            stage = "reward" if kind in ("reward", "rules") else "update"
            cycle = request_cycle(session, tiny, "manual", stages=("snapshot", stage), overrides=overrides)
            snapshot = Snapshot(content_sha256=hash_folder(folder), path="snapshots/given", manifest={"flip_rate": {}})
            session.add(snapshot)
            session.flush()
            session.add(StageRun(cycle_id=cycle.id, name="snapshot", state="done", result={"snapshot_id": snapshot.id}))
            if kind not in ("reward", "dpo"):
                register_reward(session, tiny, cycle.id, snapshot.id, scorer)
            cycle_id = cycle.id
        return Case(database, tiny, kind, cycle_id)

    return build
