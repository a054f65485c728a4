"""Dunnock as it is served, for a benchmark: web, engine and guard as processes of their own, on a database of their own."""

import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

from access.keys import create_key
from access.people import get_or_create_scripted
from commands import processes
from commands.database import migrate
from core.db import Database
from core.settings import BestOfSettings, GuardSettings, Settings
from feedback.rules.store import ensure_rules
from policy.base import base_model_path
from policy.models import PolicyVersion

START_S = 180.0


@dataclass(frozen=True)
class Served:
    """What to ask, and with which key.

    Attributes:
        engine_url: the engine behind it.
        model: the version that is active; the engine's name for it.
        web: the process.
        db_url: of the database that it stands on.
        settings: of its processes, but for what an environment changed.
    """

    url: str
    engine_url: str
    key: str
    model: str
    web: processes.Child
    db_url: str
    settings: Settings


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def installed(
    folder: Path,
    *,
    upstream: str = "",
    of_round: Path | None = None,
    several: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Served]:
    """The app, up.

    Args:
        folder: for its database and logs.
        upstream: the engine's URL; empty: the embedded engine is started.
        of_round: the `var` of a finished round, whose versions, rules and guard are served; else the base, with rules that
            no model knows yet.
        several: whether the process that scores completions is started too.
        environment: settings of its processes, by their variables.
    """
    settings = _settings(folder, upstream)
    if of_round is not None:
        _copy(of_round, settings)
    db = Database(settings.db_url)
    migrate(db)
    model, key = _prepare(db, settings)
    db.dispose()
    children = [processes.web(settings)]
    if not upstream:
        children.append(processes.engine(settings))
    if processes.guard_is_wanted(settings):
        children.append(processes.guard(settings))
    if several:
        children.append(processes.scoring(settings))
    own = {
        "DUNNOCK_VAR_DIR": str(folder), "DUNNOCK_DATABASE_URL": settings.db_url, "DUNNOCK_WEB_PORT": str(settings.web_port),
        "DUNNOCK_ENGINE_URL": upstream, "DUNNOCK_ENGINE_PORT": str(settings.engine_port),
        "DUNNOCK_GUARD__PORT": str(settings.guard.port), "DUNNOCK_BEST_OF__PORT": str(settings.best_of.port),
    }  # fmt: skip
    for child in children:
        child.environment |= {**own, **environment}
    try:
        for child in children:
            child.start()
        for child in children:
            processes.wait_ready(child, processes.health_url(child, settings), START_S)
        url = f"http://127.0.0.1:{settings.web_port}"
        _ready(url)
        yield Served(f"{url}/v1", settings.engine_base_url, key, model, children[0], settings.db_url, settings)
    finally:
        for child in children:
            child.stop()


def _settings(folder: Path, upstream: str) -> Settings:
    guard, best_of = GuardSettings(port=free_port()), BestOfSettings(port=free_port())
    return Settings(
        var_dir=folder, database_url="", web_port=free_port(), engine_port=free_port(), engine_url=upstream, web_workers=1,
        guard=guard, best_of=best_of,
    )  # fmt: skip


def _copy(var: Path, settings: Settings) -> None:
    """The database of a round, as it is now, and its artifacts."""
    settings.var_dir.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(var / "dunnock.db") as theirs, sqlite3.connect(settings.var_dir / "dunnock.db") as ours:
        theirs.backup(ours)
    shutil.copytree(var / "artifacts", settings.artifact_dir)


def _prepare(db: Database, settings: Settings) -> tuple[str, str]:
    """The active version's name, and a key."""
    with db.session() as session:
        ensure_rules(session)
        version = session.query(PolicyVersion).filter_by(state="active").one_or_none()
        if version is None:
            path = base_model_path(settings) if not settings.engine_url else Path("base")
            version = PolicyVersion(name="base", state="active", base_model=path.name, base_sha256="0" * 64)
            session.add(version)
        person = get_or_create_scripted(session, "bench")
        _, key = create_key(session, person, "bench", "chat feedback")
        return version.name, key


def _ready(url: str) -> None:
    """Wait until the active version can answer."""
    deadline = time.monotonic() + START_S
    while (answer := httpx.get(f"{url}/readyz", timeout=60)).status_code != 200:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready: {answer.text}")
        time.sleep(0.5)


def rss_mb(child: processes.Child) -> float:
    """Memory of a process, in MB."""
    assert child.process is not None
    pages = int(Path(f"/proc/{child.process.pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def sockets(child: processes.Child) -> int:
    """Open sockets of a process."""
    assert child.process is not None
    links = (os.readlink(fd) for fd in Path(f"/proc/{child.process.pid}/fd").iterdir())
    return sum(link.startswith("socket:") for link in links)


def threads(child: processes.Child) -> int:
    """Threads of a process."""
    assert child.process is not None
    return len(list(Path(f"/proc/{child.process.pid}/task").iterdir()))
