"""the guard's model

Revision: 0012
Follows: 0011

A cycle may distil its rule reward model into one that is asked about every stream. On the way down these are lost: the older
schema has no kind for them.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("reward_model") as table:
        table.drop_constraint(op.f("ck_reward_model_kind"), type_="check")
        table.create_check_constraint(op.f("ck_reward_model_kind"), "kind IN ('preference','rules','guard')")


def downgrade() -> None:
    op.execute("DELETE FROM reward_model WHERE kind = 'guard'")
    with op.batch_alter_table("reward_model") as table:
        table.drop_constraint(op.f("ck_reward_model_kind"), type_="check")
        table.create_check_constraint(op.f("ck_reward_model_kind"), "kind IN ('preference','rules')")
