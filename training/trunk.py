"""The trunk of a model in training: what can be computed once is.

What the rows of a batch begin with alike is computed once (`training.prefix`). When LoRA sits only on the upper
blocks, the hidden states below them never change: they are kept per sequence and the forward pass starts at the
first adapted block. The reference pass, every epoch and both adapters on and off share them. Right padding and causal attention make a row's states independent of its
neighbours, so equal sequences may share them across batches. Exact up to the order of float additions.

Memory: tokens × hidden size × 4 bytes, e.g. 90 MB for 200 pairs of two 100-token sequences at width 576.
"""

import math
from collections.abc import Collection
from typing import Any

from core.errors import StageError
from training.attention import PackedAttention
from training.prefix import Groups, Key, find_packing


def is_llama_shaped(decoder: Any) -> bool:
    """Whether a decoder's blocks can be run a part at a time: all alike, and nothing done to what comes in."""
    config = decoder.config
    alike = len(set(getattr(config, "layer_types", None) or ["full_attention"])) == 1
    plain = getattr(config, "embedding_multiplier", None) is None
    return alike and plain and all(hasattr(decoder, name) for name in ("layers", "embed_tokens", "norm", "rotary_emb"))


def run_blocks(decoder: Any, blocks: Any, forward: Any, *, norm: bool = True, **inputs: Any) -> Any:
    """The decoder's own `forward` over `blocks` only; without `norm`, its bare hidden states."""
    from torch import nn

    layers, final = decoder.layers, decoder.norm
    decoder.layers = blocks
    if not norm:
        decoder.norm = nn.Identity()
        inputs["use_cache"] = False
    try:
        return forward(**inputs)
    finally:
        decoder.layers, decoder.norm = layers, final


def share_trunk(model: Any, first_adapted: int, *, keep_mb: float = math.inf) -> "Trunk | None":
    """Make `model` (a PEFT-wrapped decoder of Llama's shape) start at block `first_adapted`, and share beginnings.

    Args:
        keep_mb: most memory for kept states; what has no room is computed anew each time.

    Returns:
        The trunk, or None where the model is not of that shape and stays as it is.
    """
    decoder = model.get_base_model().base_model
    return Trunk(decoder, first_adapted, keep_mb) if is_llama_shaped(decoder) else None


class Trunk:
    """Stands in for the decoder's forward; holds the hidden states below block `first` by sequence.

    Args:
        decoder: the inner decoder (embedding, blocks, norm), whose blocks below `first` are frozen.

    Attributes:
        keeping: whether states of sequences that are new are kept.
    """

    def __init__(self, decoder: Any, first: int, keep_mb: float = math.inf) -> None:
        from torch import nn

        self.decoder = decoder
        self.lower = nn.ModuleList(decoder.layers[:first])
        self.upper = nn.ModuleList(decoder.layers[first:])
        self.plain_forward = decoder.forward
        self.attention = PackedAttention.find(decoder)
        self.states: dict[tuple[int, ...], Any] = {}
        self.room = keep_mb * 1e6
        self.keeping = True
        self.hits = self.misses = 0
        if any(p.requires_grad for p in self.lower.parameters()):
            raise StageError(f"blocks below {first} have trainable parameters; their states cannot be reused")
        decoder.forward = self.forward

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, *, groups: Groups | None = None, **kwargs: Any
    ) -> Any:
        """(B, T) ids → what the decoder returns; only sequences not seen before pass through the lower blocks.

        Args:
            groups: rows that share a beginning, every row once; by default rows i and i + B/2 are a pair.
        """
        if input_ids is None or (attention_mask is not None and not _right_padded(attention_mask)):
            return self.plain_forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs.pop("inputs_embeds", None)  # None: we had ids
        lengths = [input_ids.shape[1]] * len(input_ids) if attention_mask is None else attention_mask.sum(1).tolist()
        keys = [tuple(row[:n].tolist()) for row, n in zip(input_ids, lengths, strict=True)]
        hidden = (
            self._below(keys, input_ids, attention_mask, groups)
            if len(self.lower)
            else self.decoder.embed_tokens(input_ids)
        )
        return self._shared(self.upper, keys, hidden, attention_mask, groups, **kwargs)

    def prepare(self, input_ids: Any, attention_mask: Any, groups: Groups) -> None:
        """Keep the states of these sequences, and do nothing above them."""
        lengths = attention_mask.sum(1).tolist()
        keys = [tuple(row[:n].tolist()) for row, n in zip(input_ids, lengths, strict=True)]
        self._below(keys, input_ids, attention_mask, groups)

    def forget(self, but: Collection[Key] = ()) -> None:
        """Free the kept states, but for these."""
        for key in [key for key in self.states if key not in but]:
            self.room += _bytes(self.states.pop(key))

    def _below(self, keys: list[Key], input_ids: Any, attention_mask: Any, groups: Groups | None = None) -> Any:
        """(B, T, H) states below the first adapted block, from the store where they are known."""
        import torch

        states = {key: self.states[key] for key in keys if key in self.states}
        new = [i for i, key in enumerate(keys) if key not in states]
        self.hits, self.misses = self.hits + len(keys) - len(new), self.misses + len(new)
        if new:
            mask = None if attention_mask is None else attention_mask[new]
            with torch.no_grad():
                embedded = self.decoder.embed_tokens(input_ids[new])
                found = self._shared(
                    self.lower, [keys[i] for i in new], embedded, mask, _among(new, groups), norm=False
                ).last_hidden_state
            for row, i in enumerate(new):
                states[keys[i]] = found[row, : len(keys[i])].clone()
                size = _bytes(states[keys[i]])
                if self.keeping and size <= self.room and keys[i] not in self.states:
                    self.states[keys[i]] = states[keys[i]]
                    self.room -= size
        hidden = torch.nn.utils.rnn.pad_sequence([states[key] for key in keys], batch_first=True)
        return torch.nn.functional.pad(hidden, (0, 0, 0, input_ids.shape[1] - hidden.shape[1]))

    def _shared(
        self, blocks: Any, keys: list[Key], states: Any, mask: Any, groups: Groups | None, **kwargs: Any
    ) -> Any:
        """Run `blocks` over (N, T, H) states, what rows begin with alike only once."""
        packing = find_packing(keys, states.shape[1], states.device, groups, self.attention.row_tokens)
        if packing is None or kwargs.get("use_cache"):
            return self._run(blocks, inputs_embeds=states, attention_mask=mask, **kwargs)
        kwargs |= self.attention.inputs(packing)
        result = self._run(blocks, inputs_embeds=packing.pack(states), **kwargs)
        result.last_hidden_state = packing.unpack(result.last_hidden_state)
        return result

    def _run(self, blocks: Any, **inputs: Any) -> Any:
        return run_blocks(self.decoder, blocks, self.plain_forward, **inputs)


def _among(rows: list[int], groups: Groups | None) -> Groups | None:
    """The groups of these rows alone, by their places among them."""
    if groups is None:
        return None
    place = {row: n for n, row in enumerate(rows)}
    found = [[place[i] for i in members if i in place] for members in groups]
    return [members for members in found if members]


def _bytes(states: Any) -> int:
    return int(states.numel() * states.element_size())


def _right_padded(mask: Any) -> bool:
    return bool((mask[:, :-1] >= mask[:, 1:]).all())
