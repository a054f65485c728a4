"""Several engines: who is asked, who is left alone, and that nothing is asked twice."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from core.db import Database
from core.messages import user
from core.settings import EnginesSettings, Settings
from serving.chat import chat_of
from tests.serving.scripted import ScriptedEngine
from tests.serving.test_guarding import SECRET, Installed


class Pool(Installed):
    """The app before a first engine, `second` in its pool, and `cloud` for what overflows."""

    def __init__(self, settings: Settings, database: Database, **engines: Any) -> None:
        self.second, self.cloud = ScriptedEngine(), ScriptedEngine()
        urls = {"replicas": [_url(self.second)], "overflow": [_url(self.cloud)]}
        given = EnginesSettings(**{**urls, "rest_s": 0.3, **engines})
        super().__init__(settings.model_copy(update={"engines": given}), database)
        self.all = (self.engine, self.second, self.cloud)

    def stop(self) -> None:
        self.second.stop()
        self.cloud.stop()
        super().stop()

    def asked(self) -> tuple[int, ...]:
        return tuple(len(engine.asked) for engine in self.all)

    def opened(self) -> Any:
        """A stream that goes on until its engine may."""
        body = {"model": "dunnock", "messages": user("Hi"), "stream": True}
        answer = self.client.post("/v1/chat/completions", json=body, headers=self.key)
        assert answer.status_code == 200
        return answer

    def status(self, **more: Any) -> int:
        body = {"model": "dunnock", "messages": user("Hi"), **more}
        return self.client.post("/v1/chat/completions", json=body, headers=self.key).status_code


def _url(engine: ScriptedEngine) -> str:
    return f"http://127.0.0.1:{engine.port}/v1"


@pytest.fixture
def pool(settings: Settings, database: Database) -> Iterator[Pool]:
    found = Pool(settings, database)
    yield found
    found.stop()


@pytest.fixture
def narrow(settings: Settings, database: Database) -> Iterator[Pool]:
    """Each engine of the local pool holds one call."""
    found = Pool(settings, database, most_outstanding=1)
    yield found
    found.stop()


def test_the_least_busy_engine_is_asked(pool: Pool) -> None:
    pool.engine.wait_at = pool.second.wait_at = 0
    with ExitStack() as streams:
        for expected in ((1, 0, 0), (1, 1, 0), (2, 1, 0), (2, 2, 0)):
            streams.callback(pool.opened().close)
            assert pool.asked() == expected
    assert pool.status() == 200
    assert pool.asked() == (3, 2, 0)  # all were closed, so the first one is again as good as any


def test_what_the_pool_cannot_hold_overflows(narrow: Pool) -> None:
    narrow.engine.wait_at = narrow.second.wait_at = 0
    held = [narrow.opened() for _ in range(2)]
    assert narrow.asked() == (1, 1, 0)
    assert narrow.status() == 200
    assert narrow.asked() == (1, 1, 1)
    held.pop().close()
    assert narrow.status() == 200
    assert narrow.asked() == (1, 2, 1)
    held.pop().close()


def test_an_engine_that_is_gone_is_passed_over_then_left_alone_then_tried_once(pool: Pool) -> None:
    port = pool.engine.port
    pool.engine.stop()
    assert [pool.status() for _ in range(4)] == [200] * 4
    assert len(pool.second.asked) == 4
    first = pool.app.extensions["dunnock_chat"].engines.local[0]
    assert (first.failures, first.client.base_url) == (3, f"http://127.0.0.1:{port}/v1")
    assert first.closed_until > time.monotonic() - 1
    time.sleep(0.35)
    assert first.may_be_asked()
    assert pool.status() == 200  # it is tried, and is still gone
    assert (first.failures, first.may_be_asked()) == (4, False)
    assert first.outstanding == 0


def test_an_engine_that_came_back_is_well_again(pool: Pool) -> None:
    pool.engine.mode = "full"
    assert [pool.status() for _ in range(4)] == [200] * 4
    assert pool.asked() == (3, 4, 0)
    pool.engine.mode = "well"
    time.sleep(0.35)
    assert pool.status() == 200
    assert pool.asked() == (4, 4, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_what_may_have_been_begun_is_not_asked_of_another(pool: Pool, stream: bool) -> None:
    pool.engine.mode = "breaks"
    assert pool.status(stream=stream) == 503
    assert pool.asked()[1:] == (0, 0)
    assert len(pool.engine.asked) <= 2  # on loopback a lost connection is tried again, at the same engine


def test_an_engine_whose_streams_break_off_is_left_alone(settings: Settings, database: Database) -> None:
    pool = Pool(settings, database, rest_s=60)
    begun = {"choices": [{"index": 0, "delta": {"content": "Once "}, "finish_reason": None}]}
    for engine in (pool.engine, pool.second):
        engine.chunks = [begun]
    limit = pool.settings.engines.failures
    for _ in range(2 * limit):  # each begins well
        answer = pool.opened()
        assert "error" in answer.text
    assert pool.asked() == (limit, limit, 0)
    assert pool.status() == 200
    assert pool.asked() == (limit, limit, 1)
    pool.stop()


def test_an_engine_whose_replies_the_guard_cuts_is_well(pool: Pool) -> None:
    """The guard lets go of a stream while the next piece is waited for; that is nothing that the engine did."""
    for engine in pool.all:
        engine.pieces, engine.wait_at = [f"the key is {SECRET} ", "and so on ", "for ever"], 1
    for _ in range(2 * pool.settings.engines.failures + 2):
        assert "content_filter" in pool.opened().text
    assert all(not replica.failures and not replica.closed_until for replica in chat_of(pool.app).engines.local)
    assert pool.asked()[2] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_where_all_are_full_the_caller_is_told(pool: Pool, stream: bool) -> None:
    for engine in pool.all:
        engine.mode = "full"
    assert pool.status(stream=stream) == 503
    assert pool.asked() == (1, 1, 1)
    assert all(replica.outstanding == 0 for replica in pool.app.extensions["dunnock_chat"].engines.local)


def test_several_replies_are_spread(pool: Pool) -> None:
    assert pool.status(n=4) == 200
    assert pool.asked() == (2, 2, 0)
