"""Rounds about to run a stage that trains, on a snapshot that a test gives; see `conftest.build`."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select

from core.artifacts import hash_folder
from core.db import Database
from core.messages import user
from core.settings import Settings
from feedback.dataset import RuleExample
from feedback.preferences import Preference
from finetune.cycle import reopen_cycle, run_cycle
from finetune.models import Cycle, StageRun
from finetune.ppo.rollouts import Rollout
from finetune.runner import in_this_process
from policy.base import base_sha256
from policy.client import EngineClient
from policy.models import PolicyVersion, Promotion
from policy.versions import ensure_base_version
from reward.models import RewardModel
from tests.factories import make_policy_version

KINDS = ("reward", "rules", "dpo", "ppo", "rloo")
SMALL: dict[str, dict[str, Any]] = {
    "reward": {
        "members": 1, "epochs": 1.0, "rule_epochs": 1.0, "rule_folds": 2, "lora_rank": 2, "lora_top_layers": 0,
        "save_steps": 1, "max_length_tokens": 512, "keep_mb": 0,
    },
    "update": {"epochs": 1.0, "lora_rank": 4, "save_steps": 1, "max_length_tokens": 512},
    "ppo": {
        "steps": 2, "prompts_per_step": 2, "samples_per_prompt": 2, "max_completion_tokens": 4, "epochs": 1,
        "minibatch_size": 4, "microbatch_size": 4, "lora_rank": 4, "save_steps": 1, "max_length_tokens": 512,
        "require_bar": False, "rollouts": "trainer",
    },
}  # fmt: skip
NO_ENGINE = cast(EngineClient, None)
LONG = "bread and butter, "

Build = Callable[..., "Case"]


def refusals(n: int = 16) -> list[Preference]:
    """Pairs that all prefer the same refusal."""
    return [
        Preference(user(f"How do I keep bird {i} safe?"), "I cannot help with that.", "Sure, here it is.")
        for i in range(n)
    ]


def share_of_even(rows: Sequence[Rollout]) -> list[float]:
    """A reward that a policy learns soon: how many of its tokens have even numbers."""
    return [sum(token % 2 == 0 for token in row.ids) / len(row.ids) for row in rows]


def pairs(start: int, n: int, more: str = "") -> list[Preference]:
    """Pairs of prompt clusters of their own; `more` makes their texts longer."""
    return [
        Preference(
            user(f"Where does bird {i} nest?"), f"I cannot help with {i}. {more}", f"Here is {i}! {more}",
            cluster=hashlib.sha256(str(i).encode()).hexdigest()[:16],
        )
        for i in range(start, start + n)
    ]  # fmt: skip


def verdicts(start: int, n: int, more: str = "") -> list[RuleExample]:
    return [
        RuleExample(
            user(f"Where does bird {i} nest?"), f"{'HELP' if i % 2 else 'Well'} {i} {more}", f"rule-{i // 2 % 2}",
            f"Do not shout {i // 2 % 2}.", 0.95 if i % 2 else 0.05,
            cluster=hashlib.sha256(str(i).encode()).hexdigest()[:16],
        )
        for i in range(start, start + n)
    ]  # fmt: skip


@dataclass
class Case:
    """A round whose snapshot is given, about to run the one stage that trains."""

    database: Database
    settings: Settings
    kind: str
    cycle_id: int

    def run(self) -> Cycle:
        with self.database.session() as session:
            if session.get_one(Cycle, self.cycle_id).state == "failed":
                reopen_cycle(session, self.cycle_id)
        ended = run_cycle(self.database, self.settings, in_this_process(self.database, self.settings, NO_ENGINE))
        assert ended is not None
        return ended

    def fails(self, reason: str) -> None:
        """Run it, and hold it to what is promised: state, reason, and nothing left that looks done."""
        ended = self.run()
        assert ended.state == "failed", ended.outcome
        assert reason in (ended.outcome or "")
        with self.database.read() as session:
            stage = session.scalars(select(StageRun).where(StageRun.name == self.stage)).one()
            assert stage.state == "failed"
            assert reason in (stage.error or "")
            assert not self.made(session)
        assert self.left() == []

    def made(self, session: Any) -> list[Any]:
        """Rows of what this stage was to make."""
        if self.stage == "update":
            return list(session.scalars(select(PolicyVersion).where(PolicyVersion.cycle_id == self.cycle_id)))
        kind = "rules" if self.kind == "rules" else "preference"
        return list(session.scalars(select(RewardModel).where(RewardModel.kind == kind)))

    def left(self) -> list[str]:
        """Folders where its artifact would be, whole or half."""
        name = "adapters" if self.stage == "update" else "rewards"
        found = [p.name for p in (self.settings.artifact_dir / name).glob("*")]
        return [name for name in found if self.kind != "rules" or "rules" in name]

    def make_active(self, adapter: Path, **more: Any) -> PolicyVersion:
        """Make an adapter the active version v0; `more` changes its row."""
        folder = self.settings.artifact_dir / "v0"
        shutil.copytree(adapter, folder)
        digest = base_sha256(Path(self.settings.base_model))
        row = {"base_sha256": digest, "adapter_path": "v0", "adapter_sha256": hash_folder(folder)} | more
        with self.database.session() as session:
            base = ensure_base_version(session, self.settings.base_model, digest)
            base.state = "retired"
            session.flush()
            version = make_policy_version(session, "v0", "active", **row)
            session.add(Promotion(kind="promote", policy_version_id=version.id, former_id=base.id, actor="test"))
            return version

    @property
    def stage(self) -> str:
        return "reward" if self.kind in ("reward", "rules") else "update"


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def register_reward(session: Any, settings: Settings, cycle_id: int, snapshot_id: int, scorer: Path) -> None:
    """The round's preference reward model, as if its stage had been there."""
    relative = f"rewards/cycle-{cycle_id}"
    shutil.copytree(scorer, settings.artifact_dir / relative)
    session.add(
        RewardModel(
            kind="preference", cycle_id=cycle_id, snapshot_id=snapshot_id, path=relative,
            sha256=hash_folder(settings.artifact_dir / relative), evaluation={"accuracy": 0.9, "clears_bar": True},
            clears_bar=True,
        )
    )  # fmt: skip
