"""llama.cpp behind the calls of the embedded engine's decoder: many callers, adapters that come and go, nothing dropped.

A new adapter means a new `Llama` beside the old one: requests that begin from then on go to the new one, those that run
end where they began, and the old one goes with its last request. Meanwhile the weights and the room for keys and values
are held twice.
"""

import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from core.errors import Conflict, DunnockError, EngineError, InvalidInput, PromptTooLong
from policy.engine.generation import Generation, Sampling, Writing
from policy.engine.names import BASE, check_name, unknown_model
from policy.engine.text import TextStream
from policy.gguf.base import GgufBase
from policy.gguf.convert import convert_adapter
from policy.gguf.llama import Llama, LlamaSettings, Token, require_told_logprobs

log = logging.getLogger("dunnock.engine")

DRAIN_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Kept:
    """An adapter: the folder that it came from, and the file that was made of it."""

    path: Path
    file: Path


@dataclass
class _Stand:
    """A server and who uses it."""

    llama: Llama
    places: dict[str, int]  # of adapters
    running: int = 0


class GgufDecoder:
    """Decodes for many callers at once; all methods may be called from any thread.

    Args:
        settings: of each server.
        max_waiting: requests that may wait for a slot; more are refused.
        max_prompt_tokens: longer prompts are refused; None means what the context takes.
        name: what the base is asked for by; another one where an adapter is merged into it already.

    Raises:
        ArtifactError: llama.cpp refuses the base.
    """

    grammars = True

    def __init__(
        self,
        base: GgufBase,
        settings: LlamaSettings,
        *,
        max_waiting: int = 256,
        max_prompt_tokens: int | None = None,
        name: str = BASE,
    ) -> None:
        self.base = base
        self.name = name
        self.max_prompt_tokens = min(max_prompt_tokens or base.context_tokens, base.context_tokens - 1)
        self._settings = settings
        self._max_open = max_waiting + settings.slots
        stand = _Stand(Llama(base.file, [], settings), {})  # first: nothing is to be undone where it fails
        self._files = TemporaryDirectory(prefix="dunnock-gguf-")
        self._made = 0
        self._workers = ThreadPoolExecutor(settings.slots, thread_name_prefix="llama")
        self._changing = threading.Lock()  # one adapter is loaded or unloaded at a time
        self._change = threading.Condition()
        # What follows is read and written under _change.
        self._stand = stand
        self._names: dict[str, Path | None] = {name: None}
        self._kept: dict[str, _Kept] = {}  # also those that take no requests any more, while open ones need them
        self._open: Counter[str] = Counter()
        self._closing = False

    def submit(self, model: str, prompt_ids: list[int], sampling: Sampling, *, pieces: bool = True) -> Generation:
        """Ask for a completion.

        Raises:
            NotFound: no such adapter, or it is being unloaded.
            PromptTooLong: more prompt tokens than are taken.
            InvalidInput: log-probabilities or a schema that llama.cpp cannot do as engines of ours promise.
            EngineError: too many requests wait, or the engine is closing.
        """
        if not 1 <= len(prompt_ids) <= self.max_prompt_tokens:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens; 1 to {self.max_prompt_tokens} are taken", param="messages"
            )
        require_told_logprobs(sampling)
        _require_ascii(sampling.json_schema)
        room = self.base.context_tokens - len(prompt_ids)
        generation = Generation(prompt_ids, min(sampling.max_tokens, room), pieces=pieces)
        writing = Writing(generation, TextStream(self.base.tokenizer, sampling.stop))
        with self._change:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if model not in self._names:
                raise unknown_model(model)
            if self._open.total() >= self._max_open:
                raise EngineError(f"{self._open.total()} requests are open; try again", code="engine_overloaded")
            self._open[model] += 1
            self._workers.submit(self._run, model, writing, sampling)
        return generation

    def load(self, name: str, path: Path) -> None:
        """Load an adapter while others stream; the same name and path again changes nothing.

        Raises:
            InvalidInput: `name` cannot name an adapter, or an adapter is merged into these weights.
            Conflict: the name is taken by another path.
            ArtifactError: the folder does not hold a LoRA adapter of this base, or one that is not converted.
        """
        check_name(name)
        if self.name != BASE:
            raise InvalidInput(f"the weights of {self.name} hold its adapter already; others do not belong to them")
        path = path.resolve()
        with self._changing:
            with self._change:
                self._require_open()
                kept = self._kept.get(name)
                if kept is not None and kept.path == path:
                    self._names[name] = path
                    return
            if kept is not None:
                raise Conflict(f"adapter {name} is loaded from {kept.path}; unload it before loading {path}")
            self._made += 1
            file = Path(self._files.name) / f"{self._made}.gguf"
            try:
                convert_adapter(path, self.base.folder, file)
                self._move_to_another(name, _Kept(path, file))
            except BaseException:
                file.unlink(missing_ok=True)
                raise

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter, let the open ones end, then forget it.

        Raises:
            NotFound: it is not loaded.
            EngineError: open requests did not end in time; the adapter takes requests again.
        """
        check_name(name)
        with self._change:
            self._require_open()
            if name not in self._names:
                raise unknown_model(name)
            path = self._names.pop(name)
            if not self._change.wait_for(lambda: self._open[name] <= 0 or self._closing, DRAIN_TIMEOUT_S):
                self._names[name] = path
                raise EngineError(f"requests for {name} did not end within {DRAIN_TIMEOUT_S:.0f} s")
            self._names.pop(name, None)  # somebody may have loaded it again while it drained
            kept = self._kept.pop(name, None)
        if kept is not None:
            with self._changing:  # a server that is just starting may read the file
                kept.file.unlink(missing_ok=True)

    def adapters(self) -> dict[str, Path | None]:
        """Names that take requests, with their folders; the base has none."""
        with self._change:
            return dict(self._names)

    def open_requests(self) -> int:
        """Requests that run or wait."""
        with self._change:
            return self._open.total()

    def healthy(self) -> bool:
        """Whether requests are taken."""
        return not self._closing

    def close(self) -> None:
        """End all open requests with an error and free the model."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._workers.shutdown(wait=True)
        with self._changing:
            self._stand.llama.close()
        self._files.cleanup()

    def _require_open(self) -> None:
        if self._closing:
            raise EngineError("the engine is shutting down")

    def _move_to_another(self, name: str, kept: _Kept) -> None:
        """Start a server that has this adapter too, and have what begins from now on begin there."""
        with self._change:
            all_kept = {**self._kept, name: kept}
        llama = Llama(self.base.file, [k.file for k in all_kept.values()], self._settings)
        with self._change:
            old, self._stand = self._stand, _Stand(llama, {n: place for place, n in enumerate(all_kept)})
            self._kept[name], self._names[name] = kept, kept.path
            idle = old.running == 0
        if idle:
            old.llama.close()

    # --- the workers, one per slot ---------------------------------------------------------------------------

    def _run(self, model: str, writing: Writing, sampling: Sampling) -> None:
        generation = writing.generation
        with self._change:
            stand = self._stand
            stand.running += 1

        began = time.perf_counter()

        def take(token: Token) -> bool:
            nonlocal began
            now = time.perf_counter()
            # Slots compute together, so each has its part of the time.
            writing.compute_s += (now - began) / max(1, stand.running)
            began = now
            if generation.cancelled:
                return writing.end("cancelled")
            self._require_open()
            return writing.take(token.id, token.logprob, self.base.eos_ids)

        try:
            self._require_open()
            if generation.cancelled:
                writing.end("cancelled")
                return
            place = None if model == self.name else stand.places[model]
            stopped = stand.llama.complete(generation.prompt_ids, place, sampling, generation.max_tokens, take)
            if not generation.over:
                writing.end("stop" if stopped else "length")
        except DunnockError as error:
            generation.put(error)
        except Exception as error:
            log.exception("a request of %s failed", model)
            generation.put(EngineError(f"decoding failed: {type(error).__name__}: {error}"))
        finally:
            self._leave(stand, model)

    def _leave(self, stand: _Stand, model: str) -> None:
        with self._change:
            stand.running -= 1
            self._open[model] -= 1
            gone = stand.running == 0 and stand is not self._stand
            self._change.notify_all()
        if gone:
            stand.llama.close()


def _require_ascii(schema: dict[str, object] | None) -> None:
    """llama.cpp's grammars spell words in its own vocabulary, where ours has no characters beyond ASCII."""
    if schema is not None and not json.dumps(schema, ensure_ascii=False).isascii():
        raise InvalidInput("the words of a schema must be ASCII with this engine", param="response_format")
