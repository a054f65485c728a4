"""What every stage is given: database, engine client, folders, the cycle's fixed settings, progress."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.db import Database
from core.settings import Settings
from finetune.cycle import StageRecord
from finetune.models import Cycle
from policy.client import EngineClient, ensure_loaded
from policy.models import PolicyVersion
from training.run import Row


@dataclass(frozen=True)
class StageContext:
    """One stage of one cycle, about to run."""

    db: Database
    settings: Settings
    client: EngineClient
    cycle_id: int
    record: StageRecord
    fixed: dict[str, Any]

    @classmethod
    def open(
        cls, db: Database, settings: Settings, client: EngineClient, cycle_id: int, record: StageRecord
    ) -> "StageContext":
        """Read the cycle's settings, which were fixed when it was requested."""
        with db.read() as session:
            fixed = session.get_one(Cycle, cycle_id).settings
        return cls(db, settings, client, cycle_id, record, fixed)

    def stage_settings(self, name: str) -> dict[str, Any]:
        """The cycle's fixed settings of a stage."""
        return dict(self.fixed[name])

    def progress(self, done_frac: float, note: str, rows: Sequence[Row] = ()) -> None:
        """Tell how far the stage is and what its steps were; raises when it should stop."""
        self.record.progress(done_frac, note, rows)

    @property
    def artifact_dir(self) -> Path:
        """Where finished artifacts live."""
        return self.settings.artifact_dir

    def work_dir(self, name: str) -> Path:
        """Scratch of a stage (checkpoints), kept between attempts."""
        return self.settings.var_dir / "work" / f"cycle-{self.cycle_id}" / name

    def ensure_loaded(self, version: PolicyVersion) -> None:
        """Have the engine hold this version, its adapter checked against its recorded hash."""
        ensure_loaded(self.client, version, self.artifact_dir)
