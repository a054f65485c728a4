"""tenants

Revision: 0014
Follows: 0013

Programs of customers call the chat API under limits and a policy version of their own, and share no prompts: equal
conversations are one row within a tenant, or within the house, which is what everything from before belongs to. NULLs in a
unique index differ on both databases, so the house has an index of its own. The paces of requests are not logged on
PostgreSQL: a crash may lose them.

Down: tenants' keys are revoked, and prompts that were apart become one row again.
"""

import sqlalchemy as sa
from alembic import op

import core.db

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

OF_HOUSE = sa.text("tenant_id IS NULL")
OF_TENANTS = sa.text("tenant_id IS NOT NULL")
PROMPT = sa.table("prompt", sa.column("id", sa.Integer), sa.column("messages_sha256", sa.String))


def upgrade() -> None:
    op.create_table(
        "tenant",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=60), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("tokens_per_day", sa.BigInteger(), nullable=True),
        sa.Column("policy_version", sa.String(length=60), nullable=True),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "requests_per_minute IS NULL OR requests_per_minute > 0", name=op.f("ck_tenant_requests_per_minute")
        ),
        sa.CheckConstraint("tokens_per_day IS NULL OR tokens_per_day > 0", name=op.f("ck_tenant_tokens_per_day")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("key", name=op.f("uq_tenant_key")),
    )
    op.create_table(
        "tenant_usage",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_tenant_usage_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("tenant_id", "day", name=op.f("pk_tenant_usage")),
    )
    op.create_table(
        "pace",
        sa.Column("subject", sa.String(length=40), nullable=False),
        sa.Column("paid_until_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_pace")),
        prefixes=[] if op.get_bind().dialect.name == "sqlite" else ["UNLOGGED"],
    )
    for name in ("person", "api_key", "completion", "rule", "prompt"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("tenant_id", sa.Integer(), nullable=True))
            table.create_foreign_key(op.f(f"fk_{name}_tenant_id_tenant"), "tenant", ["tenant_id"], ["id"])
            if name == "person":
                table.create_unique_constraint(op.f("uq_person_tenant_id"), ["tenant_id"])
            if name == "api_key":
                table.add_column(sa.Column("requests_per_minute", sa.Integer(), nullable=True))
            if name == "prompt":
                table.drop_constraint(op.f("uq_prompt_messages_sha256"), type_="unique")
    op.create_index(
        "uq_prompt_house", "prompt", ["messages_sha256"], unique=True, sqlite_where=OF_HOUSE, postgresql_where=OF_HOUSE
    )
    op.create_index(
        "uq_prompt_tenant", "prompt", ["tenant_id", "messages_sha256"], unique=True,
        sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS,
    )  # fmt: skip
    op.create_index(
        "ix_completion_tenant_id", "completion", ["tenant_id"], sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS
    )


def downgrade() -> None:
    op.execute("UPDATE api_key SET revoked_at = CURRENT_TIMESTAMP WHERE tenant_id IS NOT NULL AND revoked_at IS NULL")
    _join_prompts()
    op.drop_index("ix_completion_tenant_id", table_name="completion")
    op.drop_index("uq_prompt_tenant", table_name="prompt")
    op.drop_index("uq_prompt_house", table_name="prompt")
    for name in ("prompt", "rule", "completion", "api_key", "person"):
        with op.batch_alter_table(name) as table:
            if name == "person":
                table.drop_constraint(op.f("uq_person_tenant_id"), type_="unique")
            if name == "api_key":
                table.drop_column("requests_per_minute")
            if name == "prompt":
                table.create_unique_constraint(op.f("uq_prompt_messages_sha256"), ["messages_sha256"])
            table.drop_constraint(op.f(f"fk_{name}_tenant_id_tenant"), type_="foreignkey")
            table.drop_column("tenant_id")
    for name in ("pace", "tenant_usage", "tenant"):
        op.drop_table(name)


def _join_prompts() -> None:
    """Of prompts that are equal but for their tenant, keep the oldest for all that names one of them."""
    connection = op.get_bind()
    oldest = sa.select(PROMPT.c.messages_sha256, sa.func.min(PROMPT.c.id).label("kept"))
    oldest = oldest.group_by(PROMPT.c.messages_sha256).having(sa.func.count() > 1).subquery()
    found = sa.select(PROMPT.c.id, oldest.c.kept).join(oldest, oldest.c.messages_sha256 == PROMPT.c.messages_sha256)
    for double, kept in connection.execute(found.where(PROMPT.c.id != oldest.c.kept)).all():
        for name in ("completion", "task", "imported_pair"):
            table = sa.table(name, sa.column("prompt_id", sa.Integer))
            connection.execute(sa.update(table).where(table.c.prompt_id == double).values(prompt_id=kept))
        connection.execute(sa.delete(PROMPT).where(PROMPT.c.id == double))
