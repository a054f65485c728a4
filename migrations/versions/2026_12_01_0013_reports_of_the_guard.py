"""reports of the guard

Revision: 0013
Follows: 0012

What the guard's checks said of each reply and its prompt. Replies of before have no row: they were not scanned, and nothing says that
they were.
"""

import sqlalchemy as sa
from alembic import op

import core.db

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "guard_report",
        sa.Column("completion_id", sa.String(length=40), nullable=False),
        sa.Column("outcome", sa.String(length=12), nullable=False),
        sa.Column("cut", sa.Boolean(), nullable=False),
        sa.Column("rule_version_id", sa.Integer(), nullable=True),
        sa.Column("verdicts", sa.JSON(), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('clear','not_scanned','timed_out','hit')", name=op.f("ck_guard_report_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completion.id"], name=op.f("fk_guard_report_completion_id_completion")
        ),
        sa.ForeignKeyConstraint(
            ["rule_version_id"], ["rule_version.id"], name=op.f("fk_guard_report_rule_version_id_rule_version")
        ),
        sa.PrimaryKeyConstraint("completion_id", name=op.f("pk_guard_report")),
    )
    op.create_index("ix_guard_report_outcome", "guard_report", ["outcome", "created_at"])
    op.create_index(op.f("ix_guard_report_rule_version_id"), "guard_report", ["rule_version_id"])


def downgrade() -> None:
    op.drop_table("guard_report")
