"""Keys of people of each role, calls with them, and an app on a database of either kind."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import create_key
from access.models import AuditLog, Person
from app import create_app
from core.db import Database
from core.settings import Settings
from tests import factories

ALL = "annotate manage people"


def bearer(database: Database, person: Person, scopes: str = ALL) -> dict[str, str]:
    """The headers of a new key of a person."""
    with database.session() as session:
        return {"Authorization": f"Bearer {create_key(session, person, 'a program', scopes)[1]}"}


def audited(database: Database) -> list[AuditLog]:
    """What the audit log has beside sign-ins, oldest first."""
    with database.read() as session:
        return list(session.scalars(select(AuditLog).where(AuditLog.action != "session.sign_in").order_by(AuditLog.id)))


@pytest.fixture
def key(database: Database, people: dict[str, Person]) -> Callable[..., dict[str, str]]:
    """A function that makes a key for a role and gives its headers."""

    def key(role: str = "lead", scopes: str = "manage") -> dict[str, str]:
        return bearer(database, people[role], scopes)

    return key


@pytest.fixture
def call(client: FlaskClient, key: Callable[..., dict[str, str]]) -> Callable[..., Any]:
    """A function that calls with the key of a lead, or of another role, that is good for everything."""
    made: dict[tuple[str, str], dict[str, str]] = {}

    def call(method: str, path: str, *, role: str = "lead", scopes: str = ALL, **more: Any) -> Any:
        if (role, scopes) not in made:
            made[role, scopes] = key(role, scopes)
        return client.open(f"/api/v1{path.removeprefix('/api/v1')}", method=method, headers=made[role, scopes], **more)

    return call


@pytest.fixture(params=["database", "postgres_database"])
def either(request: pytest.FixtureRequest) -> Database:
    """A migrated database of either kind."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def either_app(settings: Settings, either: Database) -> Flask:
    """The whole web app on it."""
    return create_app(settings, either)


@pytest.fixture
def programs(either: Database) -> Callable[..., list[dict[str, str]]]:
    """A function that gives the headers of keys of so many new people of a role, on either database."""

    def programs(count: int, role: str = "lead") -> list[dict[str, str]]:
        with either.session() as session:
            made = [factories.make_person(session, f"{role}-{n}", role) for n in range(count)]
        return [bearer(either, person) for person in made]

    return programs
