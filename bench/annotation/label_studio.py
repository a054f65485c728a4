"""Label Studio as a target, in two setups. Annotators use its REST API with a token each.

As installed: `label-studio start` over SQLite, project settings as they come, which is what its first page leads to.
Tuned: its own production server (uWSGI, the wheel's extra) with four processes, as its container has it, over the
PostgreSQL that Dunnock is measured on, the next task drawn at random, which it finds sooner than the next in sequence;
with two or with eight processes it was slower on two cores. In both telemetry and the look for new versions are off.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from bench import tools
from bench.annotation.http import CALL_S, Connection, Refused
from bench.annotation.load import CLOSED_ANNOTATORS, Target
from bench.annotation.pairs import WANTED, question, reply
from bench.annotation.ports import free_port
from bench.tools import NotDone
from commands import processes
from commands.throwaway_postgres import PostgresServer
from core.errors import EngineError

PROCESSES = 4
CHUNK = 10_000
CONFIG = """<View><Text name="prompt" value="$prompt"/><Pairwise name="choice" toName="a,b"/>
<Text name="a" value="$a"/><Text name="b" value="$b"/></View>"""
PEOPLE = f"""
import json
from organizations.models import Organization
from users.models import User
tokens = []
for n in range({CLOSED_ANNOTATORS}):
    user = User.objects.create_user(email=f"bench-{{n}}@localhost.localdomain", password="not used: tokens only")
    org = Organization.objects.first() or Organization.create_organization(created_by=user, title="bench")
    org.add_user(user)
    org.jwt.legacy_api_tokens_enabled = True
    org.jwt.save()
    user.active_organization = org
    user.save()
    tokens.append(user.auth_token.key)
print("TOKENS " + json.dumps(tokens))
"""
CHECK = """
    WITH judged AS (SELECT task_id, count(*) AS n FROM task_completion WHERE NOT was_cancelled GROUP BY task_id)
    SELECT coalesce(sum(n), 0) AS judgments, count(CASE WHEN n > :wanted THEN 1 END) AS tasks_judged_too_often,
           coalesce(max(n), 0) AS most_judgments_of_a_task
    FROM judged"""


class LabelStudio(Target):
    """One Label Studio of its own folder, database and port."""

    def __init__(self, postgres: PostgresServer | None = None) -> None:
        super().__init__()
        self.name = "label_studio_tuned" if postgres else "label_studio"
        self._postgres = postgres
        self._folder = Path()
        self._web: processes.Child | None = None
        self._project = 0

    def prepare(self, size: int, limit_s: float) -> dict[str, Any]:
        """Migrate, make people, start, import by its API; `limit_s` holds for the import."""
        home = tools.environment("label-studio", tools.LABEL_STUDIO)
        self._folder = Path(tempfile.mkdtemp(prefix="dk-ls-"))
        if self._postgres:
            self._postgres.execute(f"CREATE DATABASE {self.name}")
        self._manage(home, "migrate", "--no-color", "-v", "0")
        port = free_port()
        tokens = self._tokens(home)
        self.callers = [Connection(port, {"Authorization": f"Token {token}"}, keep=False) for token in tokens]
        self._web = self._server(home, port)
        self._web.start()
        try:
            processes.wait_ready(self._web, f"http://127.0.0.1:{port}/health", 120)
            seconds = asyncio.run(self._import(size, limit_s))
            if self._postgres:
                self._analyze()
        except (EngineError, Refused) as error:
            raise NotDone(str(error)) from error
        return {
            "filled_s": round(seconds, 1), "server": f"uWSGI, {PROCESSES} processes" if self._postgres else "label-studio start",
            "database": "postgresql" if self._postgres else "sqlite",
            "judgments_wanted_per_task": WANTED, "versions": tools.versions(home, ("label-studio", "django", "pyuwsgi")),
        }  # fmt: skip

    async def next(self, annotator: int) -> Any:
        """As its page asks for it."""
        answer = await self.callers[annotator].get(f"/api/projects/{self._project}/next")
        task = answer.json()
        if not task["data"]["prompt"]:
            raise Refused("next: a task without its text")
        return task["id"]

    async def submit(self, annotator: int, task: Any) -> None:
        """An annotation with the left side chosen."""
        value = {"from_name": "choice", "to_name": "a,b", "type": "pairwise", "value": {"selected": "left"}}
        body = {"result": [value], "lead_time": 1.0, "task": task, "project": self._project}
        await self.callers[annotator].post(f"/api/tasks/{task}/annotations/?project={self._project}", body)

    def check(self) -> dict[str, int]:
        """Annotations and tasks with more of them than wanted, read from its database."""
        engine = create_engine(self._url())
        with engine.connect() as connection:
            row = connection.execute(text(CHECK), {"wanted": WANTED}).one()
            found = {name: int(value) for name, value in row._mapping.items()}
        engine.dispose()
        return found

    def stop(self) -> None:
        """End the server and drop folder and database."""
        if self._web:
            self._web.stop()
        if self._postgres:
            self._postgres.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        chosen = {
            "DJANGO_SETTINGS_MODULE": "core.settings.label_studio", "LABEL_STUDIO_BASE_DATA_DIR": str(self._folder),
            "DJANGO_DB": "sqlite", "COLLECT_ANALYTICS": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
            "LATEST_VERSION_CHECK": "false", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        }  # fmt: skip
        if self._postgres:
            chosen |= {
                "APP_WEBSERVER": "uwsgi", "DJANGO_DB": "default", "POSTGRE_NAME": self.name, "POSTGRE_USER": "postgres", "POSTGRE_PASSWORD": "",
                "POSTGRE_HOST": str(self._postgres.folder),
            }  # fmt: skip
        return chosen

    def _url(self) -> str:
        return self._postgres.url(self.name) if self._postgres else f"sqlite:///{self._folder / 'label_studio.sqlite3'}"

    def _manage(self, home: Path, *arguments: str) -> str:
        done = subprocess.run(
            [str(home / "bin" / "python"), "manage.py", *arguments], cwd=_package(home), capture_output=True, text=True,
            env=os.environ | self._environment(), check=False,
        )  # fmt: skip
        if done.returncode:
            raise NotDone(f"manage.py {arguments[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def _tokens(self, home: Path) -> list[str]:
        said = self._manage(home, "shell", "-c", PEOPLE)
        return list(json.loads(said.split("TOKENS ", 1)[1].splitlines()[0]))

    def _server(self, home: Path, port: int) -> processes.Child:
        """What its command starts, or uWSGI with what its own deploy file sets that bears on speed."""
        command = [
            str(home / "bin" / "label-studio"), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port),
        ] if self._postgres is None else [
            str(home / "bin" / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--chdir", str(_package(home)),
            "--virtualenv", str(home), "--module", "core.wsgi:application", "--master", "--single-interpreter",
            "--processes", str(PROCESSES), "--need-app", "--die-on-term", "--buffer-size", "65535",
            "--disable-logging", "--ignore-sigpipe", "--ignore-write-errors", "--disable-write-exception",
        ]  # fmt: skip
        return processes.Child("Label Studio", command, self._folder / "web.log", environment=self._environment())

    async def _import(self, size: int, limit_s: float) -> float:
        caller = self.callers[0]
        project = await caller.post("/api/projects/", {
            "title": "bench", "label_config": CONFIG, "maximum_annotations": WANTED,
            **({"sampling": "Uniform sampling"} if self._postgres else {}),
        })  # fmt: skip
        self._project = project.json()["id"]
        began = time.monotonic()
        for start in range(1, size + 1, CHUNK):
            left = limit_s - (time.monotonic() - began)
            if left <= 0:
                raise NotDone(f"the import took longer than {limit_s:.0f} s: {start - 1} of {size} tasks")
            numbers = range(start, min(start + CHUNK, size + 1))
            tasks = [{"data": {"prompt": question(n), "a": reply("a", n), "b": reply("b", n)}} for n in numbers]
            await caller.post(f"/api/projects/{self._project}/import?return_task_ids=false", tasks, max(left, CALL_S))
        return time.monotonic() - began

    def _analyze(self) -> None:
        engine = create_engine(self._url())
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        engine.dispose()


def _package(home: Path) -> Path:
    return next(home.glob("lib/python3*/site-packages/label_studio"))
