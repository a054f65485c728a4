"""Completions held to schemas: by a random model, so that nothing but the grammar keeps them valid."""

import json
import time
from typing import Any

import jsonschema
import pytest

from core.errors import EngineError, InvalidInput
from policy.engine.decoder import Decoder
from policy.engine.generation import Finish, Generation, Piece, Sampling
from policy.engine.grammar import Grammars
from tests.policy.conftest import Golden, greedy
from tests.policy.engine.test_decoder import ask, read

SHORT = {"type": "string", "maxLength": 8}
SCHEMAS: dict[str, dict[str, Any]] = {
    "verdict": {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "score": {"type": "integer", "minimum": -3, "maximum": 12}, "why": SHORT},
        "required": ["sure", "score", "why"], "additionalProperties": False,
    },
    "choice": {"enum": ["red", "blue", "grün", None, 7]},
    "either": {"anyOf": [{"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "maxItems": 3}, {"const": "none"}]},
    "pattern": {"type": "string", "pattern": "^[a-f]{2}-[0-9]{3}$"},
    "date": {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}, "required": ["on"], "additionalProperties": False},
    "tree": {
        "$defs": {"node": {
            "type": "object", "properties": {"name": SHORT, "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
            "required": ["name"], "additionalProperties": False,
        }},
        "$ref": "#/$defs/node",
    },
    "object": {"type": "object"},
}  # fmt: skip
ENDLESS = ("tree", "object")
"""Those that a random model may go on with until it is cut."""
HOSTILE: dict[str, dict[str, Any]] = {
    "regexes that must all hold": {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}"} for i in range(1, 40)]},
    "a reference to itself": {"$ref": "#"},
    "references in a ring": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "references that double": {
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)} | {"d25": {"type": "string"}},
        "allOf": [{"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d0"}, {"minLength": 3}],
    },
    "a reference to elsewhere": {"$ref": "http://127.0.0.1:9/schema.json"},
    "words that are not kept to": {"not": {"type": "string"}},
    "no schema": {"type": "nonsense"},
    "what nothing conforms to": {"type": "integer", "minimum": 5, "maximum": 4},
}  # fmt: skip


def ways(n: int) -> list[Sampling]:
    """So many ways to sample: greedy, plain and nucleus, cold and hot, with penalties and without."""
    return [
        Sampling(
            max_tokens=160, seed=i, temperature=(0.0, 0.7, 1.0, 2.0)[i % 4], top_p=(1.0, 0.9, 0.3)[i % 3],
            presence_penalty=0.5 * (i % 2),
        )
        for i in range(n)
    ]  # fmt: skip


def held(decoder: Decoder, schema: dict[str, Any], sampling: Sampling, prompt: str = "Hi") -> Generation:
    fields = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    return ask(decoder, prompt, Sampling(**{**fields, "json_schema": schema}))


@pytest.mark.parametrize("name", SCHEMAS)
def test_hundreds_of_completions_conform_to_their_schemas(decoder: Decoder, name: str) -> None:
    whole = 0
    for generation in [held(decoder, SCHEMAS[name], way) for way in ways(40)]:
        text, end = read(generation)
        if end.reason == "stop":
            jsonschema.validate(json.loads(text), SCHEMAS[name], format_checker=jsonschema.FormatChecker())
            whole += 1
        else:
            assert end.completion_tokens == 160
    assert whole >= (40 if name not in ENDLESS else 10)


def test_rows_without_a_grammar_are_as_they_are_alone(decoder: Decoder, golden: Golden) -> None:
    bound = [held(decoder, SCHEMAS["verdict"], way) for way in ways(6)]
    free = [ask(decoder, "Hi", greedy(40)) for _ in range(3)]
    assert {read(each)[0] for each in free} == {golden("base", "Hi", 40)}
    for each in bound:
        jsonschema.validate(json.loads(read(each)[0]), SCHEMAS["verdict"])


def test_a_stream_comes_in_pieces_and_ends_with_its_grammar(decoder: Decoder) -> None:
    sampling = Sampling(max_tokens=160, seed=3, logprobs=True, top_logprobs=4)
    events = list(held(decoder, SCHEMAS["pattern"], sampling))
    pieces = [event for event in events if isinstance(event, Piece)]
    assert len(pieces) > 3
    assert json.loads("".join(piece.text for piece in pieces))
    end = events[-1]
    assert isinstance(end, Finish)
    assert end.reason == "stop"
    assert not set(end.token_ids) & decoder.base.eos_ids  # nothing but the end could follow, so it was not asked for
    first = end.likelihoods[0]
    assert first.logprob == pytest.approx(0.0, abs=1e-6)  # a quotation mark, or nothing
    assert len(first.top) == 1


def test_what_is_cut_says_so(decoder: Decoder) -> None:
    text, end = read(held(decoder, SCHEMAS["verdict"], Sampling(max_tokens=4, seed=1)))
    assert end.reason == "length"
    with pytest.raises(ValueError, match="JSON|Expecting|Unterminated"):
        json.loads(text)


@pytest.fixture(scope="module")
def grammars(decoder: Decoder) -> Any:
    base = decoder.base
    found = Grammars(base.tokenizer, base.model.config.vocab_size, base.eos_ids, limit_s=0.7, kept=3)
    yield found
    found.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_soon(grammars: Grammars, name: str) -> None:
    grammars.matcher({"type": "object"})  # whose first call starts the process that tries them
    began = time.monotonic()
    with pytest.raises(InvalidInput, match="no grammar for this schema") as refused:
        grammars.matcher(HOSTILE[name])
    assert refused.value.param == "response_format"
    assert time.monotonic() - began < 3
    began = time.monotonic()
    with pytest.raises(InvalidInput):  # and is known the next time
        grammars.matcher(HOSTILE[name])
    assert time.monotonic() - began < 0.1


def test_a_process_that_was_killed_is_replaced(grammars: Grammars) -> None:
    grammars.matcher({"type": "object"})
    assert grammars._trial is not None
    grammars._trial._process.kill()
    grammars._trial._process.wait()
    assert grammars.matcher({"type": "string", "maxLength": 3}).allowed().any()


def test_few_grammars_are_kept(grammars: Grammars) -> None:
    for n in range(6):
        grammars.matcher({"type": "string", "maxLength": n + 10})
    assert len(grammars._known) == 3


def test_others_decode_while_a_schema_is_tried(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder._grammars, "_limit_s", 0.7)
    decoder._grammars.matcher({"type": "object"})
    running = ask(decoder, "Hi", Sampling(max_tokens=400, seed=1, temperature=2.0, stop=()))
    assert isinstance(running.next(10), Piece)
    with pytest.raises(InvalidInput):
        held(decoder, {**HOSTILE["regexes that must all hold"], "title": "another"}, Sampling(max_tokens=4))
    came = 0
    while isinstance(running.next(0), Piece):
        came += 1
    running.cancel()
    assert came > 20


def test_no_more_callers_wait_than_are_looked_after(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    places = grammars._places
    monkeypatch.setattr(grammars, "_places", type("Full", (), {"acquire": lambda *_, **__: False})())
    with pytest.raises(EngineError) as refused:
        grammars.matcher({"title": "one that nobody knows yet"})
    assert refused.value.code == "engine_overloaded"
    assert places is not grammars._places
