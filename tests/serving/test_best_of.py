"""Best-of-N: the risk of the first completion decides, the highest score is given, all are paid for, and the guard looks at what is given."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database
from core.settings import BestOfSettings, Settings
from feedback.models import Completion
from policy.protocol import ChatRequest
from serving.chat import chat_of
from serving.deferred import wait
from serving.routing import active
from tests import factories
from tests.serving.scripted import LengthModel
from tests.serving.test_guarding import Installed

RISKY = "a cuckoo"
"""The scripted guard finds a rule broken: P = 0.9 where the threshold is 0.5."""


class Several(Installed):
    """The same with a scoring process that likes long completions."""

    def __init__(self, settings: Settings, database: Database, **best_of: Any) -> None:
        self.scoring = LengthModel()
        given = {"n": 3, "risk": 1.0, "port": self.scoring.port, "timeout_s": 2.0, **best_of}
        super().__init__(settings.model_copy(update={"best_of": BestOfSettings(**given)}), database)
        self.with_model()
        with database.session() as session:
            factories.make_reward_model(session, kind="preference")

    def stop(self) -> None:
        super().stop()
        self.scoring.stop()

    def body(self, *texts: str, **more: Any) -> Any:
        """The whole answer where the engine writes these, one call after the other."""
        self.engine.in_turn = list(texts)
        asked = {"model": "dunnock", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16, **more}
        answer = self.client.post("/v1/chat/completions", json=asked, headers=self.key)
        assert answer.status_code == 200, answer.text
        return answer.json if not more.get("stream") else answer.text

    def rows(self) -> dict[str, Completion]:
        """What is stored, by its text."""
        with self.database.session() as session:
            return {row.text: row for row in session.scalars(select(Completion))}


@pytest.fixture
def several(settings: Settings, database: Database) -> Iterator[Several]:
    installed = Several(settings, database)
    yield installed
    installed.stop()


def told(body: Any) -> dict[str, Any]:
    found: dict[str, Any] = body["dunnock"]["best_of"]
    return found


def test_a_first_one_without_risk_costs_one(several: Several) -> None:
    body = several.body("a wren", "a wren that is much longer")
    assert body["choices"][0]["message"]["content"] == "a wren"
    assert told(body) == {"drawn": 1, "risk": 0.2, "outcome": "one"}
    assert len(several.engine.asked) == 1
    assert several.scoring.asked == []
    assert {row.source for row in several.rows().values()} == {"served"}


def test_a_risky_first_one_is_one_of_several_and_the_best_is_given(several: Several) -> None:
    body = several.body(RISKY, "a wren that sings", "a wren")
    assert body["choices"][0]["message"]["content"] == "a wren that sings"
    assert told(body) == {"drawn": 3, "risk": 1.8, "outcome": "several"}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    rows = several.rows()
    assert {text: row.source for text, row in rows.items()} == {
        "a wren that sings": "served", RISKY: "sampled", "a wren": "sampled",
    }  # fmt: skip
    assert rows["a wren that sings"].id == body["id"]
    assert rows["a wren that sings"].sampling["best_of"] == told(body)
    assert rows["a wren"].sampling["best_of"]["score"] == pytest.approx(len("a wren") - 0.2)  # 2 rules, P = 0.1 each
    assert {row.prompt_id for row in rows.values()} == {rows[RISKY].prompt_id}


def test_a_broken_rule_weighs_against_a_reward(settings: Settings, database: Database) -> None:
    strict = Several(settings, database, rule_weight=100.0)
    body = strict.body(RISKY, "a heron that is the longest by far", "a wren")
    assert body["choices"][0]["message"]["content"] == "a wren"
    strict.stop()


def test_what_is_given_is_looked_at_like_any_reply(several: Several) -> None:
    body = several.body(RISKY, "a cuckoo that sings", "a cuckoo!")
    choice = body["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert "cuckoo that" not in choice["message"]["content"]


def test_a_stream_is_the_best_one(several: Several) -> None:
    lines = [line[6:] for line in several.body(RISKY, "a wren that sings", "a wren", stream=True,
             stream_options={"include_usage": True}).split("\n\n") if line]  # fmt: skip
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert said == "a wren that sings"
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert told(chunks[0])["outcome"] == "several"
    assert {row.source for row in several.rows().values()} == {"served", "sampled"}


@pytest.mark.parametrize(("mode", "outcome"), [("dies", "unscored"), ("empty", "unscored"), ("hangs", "late")])
def test_without_scores_the_first_one_is_given(several: Several, mode: str, outcome: str) -> None:
    several.scoring.mode = mode
    body = several.body(RISKY, "a wren that sings", "a wren")
    assert told(body)["outcome"] == outcome
    assert body["choices"][0]["message"]["content"] == "No cuckoo here."  # of the first one, which the guard cuts
    assert RISKY not in {row.text for row in several.rows().values() if row.source == "sampled"}


def test_without_the_guard_s_model_the_risk_is_unknown(several: Several) -> None:
    several.model.mode = "dies"
    body = several.body("a wren", "a wren that sings", "a wren")
    assert told(body) == {"drawn": 1, "risk": None, "outcome": "unknown"}
    assert body["choices"][0]["finish_reason"] == "content_filter"  # and the guard is as closed as ever


def test_the_budget_of_a_request_bounds_what_is_drawn(settings: Settings, database: Database) -> None:
    tight = Several(settings, database, extra_tokens=20)
    assert told(tight.body(RISKY, "a wren", "a wren that sings"))["drawn"] == 2
    assert told(tight.body(RISKY, "a wren", max_tokens=21))["outcome"] == "one"
    tight.stop()


def test_greedy_requests_get_others_by_drawing(several: Several) -> None:
    several.body(RISKY, "a wren", "a finch", temperature=0, seed=7)
    assert [asked["temperature"] for asked in several.engine.asked] == [0, 0.8, 0.8]
    assert [asked["seed"] for asked in several.engine.asked] == [7, 8, 9]


def test_several_choices_are_left_as_they_are(several: Several) -> None:
    body = several.body(RISKY, "a wren", n=2)
    assert "best_of" not in body["dunnock"]
    assert len(several.engine.asked) == 2


def test_another_reward_model_ranks_from_the_next_call_on(several: Several) -> None:
    several.body(RISKY, "a wren", "a finch")
    with several.database.session() as session:
        factories.make_reward_model(session, kind="preference", sha256="9" * 64, path="rewards/next")
    several.body(RISKY, "a wren", "a finch")
    assert [loaded["sha256"] for loaded in several.scoring.loaded][-1] == "9" * 64
    assert len(several.scoring.loaded) == 2


def test_a_caller_who_leaves_while_more_are_drawn_leaves_no_call_behind(several: Several) -> None:
    """The engine waits with its answers; the caller goes; nothing counts as outstanding."""
    with several.app.app_context():
        chat = chat_of(several.app)
    with several.database.read() as session:
        standing, scorer = chat.guard.standing(session), chat.best_of.scorer(session)
        version = active(session)
    request = ChatRequest(model="v1", messages=[{"role": "user", "content": "Hi"}], max_tokens=8)  # type: ignore[arg-type]

    async def leave() -> int:
        several.engine.in_turn, several.engine.slow = [RISKY], 1
        await chat.guard.ready(standing)
        drawing = asyncio.ensure_future(chat.best_of.draw(version, request, standing, scorer))
        deadline = time.monotonic() + 10
        while len(several.engine.asked) < 3 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        held = sum(replica.outstanding for replica in chat.engines.local)
        await chat.close()
        return held

    assert wait(leave()) == 0  # on a loop of its own, beside that of browser tests
    assert len(several.engine.asked) == 3
