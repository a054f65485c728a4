"""Bringing a database up to date: migrations, starter rules, the version "base", the first admin."""

import secrets
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import select

import finetune.models  # noqa: F401 (the table of policy versions names that of cycles)
from access.audit import record
from access.models import Person
from access.names import COMMAND_LINE
from access.people import create_person
from core.db import Database
from core.settings import Settings
from feedback.rules.store import ensure_rules
from policy.base import base_model_name, base_model_path, base_sha256
from policy.versions import ensure_base_version

ROOT = Path(__file__).resolve().parent.parent


def migrate(db: Database) -> None:
    """Upgrade to the newest schema; safe to run from several processes at once."""
    config = Config(str(ROOT / "alembic.ini"))
    config.attributes["database"] = db
    config.set_main_option("script_location", str(ROOT / "migrations"))
    command.upgrade(config, "head")


def prepare(db: Database, settings: Settings) -> None:
    """Migrate, add the starter rules, and make the base model's version known.

    Raises:
        ArtifactError: the base model is missing.
        Conflict: the database belongs to another base model.
    """
    migrate(db)
    name, digest = base_model_name(settings), base_sha256(base_model_path(settings))
    with db.session() as session:
        ensure_rules(session)
        ensure_base_version(session, name, digest)


def first_admin(db: Database) -> tuple[str, str] | None:
    """Make the account "admin" with a random password where nobody can sign in yet; (login, password) if so."""
    with db.session() as session:
        if session.scalar(select(Person.id).where(Person.scripted.is_(False)).limit(1)) is not None:
            return None
        password = secrets.token_urlsafe(12)
        person = create_person(session, "admin", password, "admin")
        record(session, COMMAND_LINE, "person.add", f"person:{person.id}", after={"login": "admin", "role": "admin"})
        return "admin", password
