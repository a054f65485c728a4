"""One adapter's running batch: rows join when their prompt is read, and leave when their text ends.

The prompt but for its last token is prefilled in chunks between the steps of the others; the last token is
the row's first step, so every token is chosen in one place.
"""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from core.errors import DunnockError
from policy.engine.base import LoadedBase
from policy.engine.prefill import HEAD_TOKENS, Head, Prefill
from policy.engine.sampling import Chooser, choose, chosen_logprobs
from policy.engine.slots import SlotCache
from policy.engine.text import TextStream

FinishReason = Literal["stop", "length", "cancelled"]
PREFILL_GROUP_TOKENS = 1024
PREFILL_CHUNK_TOKENS = 256  # read between two steps of running rows
MIN_SPREAD_TOKENS = 2  # prompts that differ no more in length are read together


@dataclass(frozen=True)
class Finish:
    """The end of a completion; counts are in tokens.

    Attributes:
        token_ids: all tokens that were chosen, an end of text among them.
        logprobs: of each of them, in nats, where the request asked for that.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = field(default=(), compare=False)
    logprobs: tuple[float, ...] = field(default=(), compare=False)


class Generation:
    """What a caller holds of one request: an iterator of text pieces that ends with a `Finish`.

    Args:
        max_tokens: length cap, already within the context.
        pieces: whether each token's text is wanted at once; otherwise the text comes whole at the end.
    """

    def __init__(self, prompt_ids: list[int], max_tokens: int, *, pieces: bool) -> None:
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.pieces = pieces
        self.cancelled = False
        self.over = False
        self._events: queue.SimpleQueue[str | Finish | DunnockError] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Nobody reads any more: the row leaves the batch at the next step."""
        self.cancelled = True

    def put(self, event: str | Finish | DunnockError) -> None:
        """Called by the decode thread."""
        self.over = self.over or not isinstance(event, str)
        self._events.put(event)

    def next(self, timeout_s: float | None = None) -> str | Finish | None:
        """The next piece or the end; None after `timeout_s` seconds without one.

        Raises:
            DunnockError: what went wrong with this request in the decode thread.
        """
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, DunnockError):
            raise event
        return event

    def __iter__(self) -> Iterator[str | Finish]:
        while not isinstance(event := self.next(), Finish):
            assert event is not None  # no timeout was given
            yield event
        yield event


@dataclass
class Row:
    """A request on its way through the batch."""

    generation: Generation
    text: TextStream
    chooser: Chooser
    whole: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def take(self, token: int, logprob: float | None, eos_ids: frozenset[int]) -> bool:
        """Take the chosen token; returns whether the row ends with it."""
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in eos_ids:
            return self.end("stop")
        self._emit(self.text.push(token))
        if self.text.stopped:
            return self.end("stop")
        if len(self.token_ids) >= self.generation.max_tokens:
            return self.end("length")
        return False

    def end(self, reason: FinishReason) -> bool:
        """Send the rest of the text and the end."""
        self._emit(self.text.finish())
        if self.whole:
            self.generation.put("".join(self.whole))
        reason = "stop" if self.text.stopped else reason
        prompt_tokens, made = len(self.generation.prompt_ids), tuple(self.token_ids)
        self.generation.put(Finish(reason, prompt_tokens, len(made), made, tuple(self.logprobs)))
        return True

    def _emit(self, text: str) -> None:
        if text and self.generation.pieces:
            self.generation.put(text)
        elif text:
            self.whole.append(text)


class Lane:
    """The batch of one adapter. The decode thread alone touches it, with that adapter active."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._cache = SlotCache(base.model.config.num_hidden_layers, base.device)
        self._rows: list[Row] = []
        self._arrivals: list[Row] = []
        self._reading: list[Row] = []
        self._prefill: Prefill | None = None
        self._head: Head | None = None
        self._next: list[int] = []  # the token that each row's next step reads

    @property
    def rows(self) -> list[Row]:
        """All rows: running, being read, and waiting to be."""
        return [*self._rows, *self._reading, *self._arrivals]

    def add(self, row: Row) -> None:
        """Have a row join as soon as it can."""
        self._arrivals.append(row)

    def rest(self) -> None:
        """Give the cache's memory back; called when no rows are left."""
        self._cache = SlotCache(self._base.model.config.num_hidden_layers, self._base.device)

    def step(self) -> None:
        """Read a chunk of waiting prompts, then advance every running row by one token."""
        self._drop_cancelled()
        budget = PREFILL_CHUNK_TOKENS if self._rows else PREFILL_GROUP_TOKENS
        while budget > 0 and (self._prefill is not None or self._arrivals):
            prefill = self._prefill or self._begin()
            budget -= prefill.advance(self._base, budget)
            if prefill.done:
                self._join(prefill)
        if self._rows:
            self._decode()

    def _drop_cancelled(self) -> None:
        for row in [r for r in self._arrivals if r.generation.cancelled]:
            row.end("cancelled")
            self._arrivals.remove(row)
        gone = [slot for slot, row in enumerate(self._rows) if row.generation.cancelled]
        for slot in gone:
            self._rows[slot].end("cancelled")
        self._remove(gone)

    def _begin(self) -> Prefill:
        """Start to read a group; what all its prompts begin with is read once, for one row."""
        self._reading = self._next_group()
        prompts = [row.generation.prompt_ids for row in self._reading]
        known = self._head.shared(prompts) if self._head else 0
        common = Head(prompts[0][:HEAD_TOKENS], []).shared(prompts)
        if len(prompts) > 1 and common > known:
            first = Prefill(self._base, [prompts[0][: common + 1]], self._head)
            first.advance(self._base, HEAD_TOKENS)
            self._head = first.head()
        self._prefill = Prefill(self._base, prompts, self._head)
        return self._prefill

    def _next_group(self) -> list[Row]:
        """The oldest arrival and those of about its length, in order: padding is read at full cost."""
        wanted = len(self._arrivals[0].generation.prompt_ids)
        spread = max(MIN_SPREAD_TOKENS, wanted // 8)
        near = [row for row in self._arrivals if abs(len(row.generation.prompt_ids) - wanted) <= spread]
        limit, prompts, group = max(1, PREFILL_GROUP_TOKENS // (wanted + spread)), set[tuple[int, ...]](), list[Row]()
        for row in near:
            prompts.add(tuple(row.generation.prompt_ids))
            if len(prompts) > limit:
                break
            group.append(row)
        taken = {id(row) for row in group}
        self._arrivals = [row for row in self._arrivals if id(row) not in taken]
        return group

    def _join(self, prefill: Prefill) -> None:
        self._cache.join(prefill.cache, len(self._rows), prefill.width + 1)
        positions = self._cache.cursor.positions.tolist() + [len(p) - 1 for p in prefill.prompts]
        self._cache.cursor.set(positions)
        self._next += [p[-1] for p in prefill.prompts]
        self._rows += self._reading
        self._reading, self._prefill, self._head = [], None, prefill.head()

    def _decode(self) -> None:
        cache, base = self._cache, self._base
        cache.make_room()
        output = base.model(
            input_ids=torch.tensor(self._next, device=base.device)[:, None],
            position_ids=cache.cursor.positions[:, None],
            attention_mask=cache.mask(base.model.dtype),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, choosers = output.logits[:, -1], [row.chooser for row in self._rows]
        self._next = choose(logits, choosers)
        logprobs = chosen_logprobs(logits, self._next, choosers)
        cache.cursor.advance()
        chosen = enumerate(zip(self._rows, self._next, logprobs, strict=True))
        self._remove([slot for slot, (row, token, logprob) in chosen if row.take(token, logprob, base.eos_ids)])

    def _remove(self, slots: list[int]) -> None:
        if not slots:
            return
        positions = self._cache.cursor.positions.tolist()
        for slot in reversed(slots):
            self._cache.leave(slot, len(self._rows) - 1)
            _fill_gap(self._rows, slot)
            _fill_gap(self._next, slot)
            _fill_gap(positions, slot)
        self._cache.cursor.set(positions)


def _fill_gap(items: list[Any], at: int) -> None:
    """Remove item `at` by moving the last one there, as the cache does with slots."""
    last = items.pop()
    if at < len(items):
        items[at] = last
