"""Table of trained reward models, and which of them may be used."""

import datetime as dt
from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, String, Text, UniqueConstraint, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.db import Base, utcnow

Kind = Literal["preference", "rules", "guard"]


class RewardModel(Base):
    """A trained and reloaded reward model, with what it made of held-out judgments."""

    __tablename__ = "reward_model"
    __table_args__ = (
        UniqueConstraint("cycle_id", "kind"),
        CheckConstraint("kind IN ('preference','rules','guard')", name="kind"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(12), default="preference")
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycle.id"))
    snapshot_id: Mapped[int] = mapped_column(ForeignKey("snapshot.id"))
    path: Mapped[str] = mapped_column(Text)  # relative to the artifact folder
    sha256: Mapped[str] = mapped_column(String(64))
    evaluation: Mapped[
        dict[str, Any]
    ]  # what `reward.preference`, `reward.rules` or `reward.guard.distil` found, without the log
    clears_bar: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


def newest_model(session: Session, kind: Kind) -> RewardModel | None:
    """The newest reward model of a kind, whatever it is worth."""
    return session.scalar(select(RewardModel).where(RewardModel.kind == kind).order_by(RewardModel.id.desc()).limit(1))


def guard_in_force(session: Session) -> RewardModel | None:
    """The guard's model that replies are held to: the newest that clears its bar."""
    found = select(RewardModel).where(RewardModel.kind == "guard", RewardModel.clears_bar)
    return session.scalar(found.order_by(RewardModel.id.desc()).limit(1))


def bar_words(evaluation: dict[str, Any]) -> str:
    """Why a preference reward model does not clear its bar."""
    return (
        f"its accuracy has a lower 95 % bound of {evaluation['low']:.3f}, not above the length-only baseline's"
        f" {evaluation['length_only']:.3f}"
    )
