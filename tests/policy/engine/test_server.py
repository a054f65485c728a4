import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from core.messages import user
from tests.policy.conftest import Golden
from tests.policy.engine.live import LiveEngine, free_port
from tests.tiny import CONTEXT_TOKENS, load_tiny

STEPS = {"transformers": "policy.engine.lane.choose", "gguf": "policy.gguf.llama._tokens"}


@pytest.fixture(scope="module", params=["transformers", "gguf"])
def engine(artifacts: Path, request: pytest.FixtureRequest) -> Iterator[LiveEngine]:
    engine = LiveEngine(artifacts / "base", artifacts, kind=request.param).start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def http(engine: LiveEngine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{engine.port}", timeout=20) as http:
        yield http


@pytest.fixture(scope="module")
def chat(engine: LiveEngine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=engine.url, api_key="none", max_retries=0) as chat:
        yield chat


def load(http: httpx.Client, name: str, path: Path) -> httpx.Response:
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})


def test_openai_client_gets_a_whole_completion(chat: openai.OpenAI, golden: Golden) -> None:
    reply = chat.chat.completions.create(model="base", messages=user("Hi"), temperature=0, max_tokens=20)
    assert reply.choices[0].message.content == golden("base", "Hi", 20)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 20


def test_openai_client_gets_a_stream_with_usage(chat: openai.OpenAI, golden: Golden) -> None:
    chunks = list(
        chat.chat.completions.create(
            model="base",
            messages=user("Hi"),
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == golden("base", "Hi", 20)
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-2].choices[0].finish_reason == "length"


def test_tokens_and_log_probabilities_come_where_they_are_asked_for(chat: openai.OpenAI, artifacts: Path) -> None:
    """What is told is what the plain model gives the very tokens that the text is made of, at the temperature asked for."""
    plain = load_tiny(artifacts / "base")
    for temperature, scale in ((0.0, 1.0), (1.0, 1.0), (0.5, 0.5)):
        reply = chat.chat.completions.create(
            model="base", messages=user("Hi"), temperature=temperature, max_tokens=9, seed=4, logprobs=True,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        choice = reply.choices[0]
        told: Any = reply.model_dump()
        prompt_ids, ids = told["prompt_token_ids"], told["choices"][0]["token_ids"]
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        assert len(ids) == len(content) == reply.usage.completion_tokens == 9  # type: ignore[union-attr]
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1]
        expected = (logits / scale).log_softmax(-1)[torch.arange(9), torch.tensor(ids)]
        assert [token.logprob for token in content] == pytest.approx(expected.tolist(), abs=1e-4)


def test_nobody_is_told_tokens_unasked(chat: openai.OpenAI) -> None:
    reply = chat.chat.completions.create(model="base", messages=user("Hi"), max_tokens=4)
    assert reply.choices[0].logprobs is None
    assert "token_ids" not in reply.choices[0].model_dump()
    assert "prompt_token_ids" not in reply.model_dump()
    with pytest.raises(openai.BadRequestError) as refused:
        chat.chat.completions.create(
            model="base", messages=user("Hi"), stream=True, extra_body={"return_token_ids": True}
        )
    assert refused.value.param == "stream"


def test_a_stream_tells_the_tokens_of_its_pieces(chat: openai.OpenAI) -> None:
    asked: Any = {"model": "base", "messages": user("Hi"), "temperature": 0, "max_tokens": 12, "logprobs": True}
    whole = chat.chat.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in chat.chat.completions.create(**asked, stream=True)]
    told = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content or []]
    assert [(t.token, t.logprob) for t in told] == [(t.token, t.logprob) for t in whole.logprobs.content or []]  # type: ignore[union-attr]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content


def test_errors_are_those_that_openai_clients_know(chat: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat.chat.completions.create(model="nobody", messages=user("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat.chat.completions.create(model="base", messages=user("x y " * CONTEXT_TOKENS))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as hot:
        chat.chat.completions.create(model="base", messages=user("Hi"), temperature=3)
    assert hot.value.param == "temperature"


def test_a_schema_is_kept_to(chat: openai.OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"], "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    asked: Any = {"model": "base", "messages": user("Hi"), "temperature": 0, "max_tokens": 200}
    reply = chat.chat.completions.create(**asked, response_format=form)
    assert json.loads(reply.choices[0].message.content or "")["sure"] in (True, False)
    with pytest.raises(openai.BadRequestError, match="needs its json_schema"):
        chat.chat.completions.create(**asked, response_format={"type": "json_schema"})  # type: ignore[typeddict-item]


def test_a_text_is_continued_without_a_template(chat: openai.OpenAI, artifacts: Path, engine: LiveEngine) -> None:
    ids = torch.tensor([engine.decoder.base.encode_raw("What is")])
    written = load_tiny(artifacts / "base").generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    expected = engine.decoder.base.tokenizer.decode(written, skip_special_tokens=True)
    asked: Any = {"model": "base", "prompt": "What is", "temperature": 0, "max_tokens": 12}
    reply = chat.completions.create(**asked, logprobs=0)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == expected
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (ids.shape[1], 12)
    chunks = list(chat.completions.create(**asked, logprobs=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"
    told = reply.choices[0].logprobs
    assert told is not None
    assert told.tokens == [token for chunk in chunks for token in (chunk.choices[0].logprobs or told).tokens or []][:12]
    assert chat.completions.create(**asked).choices[0].logprobs is None


def test_the_tokens_of_a_text_are_told(chat: openai.OpenAI, artifacts: Path, engine: LiveEngine) -> None:
    """As the plain model has them, also of a text that is longer than what is read at once, beside others that are not told."""
    text = "What is bread? " * 60
    asked: Any = {"model": "base", "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 2, "echo": True}
    if engine.kind == "gguf":
        with pytest.raises(openai.BadRequestError) as refused:
            chat.completions.create(**asked)
        assert refused.value.param == "logprobs"
        return
    ids = engine.decoder.base.encode_raw(text)
    assert 256 < len(ids) < CONTEXT_TOKENS
    with torch.no_grad():
        expected = load_tiny(artifacts / "base")(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    for max_tokens in (0, 1):
        choice = chat.completions.create(**{**asked, "max_tokens": max_tokens}).choices[0]
        assert choice.text.startswith(text)
        told = choice.logprobs
        assert told is not None
        values = told.token_logprobs or []
        assert len(values) == len(ids) + max_tokens
        assert values[0] is None  # type: ignore[comparison-overlap]
        assert values[1 : len(ids)] == pytest.approx(
            [expected[i, token].item() for i, token in enumerate(ids[1:])], abs=1e-4
        )
        likeliest = [max((top or {"": 1.0}).values()) for top in (told.top_logprobs or [])[1 : len(ids)]]
        assert likeliest == pytest.approx(expected[:-1].max(-1).values.tolist()[: len(ids) - 1], abs=1e-4)
        for token, at in zip((told.tokens or [])[: len(ids)], told.text_offset or [], strict=False):
            assert text[at : at + len(token)] == token


def test_bodies_that_are_no_json_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", content=b"{")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert http.get("/v1/nothing").status_code == 404


def test_tokens_are_counted_with_the_chat_template(http: httpx.Client, engine: LiveEngine) -> None:
    answer = http.post("/tokenize", json={"messages": user("What is bread?")}).json()
    assert answer["count"] == len(engine.decoder.base.encode(user("What is bread?")))


def test_adapters_come_and_go(http: httpx.Client, chat: openai.OpenAI, artifacts: Path, golden: Golden) -> None:
    assert load(http, "v1", artifacts / "one").status_code == 200
    assert load(http, "v1", artifacts / "one").status_code == 200
    assert load(http, "v1", artifacts / "two").status_code == 409
    assert [model.id for model in chat.models.list()] == ["base", "v1"]
    reply = chat.chat.completions.create(model="v1", messages=user("Hi"), temperature=0, max_tokens=16)
    assert reply.choices[0].message.content == golden("one", "Hi", 16)
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "v1"}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "v1"}).status_code == 404
    with pytest.raises(openai.NotFoundError):
        chat.chat.completions.create(model="v1", messages=user("Hi"))


def test_adapters_outside_the_artifact_folder_are_refused(http: httpx.Client, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").symlink_to(artifacts / "one")
    for path in (artifacts / "..", tmp_path, Path("/etc")):
        answer = load(http, "v2", path)
        assert answer.status_code == 400
        assert "artifact folder" in answer.json()["error"]["message"]
    assert load(http, "v2", artifacts / "base").json()["error"]["code"] == "artifact_error"


def test_a_client_that_goes_away_frees_its_row(http: httpx.Client, engine: LiveEngine) -> None:
    body = {"model": "base", "messages": user("Hi"), "max_tokens": 480, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        assert engine.decoder.open_requests() == 1
    until = time.monotonic() + 10
    while engine.decoder.open_requests():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_failure_in_mid_stream_is_told(
    http: httpx.Client, engine: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "base", "messages": user("Hi"), "max_tokens": 400, "temperature": 0, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response, monkeypatch.context() as broken:
        lines = response.iter_lines()
        next(lines)
        broken.setattr(STEPS[engine.kind], lambda *_: 1 / 0)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    assert http.get("/health").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("module", ["policy.engine.server", "policy.gguf.server"])
def test_the_process_starts_answers_and_ends_on_sigterm(artifacts: Path, tmp_path: Path, module: str) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "DUNNOCK_BASE_MODEL": str(artifacts / "base"),
        "DUNNOCK_ENGINE_PORT": str(port),
        "DUNNOCK_VAR_DIR": str(tmp_path),
        "DUNNOCK_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", module], env=environment)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.HTTPError:
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.2)
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
