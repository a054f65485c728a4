"""Reading prompts into a cache: several together, in chunks, and never twice what the last ones began with.

Chat prompts share their template and system turn, and rollouts ask the same prompt again; for short prompts
that is most of the work, so each lane keeps the keys and values of its last prompt's beginning, and equal prompts of
a group are read as one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from policy.engine.base import LoadedBase

TOLD_TOKENS = 256  # read at once where the logits of all of them are looked at
HEAD_TOKENS = 256  # of a prompt's beginning that is kept
MIN_SHARED_TOKENS = 4


@dataclass(frozen=True)
class Head:
    """The beginning of a prompt, read by one adapter.

    Attributes:
        ids: its tokens.
        layers: keys and values of each layer, (1, heads, tokens, head_dim).
    """

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def shared(self, prompts: list[list[int]]) -> int:
        """How many first tokens all prompts have in common with it."""
        count = len(self.ids)
        for prompt in prompts:
            pairs = enumerate(zip(self.ids[:count], prompt, strict=False))
            count = next((i for i, (a, b) in pairs if a != b), min(count, len(prompt)))
        return count if count >= MIN_SHARED_TOKENS else 0


class Prefill:
    """Reads all but the last token of a group of prompts; shorter ones are padded behind.

    No mask is needed: attention is causal, so nothing before the padding sees it, and the columns that it
    leaves in the cache are written over before they are looked at.

    Args:
        prompts: token ids, each at least one.
        head: what the same adapter read before, if anything.
        told: given the logits after so many tokens of a lone prompt, (tokens, vocabulary), and the tokens that came there.
    """

    def __init__(
        self, base: LoadedBase, prompts: list[list[int]], head: Head | None,
        told: Callable[[torch.Tensor, list[int]], None] | None = None,
    ) -> None:  # fmt: skip
        self.prompts = prompts
        self._told = told
        self.cache = DynamicCache(config=base.model.config)  # of the distinct prompts until they are read, then of all
        self.width = max(1, max(len(p) for p in prompts) - 1)
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        self._rows = [distinct.index(tuple(p)) for p in prompts]
        padded = [([*p, *[0] * self.width])[: self.width] for p in distinct]
        self._ids = torch.tensor(padded, device=base.device)  # (distinct, width)
        self._done = 0
        if head is not None and (shared := min(head.shared(prompts), self.width)):
            for index, (keys, values) in enumerate(head.layers):
                spread = (len(distinct), -1, -1, -1)
                self.cache.update(keys[:, :, :shared].expand(spread), values[:, :, :shared].expand(spread), index)
            self._done = shared

    @property
    def done(self) -> bool:
        """Whether all are read."""
        return self._done == self.width

    def advance(self, base: LoadedBase, budget_tokens: int) -> int:
        """Read up to so many tokens, at least one of each prompt; returns how many, padding included."""
        begun, count = self._done, len(self._ids)
        if self._told is not None:
            budget_tokens = min(budget_tokens, TOLD_TOKENS)
        until = min(self.width, begun + max(1, budget_tokens // count))
        if until > begun:
            positions = torch.arange(begun, until, device=base.device)[None].expand(count, -1)
            read = {
                "input_ids": self._ids[:, begun:until], "position_ids": positions, "past_key_values": self.cache, "use_cache": True
            }  # fmt: skip
            following = self.prompts[0][begun + 1 : until + 1]
            if self._told is None or not following:
                base.model.base_model(**read)
            else:
                self._told(base.model(**read).logits[0, : len(following)], following)
        self._done = until
        if self.done and count < len(self.prompts):
            self.cache.batch_select_indices(torch.tensor(self._rows, device=base.device))
        return (until - begun) * count

    def head(self) -> Head:
        """The beginning of the first prompt, to keep for the next group."""
        count = min(max(1, len(self.prompts[0]) - 1), HEAD_TOKENS)
        kept = [(layer.keys[:1, :, :count], layer.values[:1, :, :count]) for layer in self.cache.layers]
        return Head(self.prompts[0][:count], [(keys.clone(), values.clone()) for keys, values in kept])
