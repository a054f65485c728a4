"""reward models of two kinds

Revision: 0008
Follows: 0007

A cycle makes a reward model of preferences and, where there are enough verdicts, one of rules. On the way down those of
rules are lost: the older schema has one model per cycle.
"""

import sqlalchemy as sa
from alembic import op


revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("reward_model") as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(length=12), nullable=False, server_default="preference"))
        batch_op.drop_constraint(op.f("uq_reward_model_cycle_id"), type_="unique")
        batch_op.create_unique_constraint(op.f("uq_reward_model_cycle_id_kind"), ["cycle_id", "kind"])
        batch_op.create_check_constraint(op.f("ck_reward_model_kind"), "kind IN ('preference','rules')")
    with op.batch_alter_table("reward_model") as batch_op:
        batch_op.alter_column("kind", existing_type=sa.String(length=12), server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM reward_model WHERE kind <> 'preference'")
    with op.batch_alter_table("reward_model") as batch_op:
        batch_op.drop_constraint(op.f("ck_reward_model_kind"), type_="check")
        batch_op.drop_constraint(op.f("uq_reward_model_cycle_id_kind"), type_="unique")
        batch_op.create_unique_constraint(op.f("uq_reward_model_cycle_id"), ["cycle_id"])
        batch_op.drop_column("kind")
