"""Tables of cycles, their stages and the lease that keeps them one at a time."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, utcnow


class Cycle(Base):
    """One round of the loop. Its settings are fixed when it is requested."""

    __tablename__ = "cycle"
    __table_args__ = (
        CheckConstraint(
            "state IN ('requested','running','promoted','refused','done','failed','cancelled')", name="state"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(12), default="requested")
    reason: Mapped[str] = mapped_column(String(40))  # manual | cron | judgments | demo
    settings: Mapped[dict[str, Any]]
    outcome: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]


class StageRun(Base):
    """One stage of a cycle: a finished one is never run again."""

    __tablename__ = "stage_run"
    __table_args__ = (
        UniqueConstraint("cycle_id", "name"),
        CheckConstraint("state IN ('running','done','failed')", name="state"),
        Index("ix_stage_run_cycle", "cycle_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycle.id"))
    name: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(10), default="running")
    progress: Mapped[float] = mapped_column(default=0.0)
    note: Mapped[str] = mapped_column(Text, default="")
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(default=1)
    seconds: Mapped[float] = mapped_column(default=0.0)  # over all attempts
    peak_mb: Mapped[float] = mapped_column(default=0.0)
    left_s: Mapped[float | None]  # as it was estimated at told_at
    told_at: Mapped[dt.datetime | None]
    energy: Mapped[dict[str, Any] | None]  # over all attempts, as far as they told; see training.energy
    trackers: Mapped[list[Any] | None]  # of the last attempt; see training.tracking
    started_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    finished_at: Mapped[dt.datetime | None]

    def still_s(self) -> float | None:
        """Seconds that it still takes, as far as it is running and can be estimated; they pass while it is silent."""
        if self.state != "running" or self.left_s is None or self.told_at is None:
            return None
        left = self.left_s - (utcnow() - self.told_at).total_seconds()
        return left if left > 0 else None


class StageStep(Base):
    """What a stage told of one of its training steps. Steps of one part are counted through, from 1."""

    __tablename__ = "stage_step"

    stage_run_id: Mapped[int] = mapped_column(ForeignKey("stage_run.id"), primary_key=True)
    part: Mapped[str] = mapped_column(String(20), primary_key=True, default="")  # of a stage that trains several models
    step: Mapped[int] = mapped_column(primary_key=True)
    figures: Mapped[dict[str, Any]]


class Lease(Base):
    """A named lease: one row, one holder, taken by a conditional UPDATE."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(120))
    expires_at: Mapped[dt.datetime | None]
