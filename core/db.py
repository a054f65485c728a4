"""The database: one declarative base, one engine, two kinds of session.

`Database.session()` writes: it commits at the end of the block or rolls back. On SQLite it begins
IMMEDIATE, because a reading transaction that turns into a writing one fails at once, without waiting
for the busy timeout. `Database.read()` reads a consistent snapshot and never takes the write lock.
PostgreSQL needs no such care; the same code runs on both.
"""

import datetime as dt
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psycopg
from sqlalchemy import DateTime, Engine, MetaData, Table, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.orm.util import identity_key
from sqlalchemy.pool import QueuePool
from sqlalchemy.types import JSON, TypeDecorator

BUSY_TIMEOUT_S = 30
IDLE_S = 0.5
"""A pooled connection that rested for longer is asked whether it still works. One that was used just now does: a server
that went away and came back in between would have taken longer."""
MAX_ID = 2**31 - 1
"""The largest id: PostgreSQL refuses a larger number where it compares one with a column of ids."""


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A timezone-aware UTC instant; SQLite has no zones, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}; use core.db.utcnow()")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=dt.UTC)


def utcnow() -> dt.datetime:
    """Now, in UTC, with its zone."""
    return dt.datetime.now(dt.UTC)


class Base(DeclarativeBase):
    """Declarative base of all tables; names of constraints are fixed so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dt.datetime: UtcDateTime, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 (SQLAlchemy's interface)


class Database:
    """Engine and sessions for one URL.

    Args:
        url: an SQLAlchemy URL; SQLite and PostgreSQL (psycopg) are tested.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.database and parsed.database != ":memory:":
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            # A new connection reads the whole schema before its first statement, which takes longer than most of those.
            self.engine: Engine = create_engine(
                parsed, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, poolclass=QueuePool,
                pool_size=16, max_overflow=-1, json_serializer=_to_json,
            )  # fmt: skip
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "checkout", _check_file)
            event.listen(self.engine, "begin", _sqlite_begin)
        else:
            # A look-up of one row is never worth compiling.
            options = {} if "options" in parsed.query else {"options": "-c jit=off"}
            self.engine = create_engine(
                parsed, connect_args=options, pool_size=10, max_overflow=30, json_serializer=_to_json
            )
            event.listen(self.engine, "checkin", _note_time)
            event.listen(self.engine, "checkout", _check_idle)
        writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        self._write = sessionmaker(writing, expire_on_commit=False)
        self._read = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A writing transaction: committed when the block ends, rolled back when it raises."""
        with self._write() as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction; nothing done in it is kept."""
        with self._read() as session:
            yield session

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def table_of(entity: type[Base]) -> Table:
    """The table of a class, for statements that bypass its objects."""
    return cast(Table, entity.__table__)


def expire_known(session: Session, entity: type[Base], key: int) -> None:
    """Let an object of this session, if there is one, be read anew: its row was changed by a plain statement."""
    known = session.identity_map.get(identity_key(entity, key))
    if known is not None:
        session.expire(known)


def _to_json(value: Any) -> str:
    """JSON as PostgreSQL takes it: NaN and infinities, which JSON does not know, become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _sqlite_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we emit BEGIN ourselves
    cursor = connection.cursor()
    with suppress(sqlite3.OperationalError):  # a file that may only be read is read as it is
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
    cursor.close()


def _file_of(path: str) -> tuple[int, int, int] | None:
    """Which file has this name, and in which process that is asked; None for a database in memory, or a file that is gone."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, ValueError):
        return None
    return os.getpid(), found.st_dev, found.st_ino


def _check_file(connection: Any, record: Any, proxy: Any) -> None:
    """A pooled connection is no good in a child of its process, nor once another file, as out of a backup, has its name."""
    if (path := record.info.get("path")) is None:
        path = record.info["path"] = connection.execute("PRAGMA database_list").fetchone()[2]
    if record.info.setdefault("file", now := _file_of(path)) != now:
        raise DisconnectionError("this connection is of another file or process; the pool makes a new one")


def _note_time(connection: Any, record: Any) -> None:
    record.info["rested_since"] = time.monotonic()


def _check_idle(connection: Any, record: Any, proxy: Any) -> None:
    if time.monotonic() - record.info.get("rested_since", 0.0) < IDLE_S:
        return
    try:
        connection.execute("")
        connection.rollback()
    except psycopg.Error as error:
        raise DisconnectionError("the connection is gone; the pool makes a new one") from error


def _sqlite_begin(connection: Any) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.connection.dbapi_connection.execute(f"BEGIN {mode}")
