"""Tables of the guard: what its checks said of each reply."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, utcnow


class GuardReport(Base):
    """What the guard said of a reply and its prompt. No text stands here.

    A check that could not look, or not in time, says so: what was not scanned is never recorded as clear.

    Attributes:
        outcome: the gravest of all verdicts.
        cut: whether the reply was held back, in part or whole.
        rule_version_id: the rule that was found to be broken, with the words that it had.
        verdicts: of each check, and of each rule with its version (`serving.guard.verdicts.Verdict.as_json`).
    """

    __tablename__ = "guard_report"
    __table_args__ = (
        CheckConstraint("outcome IN ('clear','not_scanned','timed_out','hit')", name="outcome"),
        Index("ix_guard_report_outcome", "outcome", "created_at"),
    )

    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(12))
    cut: Mapped[bool]
    rule_version_id: Mapped[int | None] = mapped_column(ForeignKey("rule_version.id"), index=True)
    verdicts: Mapped[list[Any]]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
