"""A session on each of the two databases: figures are computed in SQL, and both must agree."""

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from core.db import Database


@pytest.fixture(params=["database", "postgres_database"])
def either(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A writing transaction on SQLite, then on PostgreSQL."""
    database: Database = request.getfixturevalue(request.param)
    with database.session() as session:
        yield session
