"""`make seed`: everything is there, through the write path; twice is once; never in production."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select

import finetune.models  # noqa: F401  # the tables that no other import brings
import reward.models  # noqa: F401
from access.models import ROLES, Person
from commands.seed import PASSWORD, TOPICS, seed
from core.db import Base, Database
from core.errors import Forbidden
from core.settings import Settings
from feedback.models import KINDS, Gold, Judgment, RuleJudgment, Task
from feedback.preferences import gather


def rows(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_everything_is_there_and_twice_is_once(request: pytest.FixtureRequest, settings: Settings, kind: str) -> None:
    database = request.getfixturevalue("database" if kind == "sqlite" else "postgres_database")
    assert seed(database, settings) > 6 * len(TOPICS)
    with database.read() as session:
        assert set(session.scalars(select(Person.role).where(~Person.scripted))) == set(ROLES)
        assert set(session.scalars(select(Task.kind))) == set(KINDS)
        assert {"adjudication", "flagged", "gold", "informative", "uniform"} >= set(session.scalars(select(Task.pool)))
        assert session.scalar(select(func.count()).where(Task.pool == "adjudication")) > 1
        assert session.scalar(select(func.count(Gold.task_id))) == len(TOPICS)
        assert set(session.scalars(select(Judgment.kind))) == {*KINDS, "thumbs"}
        assert set(session.scalars(select(Judgment.simulated))) == {True}
        assert {"broken", "kept", "unsure"} == set(session.scalars(select(RuleJudgment.verdict)))
        live = select(Task.kind).where(Task.state == "live", Task.taken < Task.required_n)
        assert set(session.scalars(live)) == set(KINDS)  # something of each is left to do
        found = gather(session, include_simulated=True, max_imported_pairs=0)
        assert len(found.preferences) > len(TOPICS)
        assert gather(session, include_simulated=False, max_imported_pairs=0).preferences == []
    before = rows(database)
    assert seed(database, settings) == 0
    assert rows(database) == before


def test_the_people_sign_in(settings: Settings, database: Database, client: FlaskClient) -> None:
    seed(database, settings)
    for role in ROLES:
        assert client.post("/sign-in", data={"login": role, "password": PASSWORD}).status_code == 302
        client.post("/sign-out")


def test_production_is_left_alone(settings: Settings, database: Database) -> None:
    before = rows(database)
    values: dict[str, Any] = {"env": "production"}
    with pytest.raises(Forbidden, match="production"):
        seed(database, settings.model_copy(update=values))
    assert rows(database) == before
