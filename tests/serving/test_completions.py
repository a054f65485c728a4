"""`/v1/completions`: texts continued as they stand, by the path that chats take."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.models import TenantUsage
from access.tenants import Agreed, create_tenant, make_key
from core.db import Database
from core.settings import Settings
from feedback.models import Completion, Prompt, Task
from policy.engine.generation import Piece, Sampling
from serving.models import GuardReport
from tests.browser import LiveServer
from tests.serving.conftest import Served
from tests.serving.test_guarding import INJECTION, SECRET, Installed
from tests.tiny import load_tiny

GREEDY: dict[str, Any] = {"model": "dunnock", "prompt": "What is", "temperature": 0, "max_tokens": 12}


@pytest.fixture
def openai_client(app: Flask, served: Served) -> Iterator[openai.OpenAI]:
    """The `openai` client against the app."""
    server = LiveServer(app)
    key = served.chat["Authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        yield client
    server.stop()


def written(served: Served, prompt: str, max_tokens: int) -> str:
    """What the active version goes on with, greedily."""
    decoder = served.engine.decoder
    decoder.load("v1", served.adapter)
    events = decoder.submit("v1", decoder.base.encode_raw(prompt), Sampling(max_tokens=max_tokens, temperature=0.0))
    return "".join(event.text for event in events if isinstance(event, Piece))


def ask(client: FlaskClient, served: Served, **body: Any) -> Any:
    return client.post("/v1/completions", json={**GREEDY, **body}, headers=served.chat)


def rows(database: Database) -> list[Completion]:
    with database.read() as session:
        return list(session.scalars(select(Completion).order_by(Completion.created_at, Completion.id)))


def test_a_text_goes_on_as_the_version_has_it(openai_client: openai.OpenAI, served: Served, database: Database) -> None:
    reply = openai_client.completions.create(**GREEDY)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == written(served, "What is", 12)
    assert reply.id.startswith("cmpl-")
    (row,) = rows(database)
    assert (row.id, row.text, row.consent) == (reply.id, reply.choices[0].text, "service")
    assert row.sampling is not None
    assert row.sampling["raw"] is True
    with database.read() as session:
        assert session.scalars(select(Prompt.messages)).one() == [{"role": "user", "content": "What is"}]


def test_streams_come_with_usage_and_are_stored(
    openai_client: openai.OpenAI, served: Served, database: Database
) -> None:
    chunks = list(openai_client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == written(served, "What is", 12)
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert rows(database)[0].text == written(served, "What is", 12)


@pytest.mark.parametrize("stream", [False, True])
def test_several_texts_come_in_the_order_of_their_prompts(
    openai_client: openai.OpenAI, served: Served, database: Database, stream: bool
) -> None:
    prompts = ["What is", "Numbers: 0 1", "What is"]
    asked = {**GREEDY, "prompt": prompts, "n": 2}
    texts, usage = [""] * 6, None
    if stream:
        for chunk in openai_client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
            usage = chunk.usage or usage
    else:
        reply = openai_client.completions.create(**asked)
        usage = reply.usage
        for choice in reply.choices:
            texts[choice.index] = choice.text
    assert texts == [written(served, prompt, 12) for prompt in prompts for _ in range(2)]
    encode = served.engine.decoder.base.encode_raw
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (sum(len(encode(p)) for p in prompts), 72)
    stored = rows(database)
    assert len({row.id for row in stored}) == 6
    assert len({row.prompt_id for row in stored}) == 2


def test_echo_and_stop_and_seeds(client: FlaskClient, served: Served) -> None:
    whole = ask(client, served, echo=True).json["choices"][0]
    assert whole["text"] == "What is" + written(served, "What is", 12)
    stream = ask(client, served, echo=True, stream=True).text
    assert '"text": "What is"' in stream
    stop = written(served, "What is", 12)[3:6]
    assert ask(client, served, stop=stop).json["choices"][0]["text"] == written(served, "What is", 12).split(stop)[0]
    drawn = [ask(client, served, temperature=1, seed=5, n=2).json["choices"] for _ in range(2)]
    assert [choice["text"] for choice in drawn[0]] == [choice["text"] for choice in drawn[1]]
    assert drawn[0][0]["text"] != drawn[0][1]["text"]


def test_the_likelihood_of_a_text_is_told(openai_client: openai.OpenAI, served: Served) -> None:
    """As the plain model has it: what a client that asks which answer is likelier goes by."""
    text = "What is the capital of France?"
    base = served.engine.decoder.base
    ids = base.encode_raw(text)
    with torch.no_grad():
        plain = load_tiny(Path(base.model.config.name_or_path), served.adapter)
        expected = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    asked: dict[str, Any] = {"model": "dunnock", "prompt": text, "echo": True, "logprobs": 1}
    for max_tokens in (0, 1):
        reply = openai_client.completions.create(**asked, max_tokens=max_tokens)
        told = reply.choices[0].logprobs
        assert told is not None
        assert reply.choices[0].text.startswith(text)
        values = told.token_logprobs or []
        assert len(values) == len(ids) + max_tokens
        assert values[1 : len(ids)] == pytest.approx(
            [expected[i, token].item() for i, token in enumerate(ids[1:])], abs=1e-4
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == max_tokens


def test_tokens_are_told_whole_and_streamed(openai_client: openai.OpenAI) -> None:
    whole = openai_client.completions.create(**GREEDY, logprobs=2).choices[0]
    assert whole.logprobs is not None
    assert "".join(whole.logprobs.tokens or []) == whole.text
    assert all(max(top.values()) == value for top, value in zip(whole.logprobs.top_logprobs or [], whole.logprobs.token_logprobs or [], strict=True))  # fmt: skip
    streamed: list[Any] = []
    offsets: list[int] = []
    for chunk in openai_client.completions.create(**GREEDY, logprobs=2, stream=True):
        told = chunk.choices[0].logprobs
        streamed += (told.token_logprobs or []) if told else []
        offsets += (told.text_offset or []) if told else []
    assert streamed == whole.logprobs.token_logprobs
    assert offsets == whole.logprobs.text_offset


def test_chats_are_told_the_likeliest_too(openai_client: openai.OpenAI) -> None:
    choice = openai_client.chat.completions.create(
        model="dunnock", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    ).choices[0]  # fmt: skip
    assert choice.logprobs is not None
    for token in choice.logprobs.content or []:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"), ({"prompt": [[1, 2], [3]]}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"),
        ({"suffix": "end"}, None), ({"best_of": 3}, None), ({"max_tokens": 0}, None), ({"max_tokens": 0, "echo": True}, None),
        ({"echo": True, "logprobs": 1, "stream": True}, None), ({"logprobs": 6}, "logprobs"), ({"prompt": ["x"] * 9, "n": 4}, None),
        ({"prompt": "x " * 4000}, "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(
    client: FlaskClient, served: Served, body: dict[str, Any], param: str | None
) -> None:
    answer = ask(client, served, **body)
    assert answer.status_code == 400
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (error["param"] or "").split(".")[0] == (param or "")


def test_a_text_is_never_asked_about_nor_trained_on(
    client: FlaskClient, served: Served, database: Database
) -> None:  # fmt: skip
    """Trainers put chat templates around what they learn; what was no chat is left out, whatever its caller allows."""
    reply = ask(client, served, consent="training").json
    said = {"completion_id": reply["id"], "thumbs": "down", "correction": "a bird."}
    assert client.post("/v1/feedback", json=said, headers=served.feedback).status_code == 201
    with database.read() as session:
        assert session.scalars(select(Task)).all() == []
    assert rows(database)[0].consent == "service"
    assert ask(client, served, store=False).status_code == 200
    assert rows(database)[-1].text == ""


def test_a_tenant_pays_for_all_its_texts(client: FlaskClient, served: Served, database: Database) -> None:
    with database.session() as session:
        tenant_id = create_tenant(session, "lead", Agreed("Acme")).id
        secret = make_key(session, "lead", tenant_id, "k", "chat")[1]
    body, key = {**GREEDY, "prompt": ["What is", "Hi"]}, {"Authorization": f"Bearer {secret}"}
    usage = client.post("/v1/completions", json=body, headers=key).json["usage"]
    with database.read() as session:
        used = session.scalars(select(TenantUsage).where(TenantUsage.tenant_id == tenant_id)).one()
    assert used.prompt_tokens + used.completion_tokens == usage["total_tokens"]


# --- the guard


@pytest.fixture
def guarded(settings: Settings, database: Database) -> Iterator[Installed]:
    installed = Installed(settings, database)
    yield installed.with_model()
    installed.stop()


def continued(guarded: Installed, *pieces: str, stream: bool = False, **more: Any) -> str:
    """What a caller gets when the engine writes these pieces."""
    guarded.engine.pieces = pieces
    body = {"model": "dunnock", "prompt": "Birds:", "stream": stream, **more}
    answer = guarded.client.post("/v1/completions", json=body, headers=guarded.key)
    assert answer.status_code == 200, answer.text
    if not stream:
        return "".join(f"[{choice['text']}|{choice['finish_reason']}]" for choice in answer.json["choices"])
    lines = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for line in lines for choice in line["choices"]]
    return f"[{''.join(choice['text'] for choice in choices)}|{choices[-1]['finish_reason']}]"


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_leaves_that_the_guard_finds(guarded: Installed, stream: bool) -> None:
    half = len(SECRET) // 2
    said = continued(guarded, "the key is ", SECRET[:half], SECRET[half:], " so", stream=stream)
    assert SECRET[:half] not in said
    assert said.endswith("|content_filter]")
    reply, verdicts = guarded.stored()
    assert verdicts["output", "secrets"]["outcome"] == "hit"
    assert SECRET not in reply.text
    said = continued(guarded, "look, ", "a cuckoo", " is here", stream=stream)
    assert "cuckoo" not in said.split("No cuckoo here.")[0]
    assert said.endswith("No cuckoo here.|content_filter]")


@pytest.mark.parametrize("stream", [False, True])
def test_a_guard_that_does_not_answer_closes(guarded: Installed, stream: bool) -> None:
    guarded.model.mode = "dies"
    assert continued(guarded, "all is well", stream=stream).endswith("|content_filter]")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_not_let_through_reaches_no_engine(guarded: Installed, stream: bool) -> None:
    refusal = guarded.settings.guard.refusal_text
    assert continued(guarded, "x", prompt=INJECTION, stream=stream) == f"[{refusal}|content_filter]"
    assert guarded.engine.asked == []
    assert guarded.stored()[0].finish_reason == "content_filter"


def test_of_several_prompts_those_that_may_pass_do(guarded: Installed) -> None:
    refusal = guarded.settings.guard.refusal_text
    assert continued(guarded, "well", prompt=["Birds:", INJECTION, "Trees:"]) == (
        f"[well|stop][{refusal}|content_filter][well|stop]"
    )
    assert [body["prompt"] for body in guarded.engine.asked] == ["Birds:", "Trees:"]
    with guarded.database.read() as session:
        assert len(session.scalars(select(GuardReport)).all()) == 3


def test_another_engine_is_asked_in_the_words_of_its_protocol(guarded: Installed) -> None:
    guarded.engine.choice = {
        "text": "Birds: sing",
        "logprobs": {
            "tokens": ["Bir", "ds", ":", " sing"], "token_logprobs": [None, -1.0, -2.0, -0.5],
            "top_logprobs": [None, {"ds": -1.0}, {".": -0.1, ":": -2.0}, {" sing": -0.5}], "text_offset": [0, 3, 5, 6],
        },
    }  # fmt: skip
    body = {"model": "dunnock", "prompt": "Birds:", "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = guarded.client.post("/v1/completions", json=body, headers=guarded.key).json["choices"][0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("Birds: sing", [None, -1.0, -2.0, -0.5])
    assert choice["logprobs"]["top_logprobs"][2] == {".": -0.1, ":": -2.0}
    (asked,) = guarded.engine.asked
    assert (asked["prompt"], asked["echo"], asked["logprobs"]) == ("Birds:", True, 1)
    assert not {"messages", "raw", "top_logprobs", "prompt_logprobs"} & set(asked)
    assert guarded.stored()[0].text == " sing"


def test_of_a_reply_that_is_cut_only_the_prompt_s_tokens_are_told(guarded: Installed) -> None:
    """As many of them as there would be with one that is shown: clients leave out the last, which was written."""
    guarded.engine.choice = {
        "text": "Birds: cuckoo",
        "logprobs": {"tokens": ["Bir", "ds", ":", " cuckoo"], "token_logprobs": [None, -1.0, -2.0, -0.5], "text_offset": [0, 3, 5, 6]},
    }  # fmt: skip
    body = {"model": "dunnock", "prompt": "Birds:", "echo": True, "logprobs": 0, "max_tokens": 1}
    choice = guarded.client.post("/v1/completions", json=body, headers=guarded.key).json["choices"][0]
    assert choice["text"] == "Birds:No cuckoo here."
    assert choice["logprobs"]["tokens"] == ["Bir", "ds", ":", "No cuckoo here."]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, None]
