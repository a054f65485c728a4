"""The calls that the embedded engine's decoder answers, of the one over llama.cpp; texts are held to transformers' own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import ArtifactError, Conflict, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import user
from policy.engine.generation import Finish, Generation, Piece, Sampling
from policy.gguf.base import GgufBase, load_gguf_base, merge_gguf
from policy.gguf.decoder import GgufDecoder
from policy.gguf.llama import LlamaSettings
from tests.policy.conftest import ADAPTERS, Golden, greedy
from tests.policy.gguf.conftest import EXACT
from tests.tiny import CONTEXT_TOKENS, make_tiny_adapter, make_tiny_base

PROMPTS = ["Hi", "What is bread?", "Tell me of Paris. " * 6, "How do I keep a dunnock safe?"]


@pytest.fixture(scope="module")
def llama(gguf_base: GgufBase, artifacts: Path) -> Iterator[GgufDecoder]:
    """A decoder with both adapters loaded."""
    decoder = GgufDecoder(gguf_base, EXACT)
    for name in ADAPTERS:
        decoder.load(name, artifacts / name)
    yield decoder
    decoder.close()


def ask(decoder: GgufDecoder, prompt: str, sampling: Sampling, model: str = "base") -> Generation:
    return decoder.submit(model, decoder.base.encode(user(prompt)), sampling)


def text_of(event: Piece | Finish | None) -> str:
    return event.text if isinstance(event, Piece) else ""


def read(generation: Generation) -> tuple[str, Finish]:
    *pieces, end = generation
    assert isinstance(end, Finish)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), end


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_adapters_and_base_stream_together_without_mixing(llama: GgufDecoder, golden: Golden) -> None:
    asked = [(name, prompt) for prompt in PROMPTS for name in ("one", "base", "two")]
    open_ones = [ask(llama, prompt, greedy(32), name) for name, prompt in asked]
    texts = {key: read(generation)[0] for key, generation in zip(asked, open_ones, strict=True)}
    assert texts == {(name, prompt): golden(name, prompt, 32) for name, prompt in asked}
    assert len({texts[name, "Hi"] for name in ("base", "one", "two")}) == 3


def test_a_swap_under_four_open_streams_changes_no_text(llama: GgufDecoder, golden: Golden, artifacts: Path) -> None:
    """Adapters come and go while four stream: each text is the one that its adapter writes alone."""
    for number in range(3):
        open_ones = [(name, ask(llama, "Hi", greedy(400), name)) for name in ("one", "base", "two", "one")]
        first = {id(generation): generation.next(30) for _, generation in open_ones}
        llama.load(f"swap-{number}", artifacts / "two")
        running = [generation for _, generation in open_ones if not generation.over]
        assert read(ask(llama, "Hi", greedy(8), f"swap-{number}"))[0] == golden("two", "Hi", 8)
        llama.unload(f"swap-{number}")
        assert running  # otherwise nothing was open while the adapter came
        for name, generation in open_ones:
            assert text_of(first[id(generation)]) + read(generation)[0] == golden(name, "Hi", 400)
    assert list(llama.adapters()) == ["base", "one", "two"]


def test_the_former_server_goes_with_its_last_request(llama: GgufDecoder, artifacts: Path) -> None:
    former = llama._stand
    open_one = ask(llama, "a b c", greedy(400))
    assert isinstance(open_one.next(30), Piece)
    llama.load("other", artifacts / "two")
    assert llama._stand is not former
    assert hasattr(former.llama, "_server")
    read(open_one)
    wait_until(lambda: not hasattr(former.llama, "_server"))
    llama.unload("other")


def test_unload_lets_open_requests_end_and_takes_no_new_ones(
    llama: GgufDecoder, golden: Golden, artifacts: Path
) -> None:
    llama.load("leaving", artifacts / "one")
    open_one = ask(llama, "Hi", greedy(400), "leaving")
    first = open_one.next(30)
    leaving = threading.Thread(target=llama.unload, args=("leaving",))
    leaving.start()
    wait_until(lambda: "leaving" not in llama.adapters())
    with pytest.raises(NotFound):
        ask(llama, "Hi", greedy(5), "leaving")
    assert text_of(first) + read(open_one)[0] == golden("one", "Hi", 400)
    leaving.join(30)
    with pytest.raises(NotFound):
        llama.unload("leaving")


def test_a_stop_string_ends_the_text_and_does_not_leak(llama: GgufDecoder, golden: Golden) -> None:
    full = golden("base", "Hi", 40)
    stop = full[10:14]
    text, end = read(ask(llama, "Hi", greedy(40, stop=(stop,))))
    assert text == full[: full.index(stop)]
    assert end.reason == "stop"
    wait_until(lambda: llama.open_requests() == 0)


def test_the_same_seed_gives_the_same_text_whoever_sits_beside(llama: GgufDecoder) -> None:
    for top_p in (1.0, 0.8):
        wanted = Sampling(max_tokens=40, temperature=0.9, top_p=top_p, seed=7)
        alone = read(ask(llama, "Hi", wanted))[0]
        crowd = [ask(llama, p, Sampling(max_tokens=40, temperature=1.2, seed=i)) for i, p in enumerate(PROMPTS)]
        beside = read(ask(llama, "Hi", wanted))[0]
        other = read(ask(llama, "Hi", Sampling(max_tokens=40, temperature=0.9, top_p=top_p, seed=8)))[0]
        for generation in crowd:
            read(generation)
        assert alone == beside
        assert alone != other


def test_top_p_is_taken_of_the_tempered_distribution(llama: GgufDecoder) -> None:
    """A tiny nucleus leaves the most likely token alone, however hot."""
    assert (
        read(ask(llama, "Hi", Sampling(max_tokens=30, temperature=2.0, top_p=1e-6, seed=1)))[0]
        == (read(ask(llama, "Hi", greedy(30)))[0])
    )


def test_a_cancelled_request_frees_its_slot(llama: GgufDecoder) -> None:
    generations = [ask(llama, "Hi", greedy(400)) for _ in range(EXACT.slots)]
    waiting = ask(llama, "a b c", greedy(5))
    assert isinstance(generations[0].next(30), Piece)
    for generation in generations[1:]:
        generation.cancel()
    assert read(generations[1])[1].reason == "cancelled"
    assert read(waiting)[1].reason == "length"
    generations[0].cancel()
    assert read(generations[0])[1].reason == "cancelled"
    wait_until(lambda: llama.open_requests() == 0)


def test_penalties_keep_a_text_from_repeating(llama: GgufDecoder) -> None:
    plain = ask(llama, "Hi", Sampling(max_tokens=60, temperature=0.0))
    penalised = ask(llama, "Hi", Sampling(max_tokens=60, temperature=0.0, presence_penalty=2, frequency_penalty=2))
    assert read(plain)[0] != read(penalised)[0]


def test_the_context_caps_the_completion(llama: GgufDecoder) -> None:
    ids = (llama.base.encode(user("Hi")) * 60)[: CONTEXT_TOKENS - 3]
    assert read(llama.submit("base", ids, greedy(50)))[1].completion_tokens <= 3
    with pytest.raises(PromptTooLong):
        llama.submit("base", [5] * CONTEXT_TOKENS, greedy(5))


def test_a_text_keeps_to_a_schema(llama: GgufDecoder) -> None:
    schema = {
        "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
        "additionalProperties": False,
    }  # fmt: skip
    text, end = read(ask(llama, "Hi", Sampling(max_tokens=200, temperature=0.0, json_schema=schema)))
    assert json.loads(text)["colour"] in ("red", "blue")
    assert end.reason == "stop"
    with pytest.raises(InvalidInput, match="ASCII"):
        ask(llama, "Hi", Sampling(max_tokens=9, json_schema={"enum": ["grün"]}))


def test_log_probabilities_that_llama_cpp_does_not_know_are_refused(llama: GgufDecoder) -> None:
    for wrong in ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0, "presence_penalty": 1.0}):
        with pytest.raises(InvalidInput, match="log-probabilities"):
            ask(llama, "Hi", Sampling(max_tokens=4, logprobs=True, **wrong))  # type: ignore[arg-type]
    told = read(ask(llama, "Hi", Sampling(max_tokens=4, temperature=0.5, presence_penalty=1.0, logprobs=True)))[1]
    assert len(told.logprobs) == told.completion_tokens


def test_too_many_waiting_requests_are_refused(gguf_base: GgufBase) -> None:
    small = GgufDecoder(gguf_base, LlamaSettings(1, CONTEXT_TOKENS, 1, exact=True), max_waiting=1)
    first = ask(small, "Hi", greedy(400))
    first.next(30)
    ask(small, "Hi", greedy(5))
    with pytest.raises(EngineError) as refused:
        ask(small, "Hi", greedy(5))
    assert refused.value.code == "engine_overloaded"
    small.close()
    with pytest.raises(EngineError, match="shutting down"):
        read(first)


def test_adapters_are_checked_before_they_are_loaded(llama: GgufDecoder, artifacts: Path, tmp_path: Path) -> None:
    before = llama._stand
    llama.load("one", artifacts / "one")  # again, from the same path: nothing happens
    with pytest.raises(Conflict):
        llama.load("one", artifacts / "two")
    for name in ("base", "", "../x", "a" * 61, ".hidden"):
        with pytest.raises(InvalidInput):
            llama.load(name, artifacts / "one")
    with pytest.raises(ArtifactError):
        llama.load("three", tmp_path / "missing")
    wrong = make_tiny_adapter(make_tiny_base(tmp_path / "other", hidden_size=32), tmp_path / "wrong")
    with pytest.raises(ArtifactError, match="wrong base"):
        llama.load("three", wrong)
    assert list(llama.adapters()) == ["base", "one", "two"]
    assert llama._stand is before


def test_a_file_that_llama_cpp_cannot_read_is_refused(gguf_base: GgufBase, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_base.file.read_bytes()[:2000])
    with pytest.raises(ArtifactError, match="broken"):
        GgufDecoder(GgufBase(gguf_base.folder, broken, gguf_base.tokenizer, 512, gguf_base.eos_ids), EXACT)


def test_a_failing_chunk_ends_its_request_and_the_others_go_on(
    llama: GgufDecoder, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("policy.gguf.llama._tokens", lambda *_: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            read(ask(llama, "Hi", greedy(5)))
    assert read(ask(llama, "Hi", greedy(5)))[0] == golden("base", "Hi", 5)


def test_a_file_that_holds_its_adapter_answers_by_the_version_alone(
    artifacts: Path, gguf_base: GgufBase, golden: Golden, tmp_path: Path
) -> None:
    file = tmp_path / "merged.gguf"
    merge_gguf(artifacts / "base", artifacts / "one", file, "f32")
    base = load_gguf_base(artifacts / "base", tmp_path / "cache", "q4_1", CONTEXT_TOKENS, file)
    assert base.eos_ids == gguf_base.eos_ids
    assert not (tmp_path / "cache").exists()
    decoder = GgufDecoder(base, EXACT, name="v7")
    assert read(ask(decoder, "Hi", greedy(32), "v7"))[0] == golden("one", "Hi", 32)
    assert decoder.adapters() == {"v7": None}
    with pytest.raises(NotFound):
        ask(decoder, "Hi", greedy(8))
    with pytest.raises(InvalidInput, match="hold its adapter already"):
        decoder.load("two", artifacts / "two")
    decoder.close()
    with pytest.raises(ArtifactError, match="is not there"):
        load_gguf_base(artifacts / "base", tmp_path / "cache", "f32", CONTEXT_TOKENS, tmp_path / "none.gguf")
