import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.artifacts import hash_folder
from core.errors import ArtifactError, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import Message
from policy.client import EngineClient, ensure_loaded
from policy.models import PolicyVersion
from policy.protocol import ChatRequest
from tests.policy.conftest import Golden
from tests.policy.engine.live import LiveEngine, free_port
from tests.tiny import CONTEXT_TOKENS, make_tiny_adapter


@pytest.fixture(scope="module", params=["transformers", "gguf"])
def engine(artifacts: Path, request: pytest.FixtureRequest) -> Iterator[LiveEngine]:
    engine = LiveEngine(artifacts / "base", artifacts, kind=request.param).start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def client(engine: LiveEngine) -> Iterator[EngineClient]:
    client = EngineClient(engine.url, timeout_s=20)
    yield client
    client.close()


def asking(text: str, model: str = "base", **more: object) -> ChatRequest:
    fields = {"temperature": 0.0, "max_tokens": 16, **more}
    return ChatRequest(model=model, messages=(Message(role="user", content=text),), **fields)


def test_complete_gives_text_counts_and_latency(client: EngineClient, golden: Golden) -> None:
    reply = client.complete(asking("Hi"))
    assert (reply.text, reply.finish_reason, reply.completion_tokens) == (golden("base", "Hi", 16), "length", 16)
    assert reply.prompt_tokens == client.count_tokens(asking("Hi"))
    assert reply.latency_s > 0


def test_tokens_are_told_where_they_are_asked_for(client: EngineClient) -> None:
    plain = client.complete(asking("Hi"))
    assert (plain.token_ids, plain.logprobs, plain.prompt_token_ids) == (None, None, None)
    told = client.complete(asking("Hi", return_token_ids=True, logprobs=True))
    assert told.text == plain.text
    assert (len(told.token_ids or ()), len(told.logprobs or ())) == (16, 16)
    assert len(told.prompt_token_ids or ()) == told.prompt_tokens
    assert all(value <= 0 for value in told.logprobs or ())


def test_what_is_not_asked_for_is_not_sent() -> None:
    """Other engines may refuse a field that they do not know."""
    assert not {"logprobs", "return_token_ids"} & asking("Hi").wire().keys()
    assert asking("Hi", return_token_ids=True).wire()["return_token_ids"] is True


def test_stream_gives_pieces_and_usage_at_the_end(client: EngineClient, golden: Golden) -> None:
    with client.stream(asking("Hi")) as events:
        seen = list(events)
    assert "".join(event.text for event in seen) == golden("base", "Hi", 16)
    assert [event.finish_reason for event in seen if event.finish_reason] == ["length"]
    assert seen[-1].completion_tokens == 16


def test_closing_a_stream_frees_the_row(client: EngineClient, engine: LiveEngine) -> None:
    events = client.stream(asking("Hi", max_tokens=480))
    next(events)
    events.close()
    for _ in range(1000):
        if engine.decoder.open_requests() == 0:
            return
        threading.Event().wait(0.01)
    pytest.fail("the row is still decoded")


def test_many_keep_their_order(client: EngineClient, golden: Golden) -> None:
    prompts = [f"Tell me of bird {n}" for n in range(12)]
    done: list[int] = []
    replies = client.complete_many([asking(p) for p in prompts], 6, on_done=lambda index, _: done.append(index))
    assert [reply.text for reply in replies] == [golden("base", p, 16) for p in prompts]
    assert sorted(done) == list(range(12))


def test_one_failure_fails_the_many(client: EngineClient) -> None:
    with pytest.raises(NotFound):
        client.complete_many([asking("Hi"), asking("Hi", "nobody"), asking("Hi")], 2)


def test_refusals_become_our_errors(client: EngineClient) -> None:
    with pytest.raises(NotFound, match="nobody"):
        client.complete(asking("Hi", "nobody"))
    with pytest.raises(NotFound, match="nobody"):
        client.stream(asking("Hi", "nobody"))
    with pytest.raises(PromptTooLong):
        client.complete(asking("x y " * CONTEXT_TOKENS))
    with pytest.raises(InvalidInput):
        client.load_adapter("../one", "/nowhere")


def test_an_engine_that_is_not_there(client: EngineClient) -> None:
    nobody = EngineClient(f"http://127.0.0.1:{free_port()}/v1")
    assert client.healthy()
    assert not nobody.healthy()
    with pytest.raises(EngineError, match="cannot be reached"):
        nobody.complete(asking("Hi"))
    with pytest.raises(EngineError, match="cannot be reached"):
        nobody.stream(asking("Hi"))
    nobody.close()


@contextmanager
def dropping_server(answers: list[int]) -> Iterator[str]:
    """Takes one connection after another; the n-th gets so many answers and is closed upon the request after."""
    body = b'{"data": [{"id": "base"}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def serve() -> None:
        for count in answers:
            connection, _ = listener.accept()
            with connection:
                for _ in range(count):
                    connection.recv(65536)
                    connection.sendall(answer)
                connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_a_request_whose_kept_connection_ends_is_sent_again() -> None:
    with dropping_server([1, 1]) as url:
        client = EngineClient(url, timeout_s=5)
        assert client.models() == ["base"]
        assert client.models() == ["base"]  # the first connection ends upon this; a second one answers
        client.close()


def test_a_request_that_is_dropped_twice_fails() -> None:
    with dropping_server([0, 0]) as url:
        client = EngineClient(url, timeout_s=5)
        with pytest.raises(EngineError, match="cannot be reached"):
            client.stream(asking("Hi"))
        client.close()


def test_ensure_loaded_verifies_and_loads_once(client: EngineClient, artifacts: Path, golden: Golden) -> None:
    version = PolicyVersion(name="v7", adapter_path="one", adapter_sha256=hash_folder(artifacts / "one"))
    ensure_loaded(client, version, artifacts)
    ensure_loaded(client, version, artifacts)
    assert client.complete(asking("Hi", "v7")).text == golden("one", "Hi", 16)
    client.unload_adapter("v7")
    assert client.models() == ["base"]
    ensure_loaded(client, PolicyVersion(name="base", adapter_path=None), artifacts)


def test_ensure_loaded_refuses_a_damaged_adapter(client: EngineClient, artifacts: Path) -> None:
    folder = make_tiny_adapter(artifacts / "base", artifacts / "damaged", seed=3)
    version = PolicyVersion(name="v8", adapter_path="damaged", adapter_sha256=hash_folder(folder))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="changed or damaged"):
        ensure_loaded(client, version, artifacts)
    outside = PolicyVersion(name="v9", adapter_path="../elsewhere", adapter_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="no recorded artifact"):
        ensure_loaded(client, outside, artifacts)
    assert client.models() == ["base"]
