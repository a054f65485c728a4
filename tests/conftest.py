"""Fixtures of all tests: settings that see no environment, a migrated database, the app, people, a browser.

`database` is a copy of one SQLite file that is migrated once per run, so a test pays milliseconds for it.
`postgres_url` is an empty PostgreSQL database and `postgres_database` a migrated one, on a real server.
CSRF checks are off in `app`; a test that wants them sets `app.config["WTF_CSRF_ENABLED"] = True`.
"""

import os

os.environ["ATEN_CPU_CAPABILITY"] = "avx2"  # models in fp32 on every CPU, before torch looks

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from access.models import ROLES, Person
from core.db import Database
from core.settings import Settings
from tests import factories
from tests.access.oidc_provider import oidc_provider  # noqa: F401
from tests.browser import browser, live_server, live_url, open_page, page  # noqa: F401
from tests.postgres import postgres_server, postgres_url  # noqa: F401

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class SignedIn:
    """A person and a client that is signed in as them."""

    person: Person
    client: FlaskClient


def migrate(database: Database, revision: str = "head") -> None:
    """Bring a database to a revision, as `make migrate` does."""
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["database"] = database
    command.upgrade(config, revision)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the newest revision; copied, never changed."""
    path = tmp_path_factory.mktemp("template") / "dunnock.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.dispose()
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a test: everything below `tmp_path`, nothing from the environment."""
    return Settings(
        _env_file=None,
        var_dir=tmp_path / "var",
        cache_dir=tmp_path / "cache",
        secret_key="tests-only-" + "k" * 32,
    )


@pytest.fixture
def database(settings: Settings, migrated_file: Path) -> Iterator[Database]:
    """A migrated SQLite database in the test's own folder."""
    path = settings.var_dir / "dunnock.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated_file, path)
    database = Database(settings.db_url)
    yield database
    database.dispose()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:  # noqa: F811
    """A migrated PostgreSQL database."""
    database = Database(postgres_url)
    migrate(database)
    yield database
    database.dispose()


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A writing transaction; others wait for it until the test ends, so use `database` beside `client`."""
    with database.session() as session:
        yield session


@pytest.fixture
def app(settings: Settings, database: Database) -> Flask:
    """The whole web app on the test's database."""
    from app import create_app

    app = create_app(settings, database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that nobody has signed in with."""
    return app.test_client()


@pytest.fixture
def people(database: Database) -> dict[str, Person]:
    """One person of each role, by role; their login is the role and their password `factories.PASSWORD`."""
    with database.session() as session:
        return {role: factories.make_person(session, login=role, role=role) for role in ROLES}


@pytest.fixture
def sign_in(app: Flask) -> Callable[[Person], SignedIn]:
    """A function that signs a person in with a client of their own."""

    def sign_in(person: Person) -> SignedIn:
        client = app.test_client()
        answer = client.post("/sign-in", data={"login": person.login, "password": factories.PASSWORD})
        assert answer.status_code == 302, answer.text
        return SignedIn(person, client)

    return sign_in


@pytest.fixture
def annotator(people: dict[str, Person], sign_in: Callable[[Person], SignedIn]) -> SignedIn:
    """A signed-in annotator."""
    return sign_in(people["annotator"])


@pytest.fixture
def lead(people: dict[str, Person], sign_in: Callable[[Person], SignedIn]) -> SignedIn:
    """A signed-in lead."""
    return sign_in(people["lead"])
