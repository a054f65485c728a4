import json
import threading
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.test import TestResponse

from core.db import Database
from core.errors import EngineError
from core.messages import user
from feedback.models import Completion, Judgment
from policy.async_client import AsyncEngineClient
from policy.protocol import ChatRequest
from serving.recorder import Recorder
from tests.browser import LiveServer
from tests.conftest import SignedIn
from tests.factories import make_person
from tests.serving.conftest import Served

NOT_KEPT_TO = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {"type": "string"}}}}
DEEP: dict[str, object] = {"type": "string"}
for _ in range(33):
    DEEP = {"type": "array", "items": DEEP}
GREEDY = {"model": "dunnock", "messages": user("Hi"), "temperature": 0, "max_tokens": 12}


@pytest.fixture
def live(app: Flask) -> Iterator[str]:
    """The app on a real port, for real clients."""
    server = LiveServer(app)
    yield f"{server.url}/v1"
    server.stop()


@pytest.fixture
def chat(live: str, served: Served) -> Iterator[openai.OpenAI]:
    key = served.chat["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=live, api_key=key, max_retries=0) as chat:
        yield chat


def ask(client: FlaskClient, served: Served, **more: object) -> TestResponse:
    return client.post("/v1/chat/completions", json={**GREEDY, **more}, headers=served.chat)


def stored(database: Database) -> list[Completion]:
    with database.read() as session:
        rows = list(session.scalars(select(Completion).order_by(Completion.created_at)))
        for row in rows:
            assert row.prompt.source == "served"
        return rows


def error_of(answer: TestResponse) -> tuple[int, str]:
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def test_openai_client_gets_a_reply_that_is_stored(chat: openai.OpenAI, served: Served, database: Database) -> None:
    raw = chat.chat.completions.with_raw_response.create(**GREEDY, seed=3)
    reply = raw.parse()
    assert reply.choices[0].message.content == served.text("v1", "Hi", 12)
    assert reply.model == "v1"
    assert raw.headers["X-Dunnock-Policy-Version"] == "v1"
    assert reply.to_dict()["dunnock"] == {"policy_version": "v1"}
    (row,) = stored(database)
    assert (row.id, row.text, row.source) == (reply.id, reply.choices[0].message.content, "served")
    assert (row.finish_reason, row.completion_tokens) == ("length", 12)
    assert row.prompt_tokens == reply.usage.prompt_tokens
    assert row.latency_s > 0
    assert row.sampling["seed"] == 3
    assert row.policy_version_id is not None


def test_an_earlier_reply_stands_for_its_text_and_for_nobody_else(
    client: FlaskClient, served: Served, database: Database
) -> None:
    first = ask(client, served).json
    begun = user("Hi")
    named = [*begun, {"role": "assistant", "content": "", "completion_id": first["id"]}, *user("And?")]
    spelt = [*begun, {"role": "assistant", "content": first["choices"][0]["message"]["content"]}, *user("And?")]
    answers = [ask(client, served, messages=messages).json["choices"][0]["message"] for messages in (named, spelt)]
    assert answers[0] == answers[1]
    assert [row.prompt.messages for row in stored(database)][1:] == [spelt, spelt]
    with database.session() as session:
        other = make_person(session)
        session.scalars(select(Completion).where(Completion.id == first["id"])).one().person_id = other.id
    assert error_of(ask(client, served, messages=named)) == (404, "not_found")
    both = [*begun, {**named[1], "content": "said"}, *user("And?")]
    assert error_of(ask(client, served, messages=both)) == (400, "invalid_request")


def test_openai_client_gets_a_stream_that_is_stored(chat: openai.OpenAI, served: Served, database: Database) -> None:
    chunks = list(chat.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == served.text("v1", "Hi", 12)
    assert {c.model for c in chunks} == {"v1"}
    assert chunks[-1].usage.completion_tokens == 12
    (row,) = stored(database)
    assert {c.id for c in chunks} == {row.id}
    assert (row.text, row.finish_reason, row.completion_tokens) == (text, "length", 12)


def test_openai_client_knows_our_errors(chat: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat.chat.completions.create(model="nobody", messages=user("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat.chat.completions.create(model="dunnock", messages=user("x y " * 300))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        chat.with_options(api_key="dk-wrong").chat.completions.create(model="dunnock", messages=user("Hi"))
    assert [model.id for model in chat.models.list()] == ["dunnock", "v1", "base"]


def test_a_client_that_leaves_in_mid_stream_leaves_a_cancelled_reply(
    live: str, served: Served, database: Database
) -> None:
    body = {**GREEDY, "max_tokens": 450, "stream": True}
    with httpx.stream("POST", f"{live}/chat/completions", json=body, headers=served.chat) as response:
        lines = response.iter_lines()
        for _ in range(6):
            last = next(lines) or next(lines)
    completion_id = json.loads(last.removeprefix("data: "))["id"]
    for _ in range(500):
        if stored(database) and not served.engine.decoder.open_requests():
            break
        threading.Event().wait(0.02)
    (row,) = stored(database)
    assert (row.id, row.finish_reason) == (completion_id, "cancelled")
    assert served.text("v1", "Hi", 450).startswith(row.text)
    assert row.text


def test_a_stream_that_nobody_began_to_read_is_stored_too(
    client: FlaskClient, served: Served, database: Database
) -> None:
    ask(client, served, stream=True).close()
    (row,) = stored(database)
    assert row.finish_reason == "cancelled"


@pytest.mark.parametrize(("model", "name"), [("dunnock", "v1"), ("v1", "v1"), ("base", "base")])
def test_a_version_is_pinned_by_its_name(client: FlaskClient, served: Served, model: str, name: str) -> None:
    answer = ask(client, served, model=model)
    assert answer.json["model"] == name
    assert answer.json["choices"][0]["message"]["content"] == served.text(name, "Hi", 12)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "v2"}, 404, "model_not_found"),  # a candidate
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"n": 0}, 400, "invalid_request"),
        ({"n": 9}, 400, "invalid_request"),
        ({"top_logprobs": 2}, 400, "invalid_request"),
        ({"response_format": NOT_KEPT_TO}, 400, "invalid_request"),
        ({"response_format": {"type": "xml"}}, 400, "invalid_request"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_request"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}}, 400, "invalid_request"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 20_001}}}},
            400,
            "invalid_request",
        ),
        ({"tools": [{"type": "function"}]}, 400, "invalid_request"),
        ({"messages": []}, 400, "invalid_request"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_request"),
        ({"temperature": "hot"}, 400, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    client: FlaskClient, served: Served, body: dict[str, object], status: int, code: str
) -> None:
    assert error_of(ask(client, served, **body)) == (status, code)
    assert error_of(ask(client, served, **body, stream=True)) == (status, code)


def test_a_body_nested_too_deep_is_refused(client: FlaskClient, served: Served) -> None:
    answer = client.post("/v1/chat/completions", data="[" * 100_000, headers=served.chat)
    assert error_of(answer) == (400, "invalid_request")
    assert "nested too deep" in answer.json["error"]["message"]


def test_text_parts_and_unknown_fields_are_taken(client: FlaskClient, served: Served) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    answer = ask(client, served, messages=[{"role": "user", "content": parts, "name": "x"}], logit_bias={}, user="u")
    assert answer.json["choices"][0]["message"]["content"] == served.text("v1", "Hi", 12)


def test_several_replies_have_ids_and_seeds_of_their_own(
    chat: openai.OpenAI, client: FlaskClient, served: Served, database: Database
) -> None:
    reply = chat.chat.completions.create(**{**GREEDY, "temperature": 1}, seed=7, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    alone = [chat.chat.completions.create(**{**GREEDY, "temperature": 1}, seed=7 + i) for i in range(3)]
    texts = [choice.message.content for choice in reply.choices]
    assert texts == [one.choices[0].message.content for one in alone]
    assert len(set(texts)) == 3
    assert reply.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert reply.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    ids = [choice.to_dict()["completion_id"] for choice in reply.choices]
    assert ids[0] == reply.id
    rows = {row.id: row for row in stored(database)}
    assert [rows[name].text for name in ids] == texts
    assert [rows[name].sampling["seed"] for name in ids] == [7, 8, 9]
    said = client.post("/v1/feedback", json={"completion_id": ids[2], "thumbs": "up"}, headers=served.feedback)
    assert said.status_code == 201


def test_the_last_seed_is_followed_by_the_first(client: FlaskClient, served: Served, database: Database) -> None:
    answer = ask(client, served, temperature=1, seed=2**63 - 1, n=2)
    assert answer.status_code == 200
    assert sorted(row.sampling["seed"] for row in stored(database)) == [-(2**63), 2**63 - 1]


def test_one_of_several_replies_that_fails_leaves_none(
    client: FlaskClient, served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AsyncEngineClient.complete

    async def failing(self: AsyncEngineClient, request: ChatRequest, headers: object = None) -> object:
        if request.seed == 2:
            raise EngineError("the engine is full")
        return await plain(self, request)

    monkeypatch.setattr(AsyncEngineClient, "complete", failing)
    assert error_of(ask(client, served, temperature=1, seed=1, n=3))[0] == 503
    assert stored(database) == []


def test_several_replies_are_stored_all_or_none(
    client: FlaskClient, served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import recorder

    def failing(*args: object) -> None:  # what comes once the replies are written
        raise OSError("the disk is full")

    monkeypatch.setattr(recorder, "spend", failing)
    client.application.config["PROPAGATE_EXCEPTIONS"] = False
    assert error_of(ask(client, served, temperature=1, n=3)) == (500, "internal_error")
    assert stored(database) == []


def test_tokens_come_with_the_logs_of_their_probabilities(
    chat: openai.OpenAI, client: FlaskClient, served: Served
) -> None:
    choice = chat.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=0).choices[0]
    told = choice.logprobs.content
    assert "".join(token.token for token in told) == choice.message.content
    assert len(told) == 12
    assert all(token.logprob < 0 for token in told)
    assert bytes(told[0].bytes).decode() == told[0].token
    assert ask(client, served).json["choices"][0]["logprobs"] is None


def test_several_streams_come_side_by_side_and_are_stored_together(
    chat: openai.OpenAI, served: Served, database: Database
) -> None:
    several = {**GREEDY, "temperature": 1, "seed": 5, "n": 3}
    whole = [choice.message.content for choice in chat.chat.completions.create(**several).choices]
    assert len(set(whole)) == 3
    chunks = list(chat.chat.completions.create(**several, stream=True, stream_options={"include_usage": True}))
    texts, ends = [""] * 3, {}
    for choice in (chunk.choices[0] for chunk in chunks if chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.to_dict()["completion_id"]
    assert texts == whole
    assert chunks[-1].usage.completion_tokens == 36
    rows = {row.id: row for row in stored(database)[3:]}
    assert [rows[ends[i]].text for i in range(3)] == texts
    assert len({row.prompt_id for row in rows.values()}) == 1
    assert chunks[0].id == ends[0]


def test_a_stream_tells_the_tokens_of_what_it_shows(chat: openai.OpenAI) -> None:
    told = chat.chat.completions.create(**GREEDY, logprobs=True).choices[0].logprobs.content
    chunks = [chunk.choices[0] for chunk in chat.chat.completions.create(**GREEDY, logprobs=True, stream=True)]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert [(t.token, t.logprob) for t in streamed] == [(t.token, t.logprob) for t in told]
    shown, text = "", ""
    for chunk in chunks:
        text += chunk.delta.content or ""
        shown += "".join(token.token for token in (chunk.logprobs.content if chunk.logprobs else ()))
        assert text.startswith(shown)  # no token before its text
    assert shown == text


def test_a_model_is_looked_up_by_its_name(chat: openai.OpenAI, client: FlaskClient, served: Served) -> None:
    assert chat.models.retrieve("dunnock").id == "dunnock"
    assert chat.models.retrieve("base").object == "model"
    for name in ("v2", "nobody", "a/b"):  # a candidate, and names that are none
        assert error_of(client.get(f"/v1/models/{name}", headers=served.chat)) == (404, "model_not_found")


def test_the_same_seed_gives_the_same_text(client: FlaskClient, served: Served) -> None:
    def text(seed: int) -> str:
        answer = ask(client, served, temperature=1, seed=seed, max_tokens=30)
        return answer.json["choices"][0]["message"]["content"]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_keys_open_what_their_scope_says(client: FlaskClient, served: Served) -> None:
    assert error_of(client.post("/v1/chat/completions", json=GREEDY)) == (401, "invalid_api_key")
    assert error_of(client.post("/v1/chat/completions", json=GREEDY, headers=served.feedback)) == (403, "forbidden")
    assert error_of(client.get("/v1/models")) == (401, "invalid_api_key")


def test_a_browser_session_needs_its_csrf_token(app: Flask, served: Served, sign_in: Callable[..., SignedIn]) -> None:
    browser = sign_in(served.person).client
    app.config["WTF_CSRF_ENABLED"] = True
    assert error_of(browser.post("/v1/chat/completions", json=GREEDY)) == (403, "csrf_failed")
    page = browser.get("/chat").text
    token = page.split('name="csrf-token" content="')[1].split('"')[0]
    answer = browser.post("/v1/chat/completions", json=GREEDY, headers={"X-CSRFToken": token})
    assert answer.status_code == 200


def test_feedback_names_a_reply(client: FlaskClient, served: Served, database: Database) -> None:
    reply = ask(client, served).json["id"]
    said = {"completion_id": reply, "thumbs": "down", "rating": 2, "correction": "Better.", "idempotency_key": "a"}
    first = client.post("/v1/feedback", json=said, headers=served.feedback)
    assert first.status_code == 201
    assert first.json["object"] == "feedback"
    again = client.post("/v1/feedback", json=said, headers=served.feedback)
    assert again.json["judgment_ids"] == first.json["judgment_ids"]
    with database.read() as session:
        rows = list(session.scalars(select(Judgment)))
    assert {(row.completion_id, row.annotator_id) for row in rows} == {(reply, served.person.id)}
    assert [row.thumbs for row in rows if row.thumbs] == [-1]


def test_feedback_that_says_nothing_or_names_nothing(client: FlaskClient, served: Served) -> None:
    nothing = client.post("/v1/feedback", json={"completion_id": "x"}, headers=served.feedback)
    assert error_of(nothing)[0] == 400
    unknown = client.post("/v1/feedback", json={"completion_id": "x", "thumbs": "up"}, headers=served.feedback)
    assert error_of(unknown)[0] == 404


def test_after_a_restart_of_the_engine_the_adapter_is_loaded_again(client: FlaskClient, served: Served) -> None:
    before = ask(client, served).json["choices"][0]["message"]["content"]
    served.engine.stop()
    assert error_of(ask(client, served)) == (503, "engine_unavailable")
    assert error_of(ask(client, served, stream=True)) == (503, "engine_unavailable")
    served.engine.start()
    assert list(served.engine.decoder.adapters()) == ["base"]
    assert ask(client, served).json["choices"][0]["message"]["content"] == before


def test_a_damaged_adapter_is_an_error_and_never_another_policy(
    client: FlaskClient, served: Served, database: Database
) -> None:
    (served.adapter / "adapter_config.json").write_text("{}")
    for stream in (False, True):
        answer = ask(client, served, stream=stream)
        assert error_of(answer) == (503, "artifact_error")
        assert str(served.adapter) not in answer.text
    assert stored(database) == []


def test_an_engine_that_dies_in_mid_stream_leaves_a_cut_reply(
    client: FlaskClient, served: Served, database: Database
) -> None:
    answer = ask(client, served, stream=True, max_tokens=450)
    lines = iter(answer.response)
    next(lines)
    threading.Thread(target=served.engine.decoder.close).start()
    last = list(lines)[-1]
    assert json.loads(last.decode().removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    answer.close()
    (row,) = stored(database)
    assert row.finish_reason == "error"


def test_a_reply_that_cannot_be_stored_does_not_end_as_if_it_were(
    client: FlaskClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Recorder, "store", broken)
    lines = ask(client, served, stream=True).text
    assert "[DONE]" not in lines
    assert "could not be stored" in lines
