"""system prompts, and what the guard does by rule

Revision: 0018
Follows: 0017

Versions of system prompts and the shares of conversations that get them; a completion says which it was given, by which shares, and who
is drawn together. Of rules: a threshold and an action, in a table of their own, since a new version of a rule begins its verdicts anew.
"""

import sqlalchemy as sa
from alembic import op

import core.db

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

OF_HOUSE = sa.text("tenant_id IS NULL")
OF_TENANTS = sa.text("tenant_id IS NOT NULL")
OF_SHARES = sa.text("system_prompt_share_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "system_prompt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_system_prompt")),
        sa.UniqueConstraint("name", name=op.f("uq_system_prompt_name")),
    )
    op.create_table(
        "system_prompt_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("system_prompt_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        *_by_whom("system_prompt_version"),
        sa.CheckConstraint("version > 0", name=op.f("ck_system_prompt_version_version")),
        sa.ForeignKeyConstraint(
            ["system_prompt_id"],
            ["system_prompt.id"],
            name=op.f("fk_system_prompt_version_system_prompt_id_system_prompt"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_system_prompt_version")),
        sa.UniqueConstraint(
            "system_prompt_id", "version", name=op.f("uq_system_prompt_version_system_prompt_id_version")
        ),
    )
    op.create_table(
        "system_prompt_share",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.Integer(), nullable=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("shares", sa.JSON(), nullable=False),
        *_by_whom("system_prompt_share"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_system_prompt_share_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_system_prompt_share")),
    )
    op.create_index(
        "uq_system_prompt_share_house", "system_prompt_share", ["number"],
        unique=True, sqlite_where=OF_HOUSE, postgresql_where=OF_HOUSE,
    )  # fmt: skip
    op.create_index(
        "uq_system_prompt_share_tenant", "system_prompt_share", ["tenant_id", "number"],
        unique=True, sqlite_where=OF_TENANTS, postgresql_where=OF_TENANTS,
    )  # fmt: skip
    op.create_table(
        "rule_threshold",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rule_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("action", sa.String(length=10), nullable=False),
        *_by_whom("rule_threshold"),
        sa.CheckConstraint(
            "threshold IS NULL OR (threshold > 0 AND threshold <= 1)", name=op.f("ck_rule_threshold_threshold")
        ),
        sa.CheckConstraint("action IN ('block','record','off')", name=op.f("ck_rule_threshold_action")),
        sa.ForeignKeyConstraint(["rule_id"], ["rule.id"], name=op.f("fk_rule_threshold_rule_id_rule")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rule_threshold")),
        sa.UniqueConstraint("rule_id", "number", name=op.f("uq_rule_threshold_rule_id_number")),
    )
    with op.batch_alter_table("completion") as table:
        for name in ("version", "share"):
            column, of = f"system_prompt_{name}_id", f"system_prompt_{name}"
            table.add_column(sa.Column(column, sa.Integer(), nullable=True))
            table.create_foreign_key(op.f(f"fk_completion_{column}_{of}"), of, [column], ["id"])
        table.add_column(sa.Column("system_prompt_unit", sa.String(length=16), nullable=True))
    op.create_index(
        "ix_completion_system_prompt", "completion", ["created_at", "system_prompt_version_id"],
        sqlite_where=OF_SHARES, postgresql_where=OF_SHARES,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("ix_completion_system_prompt", table_name="completion")
    with op.batch_alter_table("completion") as table:
        for name in ("version", "share"):
            table.drop_constraint(
                op.f(f"fk_completion_system_prompt_{name}_id_system_prompt_{name}"), type_="foreignkey"
            )
            table.drop_column(f"system_prompt_{name}_id")
        table.drop_column("system_prompt_unit")
    for name in ("rule_threshold", "system_prompt_share", "system_prompt_version", "system_prompt"):
        op.drop_table(name)


def _by_whom(table: str) -> list[sa.schema.SchemaItem]:
    """Who added a row, why and when."""
    return [
        sa.Column("author_id", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["author_id"], ["person.id"], name=op.f(f"fk_{table}_author_id_person")),
    ]
