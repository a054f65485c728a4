import threading
import time
from pathlib import Path

import pytest
import torch

from core.errors import ArtifactError, Conflict, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import user
from policy.engine.base import LoadedBase
from policy.engine.decoder import Decoder
from policy.engine.generation import Finish, Generation, Piece, Sampling
from policy.engine.lane import Lane, Row
from policy.engine.sampling import Chooser
from policy.engine.text import TextStream
from tests.policy.conftest import Golden, greedy
from tests.tiny import CONTEXT_TOKENS, make_tiny_adapter, make_tiny_base

PROMPTS = ["Hi", "What is bread?", "Tell me of Paris. " * 6, "a b c", "How do I keep a dunnock safe?", "x" * 90]


def ask(decoder: Decoder, prompt: str, sampling: Sampling, model: str = "base", *, pieces: bool = True) -> Generation:
    return decoder.submit(model, decoder.base.encode(user(prompt)), sampling, pieces=pieces)


def text_of(event: Piece | Finish | None) -> str:
    return event.text if isinstance(event, Piece) else ""


def read(generation: Generation) -> tuple[str, Finish]:
    *pieces, end = generation
    assert isinstance(end, Finish)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), end


def wait_until(condition, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_greedy_equals_generate_for_mixed_lengths_joining_at_different_times(decoder: Decoder, golden: Golden) -> None:
    open_ones = []
    for number, prompt in enumerate(PROMPTS * 2):
        tokens = 20 + 7 * number
        generation = ask(decoder, prompt, greedy(tokens))
        first = generation.next(10) if number % 3 == 0 else None  # let the batch run before the next one joins
        open_ones.append((prompt, tokens, first, generation))
    for prompt, tokens, first, generation in open_ones:
        if isinstance(first, Finish):
            text, end = "", first
        else:
            rest, end = read(generation)
            text = text_of(first) + rest
        assert text == golden("base", prompt, tokens)
        assert end.prompt_tokens == len(decoder.base.encode(user(prompt)))


def test_a_long_prompt_is_read_in_chunks_beside_running_rows(decoder: Decoder, golden: Golden) -> None:
    long = "bread and butter " * 100
    running = ask(decoder, "Hi", greedy(120))
    assert isinstance(running.next(10), Piece)
    late = ask(decoder, long, greedy(12))
    assert len(late.prompt_ids) > 256
    assert read(late)[0] == golden("base", long, 12)
    read(running)


def test_a_shared_beginning_is_read_once_per_adapter(
    decoder: Decoder, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_tokens: list[int] = []
    forward = decoder.base.model.base_model.forward

    def counting(*args: object, **kwargs: object) -> object:
        read_tokens.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder.base.model.base_model, "forward", counting)
    prompt = "What is the capital of France, and of Spain? "
    counts = []
    for name, ending in (("base", "a"), ("one", "a"), ("base", "b"), ("one", "b"), ("one", "b")):
        read_tokens.clear()
        assert read(ask(decoder, prompt + ending, greedy(6), name))[0] == golden(name, prompt + ending, 6)
        counts.append(sum(read_tokens))
    assert min(counts[:2]) > 20  # each adapter reads for itself what another has read
    assert max(counts[2:]) < 16


def test_equal_prompts_of_a_group_are_read_as_one(
    base: LoadedBase, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = base.model.base_model.forward

    def counting(*args: object, **kwargs: object) -> object:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    prompts = [f"Which of the {n} birds sings best in spring?" for n in (1, 2, 3)]
    lane = Lane(base)
    generations = []
    for prompt in [p for p in prompts for _ in range(8)]:
        generation = Generation(base.encode(user(prompt)), 12, pieces=False)
        lane.add(Row(generation, TextStream(base.tokenizer), Chooser(greedy(12))))
        generations.append((prompt, generation))
    monkeypatch.setattr(base.model.base_model, "forward", counting)
    with torch.inference_mode():
        while lane.rows:
            lane.step()
    assert {shape[0] for shape in shapes} == {1, 3, 24}  # what all begin with, three prompts, all rows
    assert len([shape for shape in shapes if shape[0] == 24]) == 12
    for prompt, generation in generations:
        assert read(generation)[0] == golden("base", prompt, 12)


def test_characters_are_never_split(decoder: Decoder) -> None:
    text = "Grüße an die 🐦‍⬛, naïve café. 你好！"
    tokenizer = decoder.base.tokenizer
    stream = TextStream(tokenizer, stop=("never",))
    pieces = [stream.push(token) for token in tokenizer(text)["input_ids"]] + [stream.finish()]
    assert "".join(pieces) == text
    assert len(pieces) > 40
    assert not any("\ufffd" in piece for piece in pieces)


def test_adapters_and_base_stream_together_without_mixing(decoder: Decoder, golden: Golden) -> None:
    asked = [(name, prompt) for prompt in PROMPTS[:4] for name in ("one", "base", "two")]
    open_ones = [ask(decoder, prompt, greedy(32), name) for name, prompt in asked]
    texts = {key: read(generation)[0] for key, generation in zip(asked, open_ones, strict=True)}
    assert texts == {(name, prompt): golden(name, prompt, 32) for name, prompt in asked}
    assert len({texts[name, "Hi"] for name in ("base", "one", "two")}) == 3


def test_twenty_swaps_under_eight_open_streams_change_no_text(
    decoder: Decoder, golden: Golden, artifacts: Path
) -> None:
    expected = golden("one", "Hi", 60), golden("base", "Hi", 60)
    failures: list[str] = []
    swapping = threading.Event()
    swapping.set()

    def reader(name: str, text: str) -> None:
        while swapping.is_set():
            got = read(ask(decoder, "Hi", greedy(60), name))[0]
            if got != text:
                failures.append(f"{name}: {got!r} is not {text!r}")

    names = ["one", "base"] * 4
    threads = [threading.Thread(target=reader, args=(n, expected[n == "base"])) for n in names]
    for thread in threads:
        thread.start()
    for number in range(20):
        decoder.load(f"swap-{number}", artifacts / "two")
        assert read(ask(decoder, "Hi", greedy(8), f"swap-{number}"))[0] == golden("two", "Hi", 8)
        decoder.unload(f"swap-{number}")
    swapping.clear()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(decoder.adapters()) == ["base", "one", "two"]


def test_unload_lets_open_requests_end_and_takes_no_new_ones(decoder: Decoder, golden: Golden, artifacts: Path) -> None:
    decoder.load("leaving", artifacts / "one")
    open_one = ask(decoder, "Hi", greedy(200), "leaving")
    first = open_one.next(10)
    decoder.unload("leaving")
    assert text_of(first) + read(open_one)[0] == golden("one", "Hi", 200)
    with pytest.raises(NotFound):
        ask(decoder, "Hi", greedy(5), "leaving")


def test_the_same_seed_gives_the_same_text_whoever_sits_beside(decoder: Decoder) -> None:
    for top_p in (1.0, 0.8):
        wanted = Sampling(max_tokens=40, temperature=0.9, top_p=top_p, seed=7)
        alone = read(ask(decoder, "Hi", wanted))[0]
        crowd = [ask(decoder, p, Sampling(max_tokens=40, temperature=1.2, seed=i)) for i, p in enumerate(PROMPTS)]
        beside = read(ask(decoder, "Hi", wanted))[0]
        other = read(ask(decoder, "Hi", Sampling(max_tokens=40, temperature=0.9, top_p=top_p, seed=8)))[0]
        for generation in crowd:
            read(generation)
        assert alone == beside
        assert alone != other


def test_a_cancelled_request_frees_its_row(decoder: Decoder) -> None:
    generations = [ask(decoder, "Hi", greedy(400)) for _ in range(16)]  # all rows
    waiting = ask(decoder, "a b c", greedy(5))
    assert isinstance(generations[0].next(10), Piece)
    for generation in generations[1:]:
        generation.cancel()
    assert read(generations[1])[1].reason == "cancelled"
    assert read(waiting)[1].reason == "length"  # it got a row while the first one still runs
    generations[0].cancel()
    assert read(generations[0])[1].reason == "cancelled"
    wait_until(lambda: decoder.open_requests() == 0)


def test_stop_string_ends_the_text_and_does_not_leak(decoder: Decoder, golden: Golden) -> None:
    full = golden("base", "Hi", 40)
    stop = full[10:14]
    generation = ask(decoder, "Hi", greedy(40, stop=(stop,)))
    text, end = read(generation)
    assert text == full[: full.index(stop)]
    assert end.reason == "stop"


def test_whole_text_comes_as_one_piece(decoder: Decoder, golden: Golden) -> None:
    generation = ask(decoder, "Hi", greedy(24), pieces=False)
    events = list(generation)
    assert events == [Piece(golden("base", "Hi", 24)), Finish("length", len(generation.prompt_ids), 24)]


def test_the_context_caps_the_completion(decoder: Decoder) -> None:
    ids = decoder.base.encode(user("Hi")) * 60
    ids = ids[: CONTEXT_TOKENS - 3]
    _, end = read(decoder.submit("base", ids, greedy(50)))
    assert end.completion_tokens <= 3
    with pytest.raises(PromptTooLong):
        decoder.submit("base", [5] * CONTEXT_TOKENS, greedy(5))


def test_penalties_keep_a_row_from_repeating(decoder: Decoder) -> None:
    plain = ask(decoder, "Hi", Sampling(max_tokens=60, temperature=0.0))
    penalised = ask(decoder, "Hi", Sampling(max_tokens=60, temperature=0.0, presence_penalty=2, frequency_penalty=2))
    assert read(plain)[0] != read(penalised)[0]


def test_a_failing_step_ends_its_requests_and_the_thread_goes_on(
    decoder: Decoder, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("policy.engine.lane.choose", lambda *_: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            read(ask(decoder, "Hi", greedy(5)))
    assert read(ask(decoder, "Hi", greedy(5)))[0] == golden("base", "Hi", 5)


def test_too_many_waiting_requests_are_refused(decoder: Decoder) -> None:
    small = Decoder(decoder.base, max_rows=1, max_waiting=1)
    first = ask(small, "Hi", greedy(400))
    first.next(10)
    ask(small, "Hi", greedy(5))
    with pytest.raises(EngineError) as refused:
        ask(small, "Hi", greedy(5))
    assert refused.value.code == "engine_overloaded"
    small.close()
    with pytest.raises(EngineError, match="shutting down"):
        read(first)


def test_adapters_are_checked_before_they_are_loaded(decoder: Decoder, artifacts: Path, tmp_path: Path) -> None:
    decoder.load("one", artifacts / "one")  # again, from the same path: nothing happens
    with pytest.raises(Conflict):
        decoder.load("one", artifacts / "two")
    for name in ("base", "", "../x", "a" * 61, ".hidden"):
        with pytest.raises(InvalidInput):
            decoder.load(name, artifacts / "one")
    with pytest.raises(ArtifactError):
        decoder.load("three", tmp_path / "missing")
    wider = make_tiny_base(tmp_path / "wider", hidden_size=32)
    make_tiny_adapter(wider, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="does not fit"):
        decoder.load("three", tmp_path / "foreign")
    with pytest.raises(NotFound):
        decoder.unload("three")
