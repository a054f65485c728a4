"""When a key was last used: written at most once a minute, over all processes, and for good keys only."""

import datetime as dt
import re

from flask import Flask
from sqlalchemy import event, select, update

from access.keys import create_key, revoke_key
from access.last_use import REMEMBERED, KeyUse
from access.models import ApiKey, Person
from core.db import Database, utcnow


def last_used(database: Database) -> dt.datetime | None:
    with database.read() as session:
        return session.scalars(select(ApiKey.last_used_at)).one()


def test_a_good_call_is_noted_once_a_minute(app: Flask, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        key, secret = create_key(session, people["annotator"], "app", "annotate")
    client, writes = app.test_client(), []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *a: writes.append(a[2]) if a[2].startswith("UPDATE api_key") else 0,
    )

    def call(path: str = "/api/v1/assignments") -> int:
        return client.post(path, json={}, headers={"Authorization": f"Bearer {secret}"}).status_code

    assert call("/v1/feedback") == 403  # not its scope
    assert last_used(database) is None
    assert call() == 200
    first = last_used(database)
    assert first is not None
    assert [call() for _ in range(5)] == [200] * 5
    assert (last_used(database), len(writes)) == (first, 1)

    from app import create_app

    other = create_app(app.extensions["dunnock"].settings, database).test_client()  # another process remembers nothing
    other.post("/api/v1/assignments", json={}, headers={"Authorization": f"Bearer {secret}"})
    assert (last_used(database), len(writes)) == (first, 2)  # but the row does
    with database.session() as session:
        session.execute(update(ApiKey).values(last_used_at=utcnow() - dt.timedelta(minutes=2)))
        revoke_key(session, key.id)
    assert call() == 401
    found = last_used(database)
    assert found is not None
    assert utcnow() - found > dt.timedelta(minutes=1)


def test_memory_is_bounded() -> None:
    use = KeyUse()
    assert use.due("a")
    assert not use.due("a")
    for n in range(REMEMBERED):
        use.due(str(n))
    assert len(use._noted) <= REMEMBERED


def test_a_key_costs_one_statement_and_no_write(app: Flask, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        _, secret = create_key(session, people["annotator"], "app", "annotate")
    client, statements = app.test_client(), []

    def call() -> None:
        client.post("/api/v1/assignments", json={}, headers={"Authorization": f"Bearer {secret}"})

    call()
    event.listen(database.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    call()
    of_access = [s for s in statements if re.search(r"\b(api_key|session_record)\b", s)]
    assert len(of_access) == 1
    assert of_access[0].startswith("SELECT")
