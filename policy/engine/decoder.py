"""Continuous batching: one thread owns the model and advances all open requests, whatever adapter they want.

Rows are grouped by adapter into lanes; each round advances every lane by one token, so late joiners wait for
nobody. Loading and unloading happen between rounds: open streams pause for it, and none is dropped.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch

from core.errors import DunnockError, EngineError, PromptTooLong
from policy.engine.adapters import AdapterShelf
from policy.engine.base import LoadedBase
from policy.engine.generation import Generation, Sampling
from policy.engine.grammar import Grammars
from policy.engine.lane import Lane, Row
from policy.engine.names import BASE, check_name, unknown_model
from policy.engine.packed import PackedWeights
from policy.engine.sampling import Chooser
from policy.engine.text import TextStream

log = logging.getLogger("dunnock.engine")

DRAIN_TIMEOUT_S = 600.0
CLOSE_TIMEOUT_S = 30.0
MB = 1_000_000


@dataclass
class _Order:
    """Something the decode thread is to do between two rounds, once `ready`."""

    act: Callable[[], None]
    ready: Callable[[], bool] = lambda: True
    done: "Future[None]" = field(default_factory=Future)


class Decoder:
    """Decodes for many callers at once; all methods may be called from any thread.

    Args:
        max_rows: rows decoded together, over all adapters.
        max_waiting: requests that may wait for a row; more are refused.
        max_prompt_tokens: longer prompts are refused; None means what the context takes.
        packed_mb: most memory for weights laid out for fast multiplication on a CPU; see `PackedWeights`.
        grammar_s: how long a schema may take to be made a grammar.
        grammars: how many of them are kept.
    """

    def __init__(
        self,
        base: LoadedBase,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        max_prompt_tokens: int | None = None,
        packed_mb: int = 2000,
        grammar_s: float = 2.0,
        grammars: int = 16,
    ) -> None:
        self.base = base
        self._grammars = Grammars(
            base.tokenizer, base.model.config.vocab_size, base.eos_ids, limit_s=grammar_s, kept=grammars
        )
        self.max_prompt_tokens = min(max_prompt_tokens or base.context_tokens, base.context_tokens - 1)
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._shelf = AdapterShelf(base.model, PackedWeights(base.model, packed_mb * MB))
        self._lanes: dict[str, Lane] = {}
        self._change = threading.Condition()
        # What follows is read and written under _change.
        self._waiting: deque[tuple[str, Row]] = deque()
        self._orders: list[_Order] = []
        self._names: dict[str, Path | None] = {BASE: None}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    # --- for callers -------------------------------------------------------------------------------------

    def submit(self, model: str, prompt_ids: list[int], sampling: Sampling, *, pieces: bool = True) -> Generation:
        """Ask for a completion.

        Raises:
            NotFound: no such adapter, or it is being unloaded.
            PromptTooLong: more prompt tokens than are taken.
            InvalidInput: there is no grammar for the schema.
            EngineError: too many requests wait, or the engine is closing.
        """
        if not 1 <= len(prompt_ids) <= self.max_prompt_tokens:
            raise PromptTooLong(
                f"the prompt has {len(prompt_ids)} tokens; 1 to {self.max_prompt_tokens} are taken", param="messages"
            )
        room = self.base.context_tokens - len(prompt_ids)
        generation = Generation(prompt_ids, min(sampling.max_tokens, room), pieces=pieces)
        grammar = None if sampling.json_schema is None else self._grammars.matcher(sampling.json_schema)
        row = Row(generation, TextStream(self.base.tokenizer, sampling.stop), Chooser(sampling, grammar))
        with self._change:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if model not in self._names:
                raise unknown_model(model)
            if len(self._waiting) >= self._max_waiting:
                raise EngineError(f"{len(self._waiting)} requests wait already; try again", code="engine_overloaded")
            self._waiting.append((model, row))
            self._change.notify()
        return generation

    def load(self, name: str, path: Path) -> None:
        """Load an adapter while others stream; the same name and path again changes nothing.

        Raises:
            InvalidInput: `name` cannot name an adapter.
            Conflict: the name is taken by another path.
            ArtifactError: the folder does not hold a LoRA adapter of this base.
        """
        check_name(name)

        def act() -> None:
            self._shelf.load(name, path)
            with self._change:
                self._names[name] = path.resolve()

        self._order(_Order(act))

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter, let the open ones end, then forget it.

        Raises:
            NotFound: it is not loaded.
            EngineError: open requests did not end in time; the adapter takes requests again.
        """
        check_name(name)
        with self._change:
            if name not in self._names:
                raise unknown_model(name)
            path = self._names.pop(name)

        def act() -> None:
            self._shelf.unload(name)
            self._lanes.pop(name, None)
            with self._change:
                self._names.pop(name, None)  # somebody may have loaded it again while it drained

        order = _Order(act, lambda: not self._in_use(name))
        try:
            self._order(order)
        except TimeoutError as error:
            with self._change:
                self._orders = [o for o in self._orders if o is not order]
                self._names[name] = path
            raise EngineError(f"requests for {name} did not end within {DRAIN_TIMEOUT_S:.0f} s") from error

    def adapters(self) -> dict[str, Path | None]:
        """Names that take requests, with their folders; the base has none."""
        with self._change:
            return dict(self._names)

    def open_requests(self) -> int:
        """Requests that run or wait."""
        with self._change:
            # A row that the decode thread moves along just now may be seen in two places; it is one request.
            rows = {id(row) for lane in list(self._lanes.values()) for row in lane.rows}
            return len(self._waiting) + len(rows)

    def healthy(self) -> bool:
        """Whether the decode thread lives."""
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        """End all open requests with an error and stop the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(CLOSE_TIMEOUT_S)
        self._grammars.close()

    def _order(self, order: _Order) -> None:
        with self._change:
            if self._closing:
                raise EngineError("the engine is shutting down")
            self._orders.append(order)
            self._change.notify()
        order.done.result(timeout=DRAIN_TIMEOUT_S)

    # --- the decode thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._closing or self._waiting or self._orders or self._busy()):
                    self._change.wait()
                if self._closing:
                    break
                self._admit()
                orders = [order for order in self._orders if order.ready()]
                self._orders = [order for order in self._orders if order not in orders]
            for order in orders:
                self._carry_out(order)
            with torch.inference_mode():
                for name, lane in self._busy():
                    self._advance(name, lane)
        self._end_all(EngineError("the engine is shutting down"))

    def _admit(self) -> None:
        """Move waiting requests into lanes while there are free rows; called under _change."""
        free = self._max_rows - sum(len(lane.rows) for lane in self._lanes.values())
        while free > 0 and self._waiting:
            name, row = self._waiting.popleft()
            self._lanes.setdefault(name, Lane(self.base)).add(row)
            free -= 1

    def _advance(self, name: str, lane: Lane) -> None:
        try:
            self._shelf.activate(name)
            lane.step()
        except Exception as error:
            log.exception("a step of %s failed; its %d requests end with an error", name, len(lane.rows))
            self._fail(lane.rows, EngineError(f"decoding failed: {type(error).__name__}: {error}"))
            del self._lanes[name]
            return
        if not lane.rows:
            lane.rest()

    def _busy(self) -> list[tuple[str, Lane]]:
        return [(name, lane) for name, lane in self._lanes.items() if lane.rows]

    def _in_use(self, name: str) -> bool:
        waits = any(waiting == name for waiting, _ in self._waiting)
        return waits or (name in self._lanes and bool(self._lanes[name].rows))

    def _carry_out(self, order: _Order) -> None:
        try:
            order.act()
        except DunnockError as error:
            order.done.set_exception(error)
        except Exception as error:
            log.exception("loading or unloading an adapter failed")
            order.done.set_exception(EngineError(f"the adapter could not be changed: {error}"))
        else:
            order.done.set_result(None)

    def _fail(self, rows: list[Row], error: EngineError) -> None:
        for row in rows:
            if not row.generation.over:
                row.generation.put(error)

    def _end_all(self, error: EngineError) -> None:
        with self._change:
            rows = [row for lane in self._lanes.values() for row in lane.rows] + [row for _, row in self._waiting]
            orders, self._orders = self._orders, []
            self._lanes.clear()
            self._waiting.clear()
        self._fail(rows, error)
        for order in orders:
            order.done.set_exception(error)
