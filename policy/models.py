"""Tables of policy versions, gate reports and promotions."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from core.db import Base, utcnow

STATES = ("candidate", "canary", "active", "retired", "refused")


class PolicyVersion(Base):
    """Base model + adapter, under an immutable name. At most one is active, and the database holds to that."""

    __tablename__ = "policy_version"
    __table_args__ = (
        CheckConstraint("state IN ('candidate','canary','active','retired','refused')", name="state"),
        Index(
            "uq_policy_version_one_active",
            "state",
            unique=True,
            sqlite_where=text("state = 'active'"),
            postgresql_where=text("state = 'active'"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(60), unique=True)
    state: Mapped[str] = mapped_column(String(12), default="candidate")
    base_model: Mapped[str] = mapped_column(Text)
    base_sha256: Mapped[str] = mapped_column(String(64))
    adapter_path: Mapped[str | None] = mapped_column(Text)  # relative to the artifact folder; None is the base itself
    adapter_sha256: Mapped[str | None] = mapped_column(String(64))
    reference: Mapped[str | None] = mapped_column(String(60))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("policy_version.id"))  # whose adapter this one continues
    cycle_id: Mapped[int | None] = mapped_column(ForeignKey("cycle.id"), unique=True)
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshot.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class GateReport(Base):
    """What the gate measured of a candidate beside the incumbent, and its verdict."""

    __tablename__ = "gate_report"

    id: Mapped[int] = mapped_column(primary_key=True)
    policy_version_id: Mapped[int] = mapped_column(ForeignKey("policy_version.id"), unique=True)
    incumbent_id: Mapped[int] = mapped_column(ForeignKey("policy_version.id"))
    passed: Mapped[bool]
    checks: Mapped[list[Any]]
    evidence: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Promotion(Base):
    """Append-only history of what was active: the last row names the active version. Rollback is one more row.

    `once` makes a promotion idempotent: a killed and resumed cycle cannot promote twice.
    """

    __tablename__ = "promotion"
    __table_args__ = (CheckConstraint("kind IN ('first','promote','rollback')", name="kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    policy_version_id: Mapped[int] = mapped_column(ForeignKey("policy_version.id"))
    former_id: Mapped[int | None] = mapped_column(ForeignKey("policy_version.id"))
    gate_report_id: Mapped[int | None] = mapped_column(ForeignKey("gate_report.id"))
    once: Mapped[str | None] = mapped_column(String(60), unique=True)
    actor: Mapped[str] = mapped_column(String(120))
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
