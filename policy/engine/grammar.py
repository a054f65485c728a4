"""JSON schemas as grammars that a completion is held to, token by token; llguidance does the work.

    grammars = Grammars(tokenizer, vocabulary, eos_ids)
    matcher = grammars.matcher({"type": "object"})      InvalidInput where there is no grammar for it
    matcher.allowed(); matcher.take(token); matcher.over

Some schemas take for ever to become a grammar, and nothing in one's own process can stop that. So each is tried first in a process that may
be killed (`python -m policy.engine.grammar`, started with the first schema), and only what became a grammar there within the limit
is made one here. What it came to is kept, grammar or refusal. What a step may take is limited by llguidance itself.
"""

import hashlib
import json
import select
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from core.errors import EngineError, InvalidInput

START_S = 30.0
ORPHAN_S = 60
WAITING = 4
"""Callers whose schemas may wait to be tried; more are refused."""
MEMORY_BYTES = 2 * 1024**3
"""Most address space of the process that tries schemas."""
LIMITS: dict[str, Any] = {
    "max_items_in_row": 1000, "initial_lexer_fuel": 500_000, "step_lexer_fuel": 100_000, "step_max_items": 30_000,
    "max_lexer_states": 20_000, "max_grammar_size": 100_000,
}  # fmt: skip
"""By llguidance's figures a step takes less than 10 ms and a grammar less than 40 MB."""
WRITTEN: Any = {"whitespace_pattern": r"( |\n[ \t]{0,20})?"}
"""Between signs, as llama.cpp has it: a small model that may write as many spaces as it likes does."""


class Matcher:
    """Where one completion stands in its grammar. One thread at a time.

    Attributes:
        over: nothing may follow.
        failure: why the grammar could not be kept to; empty while it can.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._words = np.zeros((vocabulary + 31) // 32, dtype=np.int32)
        self._vocabulary = vocabulary
        self.over = False
        self.failure = ""

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tokens may come next, (vocabulary,); all where the grammar has failed."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(self._words.view(np.uint8), count=self._vocabulary, bitorder="little").view(bool)
        if self._matcher.is_error() or not bits.any():
            self._fail()
            bits[:] = True
        return bits

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        if not self.failure and not self._matcher.consume_token(token):
            self._fail()
        self.over = self._matcher.is_stopped()

    def _fail(self) -> None:
        said = str(self._matcher.get_error()).split("\n", 1)[0]
        self.failure = f"this schema cannot be kept to: {said or 'no token may follow'}"


class Grammars:
    """The grammars of a base model; may be called from many threads.

    Args:
        tokenizer: a fast one of transformers.
        vocabulary: columns of the model's logits.
        limit_s: how long a schema may take.
        kept: how many grammars, and refusals, are kept.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: int, eos_ids: frozenset[int], *, limit_s: float = 2.0, kept: int = 16
    ) -> None:
        self._tokenizer, self._vocabulary, self._eos_ids = tokenizer, vocabulary, sorted(eos_ids)
        self._limit_s, self._kept = limit_s, kept
        self._places = threading.BoundedSemaphore(WAITING)
        self._making = threading.Lock()
        self._trial: _Trial | None = None
        self._tokens: Any = None
        self._known: OrderedDict[str, Any] = OrderedDict()  # a matcher that has taken nothing, or why there is none
        self._looking = threading.Lock()

    def matcher(self, schema: dict[str, Any]) -> Matcher:
        """The grammar of a schema, at its beginning.

        Raises:
            InvalidInput: the schema is none, has words that are not kept to, or is too complex.
            EngineError: too many other schemas wait to be looked at.
        """
        text = json.dumps(schema)
        key = hashlib.sha256(text.encode()).hexdigest()
        found = self._find(key)
        if found is None:
            if not self._places.acquire(blocking=False):
                raise EngineError("other schemas are looked at; try again", code="engine_overloaded")
            try:
                with self._making:
                    found = self._find(key) or self._make(key, text)
            finally:
                self._places.release()
        if isinstance(found, str):
            raise InvalidInput(f"there is no grammar for this schema: {found}", param="response_format")
        return Matcher(found.deep_copy(), self._vocabulary)

    def close(self) -> None:
        """End the process that tries schemas."""
        with self._making:
            self._end_trial()

    def _find(self, key: str) -> Any:
        with self._looking:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def _make(self, key: str, text: str) -> Any:
        """A matcher, or why there is none; kept. Called under _making."""
        found = self._tried(text) or _compiled(self._token_table(), text)
        with self._looking:
            self._known[key] = found
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return found

    def _tried(self, text: str) -> str:
        """Why a schema is refused; empty where it is not."""
        if self._trial is None or self._trial.over:
            self._end_trial()
            self._trial = _Trial(_spelled(self._tokenizer), self._vocabulary, self._eos_ids)
        try:
            return self._trial.ask(text, self._limit_s)
        except _Ended as ended:
            self._end_trial()
            return str(ended)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.close()
            self._trial = None

    def _token_table(self) -> Any:
        if self._tokens is None:
            self._tokens = _table(_spelled(self._tokenizer), self._vocabulary, self._eos_ids)
        return self._tokens


class _Ended(Exception):
    """The process that tries schemas is to be ended, or has ended; says why."""


class _Trial:
    """The process that tries schemas. One thread at a time.

    Raises:
        EngineError: it does not start.
    """

    def __init__(self, tokenizer: str, vocabulary: int, eos_ids: list[int]) -> None:
        with TemporaryDirectory(prefix="dunnock-grammar-") as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(tokenizer, encoding="utf-8")
            self._process = subprocess.Popen(  # noqa: S603 (our own words)
                [sys.executable, "-m", "policy.engine.grammar", str(path), str(vocabulary), *map(str, eos_ids)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
            )  # fmt: skip
            try:
                self._line(START_S)
            except _Ended as error:
                self.close()
                raise EngineError(f"schemas cannot be looked at: {error}") from error

    @property
    def over(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def ask(self, text: str, limit_s: float) -> str:
        """What it says of a schema: empty, or why there is no grammar for it.

        Raises:
            _Ended: it took longer, or it was too much for it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _Ended("it is too complex") from error
        return str(json.loads(self._line(limit_s)))

    def _line(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            raise _Ended(f"it took longer than {limit_s:g} s")
        if not (line := self._process.stdout.readline()):
            raise _Ended("it is too complex")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _spelled(tokenizer: Any) -> str:
    """A fast tokenizer of transformers as llguidance reads it.

    Raises:
        InvalidInput: it is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidInput(
            "this engine's tokenizer has no tokenizer.json, so it keeps to no grammar", param="response_format"
        )
    return str(backend.to_str())


def _table(tokenizer: str, vocabulary: int, eos_ids: list[int]) -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=eos_ids, slices=LLTokenizer.json_slices())


def _compiled(tokens: Any, schema: str) -> Any:
    """A matcher that has taken nothing, or why there is none; its first step is done, since some fail there."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=WRITTEN)
    except ValueError as error:
        return _said(error)
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return _said(matcher.get_error()) if matcher.is_error() else matcher


def _said(error: object) -> str:
    return str(error).split("\n", 1)[0][:300] or "it cannot be kept to"


def main() -> None:
    """Try schemas, one a line of JSON; answer with what `_compiled` says of each, empty where it is a grammar."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    path, vocabulary, *eos_ids = sys.argv[1:]
    tokens = _table(Path(path).read_text(encoding="utf-8"), int(vocabulary), [int(i) for i in eos_ids])
    print(flush=True)  # noqa: T201 (ready)
    for line in sys.stdin:
        signal.alarm(ORPHAN_S)  # whoever asked would have killed it by then
        found = _compiled(tokens, line)
        signal.alarm(0)
        print(json.dumps(found if isinstance(found, str) else ""), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
