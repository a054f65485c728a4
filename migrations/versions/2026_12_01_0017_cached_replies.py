"""cached replies

Revision: 0017
Follows: 0016

Replies that may be given again stand in a table of their own: it may be emptied at any time, and holds a question as numbers alone, and no text: that is its completion's, and is erased with it. A
completion that repeats one says which; that may be erased before it, so it is no foreign key.
"""

import sqlalchemy as sa
from alembic import op

import core.db

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("completion") as table:
        table.add_column(sa.Column("cached_from", sa.String(length=40), nullable=True))
    op.create_table(
        "cached_reply",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("scope", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=True),
        sa.Column("question", sa.LargeBinary(), nullable=True),
        sa.Column("literals", sa.String(length=64), nullable=False),
        sa.Column("completion_id", sa.String(length=40), nullable=False),
        sa.Column("expires_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_cached_reply_tenant_id_tenant")),
        sa.ForeignKeyConstraint(
            ["completion_id"],
            ["completion.id"],
            name=op.f("fk_cached_reply_completion_id_completion"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cached_reply")),
        sa.UniqueConstraint("key", name=op.f("uq_cached_reply_key")),
    )
    op.create_index("ix_cached_reply_scope", "cached_reply", ["scope", "id"])
    op.create_index("ix_cached_reply_tenant_id", "cached_reply", ["tenant_id", "id"])
    op.create_index("ix_cached_reply_completion_id", "cached_reply", ["completion_id"])
    op.create_index("ix_cached_reply_expires_at", "cached_reply", ["expires_at"])


def downgrade() -> None:
    op.drop_table("cached_reply")
    with op.batch_alter_table("completion") as table:
        table.drop_column("cached_from")
