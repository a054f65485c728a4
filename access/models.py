"""Tables of people and how they get in: sign-ins, sessions, identities, invitations, API keys; of tenants and what they
take; and the audit log."""

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column

from access.names import key_of
from core.db import Base, utcnow

ROLES = ("annotator", "reviewer", "lead", "admin")


def _login_key(context: DefaultExecutionContext) -> str | None:
    return key_of(context.get_current_parameters()["login"])  # type: ignore[no-untyped-call]


class Tenant(Base):
    """A customer whose programs call the chat API, with limits of its own. What it says is apart from other tenants'."""

    __tablename__ = "tenant"
    __table_args__ = (
        CheckConstraint("requests_per_minute IS NULL OR requests_per_minute > 0", name="requests_per_minute"),
        CheckConstraint("tokens_per_day IS NULL OR tokens_per_day > 0", name="tokens_per_day"),
        CheckConstraint("consent IS NULL OR consent IN ('none','service','training')", name="consent"),
        CheckConstraint("retention_days IS NULL OR retention_days >= 0", name="retention_days"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(60), unique=True)  # its lasting name; `name` may be changed
    name: Mapped[str] = mapped_column(String(120))
    active: Mapped[bool] = mapped_column(default=True)
    requests_per_minute: Mapped[int | None]  # None: no limit
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)  # prompt and completion, by UTC days; None: no limit
    policy_version: Mapped[str | None] = mapped_column(String(60))  # the name of the one it is pinned to
    consent: Mapped[str | None] = mapped_column(
        String(10)
    )  # of calls that do not say it; None: as the settings have it
    retention_days: Mapped[int | None]  # how long texts are kept; 0: for ever; None: as the settings have it
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class TenantUsage(Base):
    """What a tenant took on one day, in UTC."""

    __tablename__ = "tenant_usage"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class Pace(Base):
    """How far ahead of time somebody's requests are, for `access.limits`. On PostgreSQL this table is not logged: a crash
    empties it, and everybody begins with a whole minute's requests."""

    __tablename__ = "pace"

    subject: Mapped[str] = mapped_column(String(40), primary_key=True)  # "tenant:3", "key:7", "person:2"
    paid_until_us: Mapped[int] = mapped_column(BigInteger)  # microseconds since 1970


class Person(Base):
    """Somebody, or some script, that signs in or judges. `scripted` people's judgments are simulated."""

    __tablename__ = "person"
    __table_args__ = (
        CheckConstraint("role IN ('annotator','reviewer','lead','admin')", name="role"),
        Index("uq_person_login_key", "login_key", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column(String(120), unique=True)
    login_key: Mapped[str | None] = mapped_column(String(255), default=_login_key)
    """By which a login is unique (`access.names`); none of people who were called alike before there were keys."""
    password_hash: Mapped[str | None] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(20), default="annotator")
    scripted: Mapped[bool] = mapped_column(default=False)
    active: Mapped[bool] = mapped_column(default=True)
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"), unique=True)
    """Of the account that a tenant's keys act as, which nobody signs in with; None of people."""
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class ApiKey(Base):
    """A program's key: only its sha256 is kept. `scopes` is a space-separated list."""

    __tablename__ = "api_key"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    tenant_id: Mapped[int | None] = mapped_column(ForeignKey("tenant.id"))  # its person's; None: the house's own
    requests_per_minute: Mapped[int | None]  # of this key alone, beside what its tenant has
    prefix: Mapped[str] = mapped_column(String(12))
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(Text, default="chat feedback")
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]
    last_used_at: Mapped[dt.datetime | None]  # to the minute


class SessionRecord(Base):
    """One signed-in browser. Its cookie holds a random token, of which only the sha256 is kept."""

    __tablename__ = "session_record"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    method: Mapped[str] = mapped_column(String(20))  # password | oidc | invitation
    address: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(300))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    last_seen_at: Mapped[dt.datetime] = mapped_column(default=utcnow)  # to the minute
    ended_at: Mapped[dt.datetime | None]


class OidcIdentity(Base):
    """Who somebody is at an OpenID provider: issuer and subject. The email is for reading only."""

    __tablename__ = "oidc_identity"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), index=True)
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(320))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)


class Invitation(Base):
    """A link that works once: for somebody new, with the role they get, or for a person who needs a new password."""

    __tablename__ = "invitation"
    __table_args__ = (
        CheckConstraint("role IN ('annotator','reviewer','lead','admin')", name="role"),
        CheckConstraint("(role IS NULL) <> (person_id IS NULL)", name="purpose"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str | None] = mapped_column(String(20))
    person_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"), index=True)
    note: Mapped[str] = mapped_column(String(200), default="")
    made_by_id: Mapped[int] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow)
    expires_at: Mapped[dt.datetime]
    used_at: Mapped[dt.datetime | None]
    used_by_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
    revoked_at: Mapped[dt.datetime | None]


class SignInAttempt(Base):
    """A try to sign in that has not succeeded; forgotten after a while. Login and address are kept as keyed hashes."""

    __tablename__ = "sign_in_attempt"
    __table_args__ = (
        Index("ix_sign_in_attempt_login", "login_key", "at"),
        Index("ix_sign_in_attempt_address", "address_key", "at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(default=utcnow, index=True)
    login_key: Mapped[str] = mapped_column(String(64))
    address_key: Mapped[str] = mapped_column(String(64))


class AuditLog(Base):
    """Who did what to which thing, with before and after. Rows are only ever added: triggers refuse anything else."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_actor", "actor", "id"),
        Index("ix_audit_log_action", "action", "id"),
        Index("ix_audit_log_subject", "subject", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(default=utcnow, index=True)
    actor: Mapped[str] = mapped_column(String(120))
    action: Mapped[str] = mapped_column(String(60))
    subject: Mapped[str] = mapped_column(String(120))
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    via: Mapped[str | None] = mapped_column(
        String(40)
    )  # browser | process | api_key:<id>; None: from before it was kept
