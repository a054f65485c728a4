"""energy of replies

Revision: 0016
Follows: 0015

Completions say what the engine took for them, estimated.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("completion") as table:
        table.add_column(sa.Column("energy_j", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("completion") as table:
        table.drop_column("energy_j")
