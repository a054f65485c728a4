"""Tables of serving: what the guard's checks said of each reply, and replies that may be given again."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, String
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


class CachedReply(Base):
    """A reply that may be given again (`serving.cache`). The table may be emptied at any time.

    Attributes:
        key: of the whole request: version, whose, sampling, conversation.
        scope: of all of it but the question, and of the encoder where it has one.
        question: its embedding, (H,) float16; None where it is not to be found by its meaning.
        literals: of what the question says in numbers, negations and names.
        completion_id: the reply, whose text stands there alone: what is erased there is gone here; the entry goes with it.
    """

    __tablename__ = "cached_reply"
    __table_args__ = (
        Index("ix_cached_reply_scope", "scope", "id"),
        Index("ix_cached_reply_tenant_id", "tenant_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(64))
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))
    question: Mapped[bytes | None] = mapped_column(LargeBinary)
    literals: Mapped[str] = mapped_column(String(64))
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)
