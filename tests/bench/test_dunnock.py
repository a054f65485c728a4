"""Dunnock as the bench drives it: the filled database fits the tables, the calls fit the API, the check sees what is wrong."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from bench.annotation.dunnock import Dunnock
from commands.throwaway_postgres import PostgresServer
from tests.bench.loops import run as run_loop


@pytest.fixture
def target(postgres_server: PostgresServer) -> Iterator[Dunnock]:
    target = Dunnock(postgres_server, workers=1)
    try:
        target.prepare(30, 60)
        yield target
    finally:
        target.stop()


def test_tasks_are_taken_and_judged(target: Dunnock, postgres_server: PostgresServer) -> None:
    async def judge() -> list[str]:
        first = await target.next(0)
        second = await target.submit_and_next(0, first)
        await target.submit(0, second)
        other = await target.next(1)
        for caller in target.callers:
            caller.close()
        return [first[0], second[0], other[0]]

    assert len(set(run_loop(judge()))) == 3
    right = {"tasks_judged_too_often": 0, "tasks_judged_twice_by_one": 0, "tasks_with_a_wrong_count": 0}
    assert target.check() == {"judgments": 2, **right}

    engine = create_engine(postgres_server.url("bench"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE judgment SET surplus = true WHERE id = (SELECT min(id) FROM judgment)"))
    engine.dispose()
    assert target.check()["tasks_with_a_wrong_count"] == 1
