"""Table of trained reward models."""

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, utcnow


class RewardModel(Base):
    """A trained and reloaded reward model, with its held-out accuracy beside a length-only baseline."""

    __tablename__ = "reward_model"

    id: Mapped[int] = mapped_column(primary_key=True)
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycle.id"), unique=True)
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"))
    path: Mapped[str] = mapped_column(Text)  # relative to the artifact folder
    sha256: Mapped[str] = mapped_column(String(64))
    evaluation: Mapped[dict[str, Any]]  # accuracy, n, low, high, length_only, dropped
    clears_bar: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
