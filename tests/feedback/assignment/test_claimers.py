"""50 annotators at once, in processes that are killed at random, over a database that goes away in the middle: no task is
judged more often than it wants, no judgment is lost, none is doubled, and the queue comes to its end."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from commands.throwaway_postgres import PostgresServer
from core.db import Database
from feedback.models import Assignment, Judgment, Task
from tests.conftest import ROOT, migrate
from tests.factories import make_pairwise_task, make_person

PROCESSES = 5
PEOPLE = 50
TASKS = 120
KILLS = 8
PATIENCE_S = 240


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that nobody else uses, so that it can be killed."""
    folder = Path(tempfile.mkdtemp(prefix="dk-pg-"))  # short, and open to the user that it runs as
    try:
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Claimers:
    """The processes, each with its own people."""

    def __init__(self, database: Database, log: Path, people: list[int]) -> None:
        self.database, self.log = database, log
        self.people = [people[n::PROCESSES] for n in range(PROCESSES)]
        self.running = [self._start(n) for n in range(PROCESSES)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "tests.feedback.assignment.claimer", self.database.url, str(self.log)]
        return subprocess.Popen([*line, *map(str, self.people[number])], cwd=ROOT)

    def kill_one(self) -> None:
        """With SIGKILL, and start it again."""
        number = random.randrange(PROCESSES)
        self.running[number].kill()
        self.running[number].wait()
        self.running[number] = self._start(number)

    def join(self) -> None:
        for process in self.running:
            assert process.wait(PATIENCE_S) == 0

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def fill(database: Database) -> list[int]:
    with database.session() as session:
        people = [make_person(session).id for _ in range(PEOPLE)]
        for n in range(TASKS):
            make_pairwise_task(session, required_n=1 + n % 3)
    return people


def acknowledged(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def wait_for(log: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(acknowledged(log)) < count:
        assert time.monotonic() < deadline, f"{len(acknowledged(log))} judgments, expected {count}"
        time.sleep(0.02)


def check(database: Database, log: Path) -> None:
    """What must hold whatever happened."""
    with database.read() as session:
        kept = {judgment.id: judgment for judgment in session.scalars(select(Judgment))}
        assignments = {row.id: row for row in session.scalars(select(Assignment))}
        tasks = list(session.scalars(select(Task)))
        counted = dict(
            iter(
                session.execute(
                    select(Judgment.task_id, func.count()).where(~Judgment.surplus).group_by(Judgment.task_id)
                )
            )
        )
    for line in acknowledged(log):  # nothing that somebody was told is stored is lost
        judgment_id, person_id, token = line.split()
        judgment = kept[int(judgment_id)]
        assert judgment.annotator_id == int(person_id)
        assert assignments[judgment.assignment_id].lease_token == token
    assert max(Counter(judgment.assignment_id for judgment in kept.values()).values()) == 1  # and nothing doubled
    judged = {judgment.assignment_id: judgment.surplus for judgment in kept.values()}
    for number, row in assignments.items():
        assert (row.state in ("done", "surplus")) == (number in judged)
        assert (row.state == "surplus") == judged.get(number, False)
    holding = Counter(row.task_id for row in assignments.values() if row.state in ("live", "done"))
    for task in tasks:
        given = [
            (row.annotator_id, row.state, row.expires_at) for row in assignments.values() if row.task_id == task.id
        ]
        # the queue came to its end; own work that is shown again, and given back, is nobody else's
        ended = "cancelled" if task.pool == "repeat" and not task.done else "done"
        assert counted.get(task.id, 0) == task.done == (task.required_n if ended == "done" else 0), given
        assert (task.taken, task.state) == (holding[task.id], ended)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_at_random(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: PostgresServer | None = None
    if kind == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'd.db'}")
    else:
        server = request.getfixturevalue("own_server")
        server.execute("CREATE DATABASE claimers")
        database = Database(server.url("claimers"))
    migrate(database)
    people, log = fill(database), tmp_path / "acknowledged"
    wanted = sum(1 + n % 3 for n in range(TASKS))
    claimers = Claimers(database, log, people)
    try:
        for kill in range(1, KILLS + 1):
            wait_for(log, kill * wanted // (KILLS + 2))
            claimers.kill_one()
            if server is not None and kill == KILLS // 2:
                server.stop()
                server.start()
        claimers.join()
        check(database, log)
    finally:
        claimers.stop()
        database.dispose()
