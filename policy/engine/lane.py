"""One adapter's running batch: rows join when their prompt is read, and leave when their text ends.

The prompt but for its last token is prefilled in chunks between the steps of the others; the last token is
the row's first step, so every token is chosen in one place.
"""

import time
from typing import Any

import torch

from core.errors import InvalidInput
from policy.engine.base import LoadedBase
from policy.engine.generation import Generation, Likelihood, Writing
from policy.engine.prefill import HEAD_TOKENS, Head, Prefill
from policy.engine.sampling import Chooser, choose, chosen_likelihoods, likelihoods
from policy.engine.slots import SlotCache
from policy.engine.text import TextStream

PREFILL_GROUP_TOKENS = 1024
PREFILL_CHUNK_TOKENS = 256  # read between two steps of running rows
MIN_SPREAD_TOKENS = 2  # prompts that differ no more in length are read together


class Row(Writing):
    """A request on its way through the batch, with its sampling state."""

    def __init__(self, generation: Generation, text: TextStream, chooser: Chooser) -> None:
        super().__init__(generation, text)
        self.chooser = chooser

    @property
    def tells_prompt(self) -> bool:
        """Whether its prompt is to be looked at token by token."""
        return self.chooser.sampling.prompt_logprobs

    def look_at_prompt(self, logits: torch.Tensor, tokens: list[int]) -> None:
        """Take how likely the next tokens of its prompt are; `logits` (tokens, vocabulary)."""
        top = self.chooser.sampling.top_logprobs
        self.prompt += likelihoods(logits.float(), tokens, [top] * len(tokens))

    def choose(self, token: int, likelihood: Likelihood | None, eos_ids: frozenset[int]) -> bool:
        """Take the chosen token; returns whether the completion ends with it."""
        grammar = self.chooser.grammar
        if grammar is not None and grammar.failure:
            return self.fail(InvalidInput(grammar.failure, param="response_format"))
        return self.take(token, likelihood, eos_ids, last=grammar is not None and grammar.over)


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
            began = time.perf_counter()
            budget -= prefill.advance(self._base, budget)
            _share(self._reading, began)
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
        if self._reading[0].tells_prompt:  # what others begin with alike is read for it anew: nobody kept the logits
            self._prefill = Prefill(self._base, prompts, None, self._reading[0].look_at_prompt)
            return self._prefill
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
        if self._arrivals[0].tells_prompt:
            return [self._arrivals.pop(0)]
        wanted = len(self._arrivals[0].generation.prompt_ids)
        spread = max(MIN_SPREAD_TOKENS, wanted // 8)
        near = [
            row
            for row in self._arrivals
            if abs(len(row.generation.prompt_ids) - wanted) <= spread and not row.tells_prompt
        ]
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
        self._remove(
            [slot for slot, row in enumerate(self._rows) if not row.generation.max_tokens and row.end("length")]
        )

    def _decode(self) -> None:
        cache, base, began = self._cache, self._base, time.perf_counter()
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
        told = chosen_likelihoods(logits, self._next, choosers)
        cache.cursor.advance()
        _share(self._rows, began)
        chosen = enumerate(zip(self._rows, self._next, told, strict=True))
        self._remove([slot for slot, (row, token, each) in chosen if row.choose(token, each, base.eos_ids)])

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


def _share(rows: list[Row], began: float) -> None:
    """Add the time since then to rows that were computed together."""
    share = (time.perf_counter() - began) / len(rows)
    for row in rows:
        row.compute_s += share


def _fill_gap(items: list[Any], at: int) -> None:
    """Remove item `at` by moving the last one there, as the cache does with slots."""
    last = items.pop()
    if at < len(items):
        items[at] = last
