"""The database on SQLite and PostgreSQL: commit, rollback, foreign keys, time zones, write locks."""

import datetime as dt
import math
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from core.db import Database, utcnow
from feedback.models import Completion, Prompt, Snapshot
from tests.factories import make_prompt


@pytest.fixture(params=["database", "postgres_database"])
def db(request: pytest.FixtureRequest) -> Database:
    """A migrated database, once of each kind."""
    return request.getfixturevalue(request.param)


def count(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count(Prompt.id))) or 0


def test_a_block_that_ends_is_kept_and_one_that_raises_is_not(db: Database) -> None:
    with db.session() as session:
        make_prompt(session, "kept")
    with pytest.raises(RuntimeError, match="no"), db.session() as session:
        make_prompt(session, "lost")
        raise RuntimeError("no")
    with db.read() as session:
        make_prompt(session, "written while reading")
    with db.read() as session:
        assert [m[0]["content"] for m in session.scalars(select(Prompt.messages))] == ["kept"]


def test_foreign_keys_and_checks_are_enforced(db: Database) -> None:
    with pytest.raises(IntegrityError), db.session() as session:
        session.add(Completion(prompt_id=12345, text="of no prompt", source="rollout"))
    with pytest.raises(IntegrityError), db.session() as session:
        prompt = make_prompt(session)
        session.add(Completion(prompt_id=prompt.id, text="t", source="rollout"))
        session.flush()
        session.execute(text("DELETE FROM prompt"))
    with pytest.raises(IntegrityError), db.session() as session:
        session.execute(text("INSERT INTO judgment (kind, simulated, surplus) VALUES ('guess', false, false)"))


def test_instants_come_back_in_utc(db: Database) -> None:
    tokyo = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    with db.session() as session:
        make_prompt(session).created_at = tokyo
    with db.read() as session:
        found = session.scalars(select(Prompt.created_at)).one()
    assert found == tokyo
    assert found.utcoffset() == dt.timedelta(0)


def test_an_instant_without_a_zone_is_refused(db: Database) -> None:
    with pytest.raises(StatementError, match="naive datetime"), db.session() as session:
        make_prompt(session).created_at = dt.datetime(2026, 1, 2)
    assert utcnow().tzinfo is dt.UTC


def test_numbers_that_json_lacks_become_null(db: Database) -> None:
    """PostgreSQL refuses NaN in JSON, and a browser cannot read it: a measure that was not to be had is null."""
    manifest = {"kl": {"mean": math.nan, "high": math.inf, "n": 0}, "list": [1.5, -math.inf], "name": "Vögel NaN"}
    with db.session() as session:
        session.add(Snapshot(content_sha256="0" * 64, path="x", manifest=manifest))
    with db.read() as session:
        found = session.scalars(select(Snapshot.manifest)).one()
    assert found == {"kl": {"mean": None, "high": None, "n": 0}, "list": [1.5, None], "name": "Vögel NaN"}


def test_writers_wait_for_each_other(db: Database) -> None:
    """Each reads and then writes; without a lock taken at the beginning, SQLite fails some of them at once."""
    errors: list[Exception] = []

    def add(number: int) -> None:
        try:
            with db.session() as session:
                session.scalar(select(func.count(Prompt.id)))
                make_prompt(session, f"prompt {number}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert count(db) == 8


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("foreign_keys", 1), ("synchronous", 1), ("busy_timeout", 30_000)]
)
def test_sqlite_pragmas_are_on_in_both_kinds_of_session(database: Database, pragma: str, value: object) -> None:
    for kind in (database.read, database.session):
        with kind() as session:
            assert session.execute(text(f"PRAGMA {pragma}")).scalar() == value


def test_a_reader_does_not_wait_for_a_writer_and_sees_a_whole_state(database: Database) -> None:
    with database.session() as writing:
        make_prompt(writing, "not yet")
        assert count(database) == 0
    with database.read() as reading:
        assert reading.scalar(select(func.count(Prompt.id))) == 1
        with database.session() as writing:
            make_prompt(writing, "later")
        assert reading.scalar(select(func.count(Prompt.id))) == 1  # the snapshot that it began with
    assert count(database) == 2


def test_the_folder_of_an_sqlite_file_is_made(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/new/folder/x.db")
    with db.session() as session:
        session.execute(text("CREATE TABLE t (n INTEGER)"))
    db.dispose()
    assert (tmp_path / "new/folder/x.db").exists()


def test_a_plain_postgresql_url_gets_the_driver_we_have() -> None:
    db = Database("postgresql://user@localhost/none")
    assert db.engine.url.drivername == "postgresql+psycopg"
    assert not db.is_sqlite
    db.dispose()


def test_a_file_that_took_the_place_of_another_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "dunnock.db", tmp_path / "backup.db"
    for file, word in ((path, "old"), (other, "new")):
        with sqlite3.connect(file) as made:
            made.execute("CREATE TABLE kept (word TEXT)")
            made.execute("INSERT INTO kept VALUES (?)", (word,))
        made.close()
    database = Database(f"sqlite:///{path}")
    try:
        words = []
        for _ in range(2):
            with database.read() as session:
                words.append(session.scalar(text("SELECT word FROM kept")))
            if other.exists():
                other.replace(path)
        assert words == ["old", "new"]
    finally:
        database.dispose()
