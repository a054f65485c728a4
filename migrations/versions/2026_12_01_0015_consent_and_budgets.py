"""consent, retention and the budgets of sampled tasks

Revision: 0015
Follows: 0014

A completion keeps what its caller's words may be used for, a keyed hash of the end user it was written for, and when its text
was taken away; a tenant, what holds where its calls do not say. What is there already was made without a word on it, and
stays usable as it was. Tasks made of served replies are counted by day and reason.

Down: the words are forgotten, so what was kept for the service alone could be learnt from; such texts are emptied first.
"""

import sqlalchemy as sa
from alembic import op

import core.db

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

OF_USERS = sa.text("user_key IS NOT NULL")
KEPT = sa.text("erased_at IS NULL AND source IN ('served','withheld','paired')")
CONSENT = "consent IS NULL OR consent IN ('none','service','training')"


def upgrade() -> None:
    op.create_table(
        "sampled_day",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("reason", sa.String(length=12), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("left_out", sa.Integer(), nullable=False),
        sa.CheckConstraint("asked >= 0 AND left_out >= 0", name=op.f("ck_sampled_day_counts")),
        sa.PrimaryKeyConstraint("day", "reason", name=op.f("pk_sampled_day")),
    )
    with op.batch_alter_table("tenant") as table:
        table.add_column(sa.Column("consent", sa.String(length=10), nullable=True))
        table.add_column(sa.Column("retention_days", sa.Integer(), nullable=True))
        table.create_check_constraint(op.f("ck_tenant_consent"), CONSENT)
        table.create_check_constraint(op.f("ck_tenant_retention_days"), "retention_days IS NULL OR retention_days >= 0")
    with op.batch_alter_table("completion") as table:
        table.add_column(sa.Column("consent", sa.String(length=10), nullable=True))
        table.add_column(sa.Column("user_key", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("erased_at", core.db.UtcDateTime(timezone=True), nullable=True))
        table.create_check_constraint(op.f("ck_completion_consent"), CONSENT)
    op.create_index(
        "ix_completion_user_key", "completion", ["user_key"], sqlite_where=OF_USERS, postgresql_where=OF_USERS
    )
    op.create_index("ix_completion_kept", "completion", ["created_at"], sqlite_where=KEPT, postgresql_where=KEPT)


def downgrade() -> None:
    op.execute("UPDATE completion SET text = '' WHERE consent IN ('none','service')")
    op.drop_index("ix_completion_kept", table_name="completion")
    op.drop_index("ix_completion_user_key", table_name="completion")
    with op.batch_alter_table("completion") as table:
        table.drop_constraint(op.f("ck_completion_consent"), type_="check")
        for name in ("erased_at", "user_key", "consent"):
            table.drop_column(name)
    with op.batch_alter_table("tenant") as table:
        table.drop_constraint(op.f("ck_tenant_retention_days"), type_="check")
        table.drop_constraint(op.f("ck_tenant_consent"), type_="check")
        for name in ("retention_days", "consent"):
            table.drop_column(name)
    op.drop_table("sampled_day")
