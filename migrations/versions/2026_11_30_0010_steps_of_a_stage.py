"""steps of a stage

Revision: 0010
Follows: 0009

What a training stage tells of its steps while it runs, a row per step; how long a stage still takes and when it said so; the
energy that it took, as estimated; and what trackers made of its steps.
"""

import sqlalchemy as sa
from alembic import op

import core.db


revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stage_step",
        sa.Column("stage_run_id", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(length=20), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["stage_run_id"], ["stage_run.id"], name=op.f("fk_stage_step_stage_run_id_stage_run")),
        sa.PrimaryKeyConstraint("stage_run_id", "part", "step", name=op.f("pk_stage_step")),
    )
    op.add_column("stage_run", sa.Column("left_s", sa.Double(), nullable=True))
    op.add_column("stage_run", sa.Column("told_at", core.db.UtcDateTime(timezone=True), nullable=True))
    op.add_column("stage_run", sa.Column("energy", sa.JSON(), nullable=True))
    op.add_column("stage_run", sa.Column("trackers", sa.JSON(), nullable=True))


def downgrade() -> None:
    for name in ("trackers", "energy", "told_at", "left_s"):
        op.drop_column("stage_run", name)
    op.drop_table("stage_step")
