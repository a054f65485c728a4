"""Engines and a guard's model that behave as none should, and callers who leave: nothing unseen goes out, nothing is free."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from core.db import Database
from core.messages import user
from core.settings import Settings
from feedback.models import Completion
from serving import guarding
from serving.models import GuardReport
from tests.browser import LiveServer
from tests.serving.test_guarding import SECRET, Installed
from tests.serving.test_tenants import Tenants


@pytest.fixture
def guarded(settings: Settings, database: Database) -> Iterator[Installed]:
    found = Installed(settings, database).with_model()
    yield found
    found.stop()


@pytest.fixture
def tenants(settings: Settings, database: Database) -> Iterator[Tenants]:
    found = Tenants(settings, database)
    yield found
    found.stop()


def call(guarded: Installed, **more: Any) -> Any:
    body = {"model": "dunnock", "messages": user("Hi"), **more}
    return guarded.client.post("/v1/chat/completions", json=body, headers=guarded.key)


def reply(guarded: Installed) -> Completion:
    with guarded.database.read() as session:
        return session.scalars(select(Completion).where(Completion.source == "served")).one()


def chunk(content: Any = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}, "finish_reason": reason}]}


# --- what engines say


def test_tokens_of_what_was_cut_are_not_told_whatever_the_engine_calls_its_end(guarded: Installed) -> None:
    guarded.engine.pieces = [f"key {SECRET}"]
    tokens = [{"token": piece, "logprob": -0.5} for piece in ("key ", SECRET)]
    guarded.engine.choice = {"finish_reason": "content_filter", "logprobs": {"content": tokens}}
    answer = call(guarded, logprobs=True)
    assert SECRET not in answer.text
    assert answer.json["choices"][0]["logprobs"] == {"content": []}


def test_a_stream_that_ends_too_early_is_no_whole_reply(guarded: Installed) -> None:
    guarded.engine.chunks = [chunk("all is "), b""]
    answer = call(guarded, stream=True)
    assert "[DONE]" not in answer.text
    assert "engine_unavailable" in answer.text
    assert reply(guarded).finish_reason == "error"


@pytest.mark.parametrize(
    "odd",
    [
        {"error": "words"}, {"error": {"message": SECRET}}, [], None, 7, {"choices": [7]}, {"choices": {"a": 1}}, {"choices": [{"delta": [1]}]},
        chunk(7), chunk({"a": 1}), chunk([7]), {"usage": 7, "choices": []}, b"data: {\n\n", b"data: " + b"x" * 9_000_000 + b"\n\n",
    ],
)  # fmt: skip
def test_what_is_no_event_ends_a_stream_as_an_error(guarded: Installed, odd: Any) -> None:
    guarded.engine.chunks = [chunk("all is "), odd, chunk("well", "stop"), b"data: [DONE]\n\n"]
    answer = call(guarded, stream=True)
    assert "[DONE]" not in answer.text
    assert "engine_unavailable" in answer.text
    assert SECRET not in answer.text
    assert reply(guarded).finish_reason == "error"


def test_unusual_events_are_read(guarded: Installed) -> None:
    guarded.engine.chunks = [
        chunk(role="assistant"), {"choices": []}, {"choices": None, "usage": None, "error": None}, chunk("all "), b": a comment\r\n\r\n",
        chunk([{"type": "text", "text": "is "}]), chunk(refusal=SECRET), chunk(reasoning_content=SECRET), chunk(tool_calls=[{"function": {"arguments": SECRET}}]),
        {"choices": [*chunk("well")["choices"], {"index": 1, "delta": {"content": SECRET}}]}, chunk(None, "a reason longer than a column"),
        {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}, b"data: [DONE]\n\n",
    ]  # fmt: skip
    answer = call(guarded, stream=True)
    assert SECRET not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    kept = reply(guarded)
    assert (kept.text, kept.finish_reason, kept.completion_tokens) == ("all is well", "a reason longer than"[:20], 2)


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": 7}}, {"message": None}, {"message": {"content": [7]}}, {"logprobs": {"content": [{"token": "x"}]}},
        {"logprobs": {"content": [{"token": "x", "logprob": None}]}},
    ],
)  # fmt: skip
def test_a_whole_answer_that_is_none_is_an_error_of_the_engine(guarded: Installed, choice: dict[str, Any]) -> None:
    guarded.engine.choice = choice
    assert call(guarded, logprobs=True).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_signs_that_come_in_halves_are_put_together(guarded: Installed, stream: bool) -> None:
    said, reason = guarded.ask("a \ud83d", "\ude00 b \ud83d c", stream=stream)
    assert (said, reason) == ("a \U0001f600 b \ufffd c", "stop")
    assert reply(guarded).text == said


def test_an_engine_s_words_on_its_errors_stay_here(guarded: Installed) -> None:
    guarded.engine.mode = "breaks"
    for stream in (False, True):
        answer = call(guarded, stream=stream)
        assert answer.status_code == 503
        assert str(guarded.engine.port) not in answer.text


# --- the guard's model


@pytest.mark.parametrize("stream", [False, True])
def test_a_guard_that_raves_closes(guarded: Installed, stream: bool) -> None:
    guarded.ask("a", stream=False)
    guarded.stored()
    guarded.model.mode = "raves"
    assert guarded.ask("all is well", stream=stream) == (guarded.settings.guard.refusal_text, "content_filter")
    _, verdicts = guarded.stored()
    assert verdicts["output", "rules"]["outcome"] == "not_scanned"


def test_a_model_that_does_not_load_holds_nobody_up_for_long(
    guarded: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.model.mode = "loads"
    monkeypatch.setattr("serving.guard_model.LOAD_S", 1.0)
    monkeypatch.setattr(guarding, "AGAIN_S", 60.0)
    server = LiveServer(guarded.app)
    spent: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        body = {"model": "dunnock", "messages": user("Hi")}
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=guarded.key, timeout=30)
        spent.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    assert max(spent) < 4, spent
    assert len(guarded.model.loaded) == 1


def test_more_rules_than_one_question_takes_are_all_asked(guarded: Installed) -> None:
    with guarded.database.session() as session:
        for i in range(150):
            guarded.add_rule(session, f"bird{i}x")
    said, reason = guarded.ask("a bird149x sings", stream=False)
    assert (said, reason) == ("No bird149x here.", "content_filter")
    assert all(len(item["rules"]) <= 128 for item in guarded.model.asked)


def test_the_model_is_told_what_it_was_asked_before(guarded: Installed) -> None:
    guarded.ask(*(f"word{i} " for i in range(900)), stream=True)
    asked = guarded.model.asked
    assert len(asked) > 3
    heard = ""
    for item in asked:
        heard += item["text"][item["start"] :]
    assert heard == "".join(f"word{i} " for i in range(900))


# --- callers who leave, and who ask for too much


def test_a_whole_reply_that_nobody_waited_for_is_counted(tenants: Tenants) -> None:
    tenants.engine.slow = True
    server = LiveServer(tenants.app)
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "dunnock", "messages": user("Hi " * 20)}
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=tenants.keys["acme"], timeout=1)
    for _ in range(100):
        with tenants.database.read() as session:
            kept = list(session.scalars(select(Completion)))
            if kept:
                break
        time.sleep(0.05)
    server.stop()
    assert [(row.text, row.finish_reason) for row in kept] == [("", "cancelled")]
    with tenants.database.read() as session:
        (report,) = session.scalars(select(GuardReport))
    assert report.outcome == "not_scanned"


def test_a_prompt_that_is_far_too_long_is_refused_before_it_is_looked_at(
    guarded: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> None:
        raise AssertionError("it was looked at")

    monkeypatch.setattr(guarded.app.extensions.setdefault("x", guarding.Guard), "check_prompt", looked)
    answer = call(guarded, messages=user("eyJ" * 100_000))
    assert (answer.status_code, json.loads(answer.text)["error"]["code"]) == (400, "context_length_exceeded")
    assert not guarded.engine.asked
