"""versions remember their parent

Revision: 0011
Follows: 0010

A policy version whose adapter continues another's names that one. Versions of before began at the base, all of them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("policy_version") as table:
        table.add_column(sa.Column("parent_id", sa.Integer(), nullable=True))
        table.create_foreign_key(
            op.f("fk_policy_version_parent_id_policy_version"), "policy_version", ["parent_id"], ["id"]
        )


def downgrade() -> None:
    with op.batch_alter_table("policy_version") as table:
        table.drop_constraint(op.f("fk_policy_version_parent_id_policy_version"), type_="foreignkey")
        table.drop_column("parent_id")
