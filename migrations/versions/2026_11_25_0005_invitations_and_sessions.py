"""invitations and sessions

Revision: 0005
Follows: 0004

Sessions become rows that can be seen and ended, invitations and OpenID identities get a table, tries to sign in are
counted where all processes see them. The audit log can only be added to from here on: triggers refuse the rest.
A later migration that makes `audit_log` anew on SQLite (batch mode) must make the triggers anew too.
Down: people sign in again, and links that were given out no longer work.
"""

import sqlalchemy as sa
from alembic import op

import core.db


revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

APPEND_ONLY = "the audit log is append-only"


def upgrade() -> None:
    op.create_table(
        "session_record",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=20), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("user_agent", sa.String(length=300), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("ended_at", core.db.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_session_record_person_id_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session_record")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_session_record_token_sha256")),
    )
    op.create_index(op.f("ix_session_record_person_id"), "session_record", ["person_id"])
    op.create_table(
        "oidc_identity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=True),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_oidc_identity_person_id_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oidc_identity")),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_oidc_identity_issuer_subject")),
    )
    op.create_index(op.f("ix_oidc_identity_person_id"), "oidc_identity", ["person_id"])
    op.create_table(
        "invitation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=True),
        sa.Column("person_id", sa.Integer(), nullable=True),
        sa.Column("note", sa.String(length=200), nullable=False),
        sa.Column("made_by_id", sa.Integer(), nullable=False),
        sa.Column("created_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("used_at", core.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("used_by_id", sa.Integer(), nullable=True),
        sa.Column("revoked_at", core.db.UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('annotator','reviewer','lead','admin')", name=op.f("ck_invitation_role")),
        sa.CheckConstraint("(role IS NULL) <> (person_id IS NULL)", name=op.f("ck_invitation_purpose")),
        sa.ForeignKeyConstraint(["made_by_id"], ["person.id"], name=op.f("fk_invitation_made_by_id_person")),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_invitation_person_id_person")),
        sa.ForeignKeyConstraint(["used_by_id"], ["person.id"], name=op.f("fk_invitation_used_by_id_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitation")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_invitation_token_sha256")),
    )
    op.create_index(op.f("ix_invitation_person_id"), "invitation", ["person_id"])
    op.create_table(
        "sign_in_attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", core.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("login_key", sa.String(length=64), nullable=False),
        sa.Column("address_key", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_attempt")),
    )
    op.create_index(op.f("ix_sign_in_attempt_at"), "sign_in_attempt", ["at"])
    op.create_index("ix_sign_in_attempt_login", "sign_in_attempt", ["login_key", "at"])
    op.create_index("ix_sign_in_attempt_address", "sign_in_attempt", ["address_key", "at"])
    op.add_column("api_key", sa.Column("last_used_at", core.db.UtcDateTime(timezone=True), nullable=True))
    for column in ("actor", "action", "subject"):
        op.create_index(f"ix_audit_log_{column}", "audit_log", [column, "id"])
    _forbid_change()


def _forbid_change() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for act in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_log_no_{act.lower()} BEFORE {act} ON audit_log"
                f" BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )
        taken = "EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id)"
        op.execute(  # INSERT OR REPLACE removes the old row without asking a DELETE trigger
            f"CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log WHEN {taken}"
            f" BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}' USING ERRCODE = 'insufficient_privilege'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION audit_log_append_only()"
    )


def _allow_change() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER audit_log_no_{name}")
        return
    op.execute("DROP TRIGGER audit_log_no_change ON audit_log")
    op.execute("DROP FUNCTION audit_log_append_only()")


def downgrade() -> None:
    _allow_change()
    for column in ("actor", "action", "subject"):
        op.drop_index(f"ix_audit_log_{column}", "audit_log")
    op.drop_column("api_key", "last_used_at")
    for table in ("sign_in_attempt", "invitation", "oidc_identity", "session_record"):
        op.drop_table(table)
