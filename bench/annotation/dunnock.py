"""Dunnock as a target: its web process under uvicorn over a PostgreSQL that syncs to its disk, through `/api/v1`.

What the tables look like is told in `FILL` and `CHECK`, and nowhere else.
"""

import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from access.keys import create_key
from access.people import create_person, get_or_create_scripted
from bench.annotation.http import Connection
from bench.annotation.load import OPEN_ANNOTATORS, Target
from bench.annotation.page import measure_page
from bench.annotation.pairs import QUESTION, REPLY
from bench.annotation.ports import free_port
from commands import processes
from commands.database import migrate
from commands.throwaway_postgres import PostgresServer
from core.db import Database
from core.settings import Settings

PASSWORD = "seven small brown birds"  # noqa: S105 (of a database that lasts as long as the bench)
PREFERS_A = 0.84
"""How often reply a is chosen: two people then agree on 73 % of pairs, as labellers did in Ouyang et al. 2022, arXiv:2203.02155."""

FILL = (
    """INSERT INTO prompt (messages_sha256, messages, source, created_at)
       SELECT md5(i::text) || md5('b' || i), json_build_array(json_build_object('role', 'user', 'content',
              'Question ' || i || ': ' || :question)), 'seed', now()
       FROM generate_series(1, :size) AS i""",
    """INSERT INTO completion (id, prompt_id, source, text, created_at)
       SELECT 'chatcmpl-' || substr(md5(p.id || side), 1, 24), p.id, 'rollout',
              'Reply ' || side || ' to ' || p.id || ': ' || :reply, now()
       FROM prompt AS p, (VALUES ('a'), ('b')) AS sides (side)""",
    """INSERT INTO task (kind, source, prompt_id, required_n, taken, done, pool, priority, rank, risky, why, state, created_at)
       SELECT 'pairwise', 'bench:' || p.id, p.id, 1 + p.id % 3, 0, 0,
              CASE WHEN p.id % 5 = 0 THEN 'uniform' ELSE 'informative' END, 0, random(), false, 'bench', 'live', now()
       FROM prompt AS p""",
    """INSERT INTO task_item (task_id, position, completion_id)
       SELECT t.id, side.position, 'chatcmpl-' || substr(md5(t.prompt_id || side.name), 1, 24)
       FROM task AS t, (VALUES (0, 'a'), (1, 'b')) AS side (position, name)""",
)
"""Prompts, completions, and tasks that want one to three judgments each."""

CHECK = """
    WITH judged AS (SELECT task_id, count(*) AS n, count(DISTINCT annotator_id) AS people FROM judgment
                    WHERE NOT surplus GROUP BY task_id)
    SELECT (SELECT count(*) FROM judgment) AS judgments,
           count(*) FILTER (WHERE n > required_n) AS tasks_judged_too_often,
           count(*) FILTER (WHERE n > people) AS tasks_judged_twice_by_one,
           count(*) FILTER (WHERE coalesce(n, 0) <> done) AS tasks_with_a_wrong_count
    FROM task LEFT JOIN judged ON judged.task_id = task.id"""


class Dunnock(Target):
    """One web process of its own database, folder and port."""

    name = "dunnock"
    open_too = one_call = strict = True
    largest = 1_000_000

    def __init__(self, postgres: PostgresServer, workers: int) -> None:
        super().__init__()
        self._postgres = postgres
        self._workers = workers
        self._folder = Path()
        self._db: Database | None = None
        self._web: processes.Child | None = None
        self._url = ""

    def prepare(self, size: int, limit_s: float) -> dict[str, Any]:
        """Fill by SQL, make keys, start; `limit_s` is for imports and there is none."""
        self._postgres.execute("CREATE DATABASE bench")
        self._folder = Path(tempfile.mkdtemp(prefix="dk-bench-"))
        self._db = Database(self._postgres.url("bench"))
        settings = Settings(
            var_dir=self._folder,
            database_url=self._db.url,
            web_port=free_port(),
            web_workers=self._workers,
            web_threads=8,
        )
        migrate(self._db)
        seconds = _fill(self._db, size)
        self.callers = [Connection(settings.web_port, {"Authorization": f"Bearer {key}"}) for key in _keys(self._db)]
        self._web = processes.web(settings)
        self._web.environment = {"DUNNOCK_VAR_DIR": str(self._folder), "DUNNOCK_DATABASE_URL": self._db.url}
        self._web.start()
        self._url = f"http://127.0.0.1:{settings.web_port}"
        processes.wait_ready(self._web, f"{self._url}/healthz", processes.WEB_START_S)
        return {
            "filled_s": round(seconds, 1), "server": f"uvicorn, {self._workers} workers of {settings.web_threads} threads",
            "judgments_wanted_per_task": "1 to 3",
        }  # fmt: skip

    async def next(self, annotator: int) -> Any:
        """The token of an assignment, the side to choose, and when it came."""
        return _assigned((await self.callers[annotator].post("/api/v1/assignments", {})).json())

    async def submit(self, annotator: int, task: Any) -> None:
        """A plain choice, as most judgments are; two people agree as often as people do (`PREFERS_A`)."""
        token, better, since = task
        await self.callers[annotator].post(f"/api/v1/assignments/{token}/judgment", _judgment(better, since))

    async def submit_and_next(self, annotator: int, task: Any) -> Any:
        """The same, and the next assignment with the answer."""
        token, better, since = task
        body = {**_judgment(better, since), "next": {}}
        return _assigned((await self.callers[annotator].post(f"/api/v1/assignments/{token}/judgment", body)).json())

    def page(self) -> dict[str, Any]:
        """The page of a task in a browser, beside nothing else."""
        assert self._db is not None
        with self._db.session() as session:
            create_person(session, "bench-page", PASSWORD, "annotator")
        return measure_page(self._url, "bench-page", PASSWORD)

    def check(self) -> dict[str, int]:
        """Judgments, and tasks that were judged too often, twice by one person, or whose count is not what was stored."""
        assert self._db is not None
        with self._db.read() as session:
            return dict(session.execute(text(CHECK)).one()._mapping)

    def stop(self) -> None:
        """End the web process and drop folder and database."""
        if self._web:
            self._web.stop()
        if self._db:
            self._db.dispose()
        self._postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
        shutil.rmtree(self._folder, ignore_errors=True)


def _assigned(answer: dict[str, Any]) -> tuple[str, str, float] | None:
    found = answer["assignment"]
    if found is None:
        return None
    side, other = ("left", "right") if found["completions"][0].startswith("Reply a") else ("right", "left")
    return found["token"], side if random.random() < PREFERS_A else other, time.monotonic()


def _judgment(choice: str, since: float) -> dict[str, Any]:
    return {
        "judgment": {"kind": "pairwise", "choice": choice, "strength": 2},
        "latency_s": round(time.monotonic() - since, 3),
    }


def _fill(db: Database, size: int) -> float:
    began = time.monotonic()
    values = {"size": size, "question": QUESTION, "reply": REPLY}
    with db.session() as session:
        for statement in FILL:
            wanted = {name: value for name, value in values.items() if f":{name}" in statement}
            session.execute(text(statement), wanted)
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return time.monotonic() - began


def _keys(db: Database) -> list[str]:
    with db.session() as session:
        people = [get_or_create_scripted(session, f"bench-{n}") for n in range(OPEN_ANNOTATORS)]
        return [create_key(session, person, "bench", "annotate")[1] for person in people]
