"""Where a batch of running rows keeps its keys and values.

Row i sits in slot i, and column c of a slot holds what the model saw at position c, so rows of different
lengths lie side by side without padding in front: joining copies one prompt into the next free slot, leaving
moves the last slot into the gap, and no step moves anything else. Columns beyond a row's position hold
leftovers; the mask hides them until they are written over.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

COLUMN_BLOCK = 64


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer, (slots, heads, columns, head_dim); grown in blocks, never per step."""

    keys: Any
    values: Any

    def __init__(self, cursor: "Cursor") -> None:
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Unused: `SlotCache.join` makes the room before the first step."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write one token per row, (rows, heads, 1, head_dim), at the rows' positions; return what is filled.

        Returns:
            Views of keys and values, (rows, heads, columns in use, head_dim).
        """
        at = self.cursor
        self.keys[at.slots, :, at.positions] = key_states.squeeze(2)
        self.values[at.slots, :, at.positions] = value_states.squeeze(2)
        return self.keys[: at.rows, :, : at.columns], self.values[: at.rows, :, : at.columns]

    def reserve(self, like: torch.Tensor, like_values: torch.Tensor, slots: int, columns: int) -> None:
        """Have at least so many slots and columns; what is stored stays."""
        self.keys = _grown(self.keys, like, slots, columns)
        self.values = _grown(self.values, like_values, slots, columns)
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.cursor.columns - 1

    def get_max_length(self) -> int:
        return -1


class Cursor:
    """Where the next token of each row goes; shared by all layers.

    Attributes:
        positions: (rows,) column of each row's next token.
        slots: (rows,) 0 … rows-1.
        columns: columns in use once the next token is written.
    """

    def __init__(self, device: torch.device) -> None:
        self.positions = torch.zeros(0, dtype=torch.long, device=device)
        self.slots = torch.zeros(0, dtype=torch.long, device=device)
        self.rows = 0
        self.columns = 0

    def set(self, positions: list[int]) -> None:
        """Point at these columns, one per row."""
        device = self.positions.device
        self.positions = torch.tensor(positions, dtype=torch.long, device=device)
        self.slots = torch.arange(len(positions), device=device)
        self.rows = len(positions)
        self.columns = max(positions, default=-1) + 1

    def advance(self) -> None:
        """One column further, all rows."""
        self.positions = self.positions + 1
        self.columns += 1


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped here
    """The cache of one running batch, in the shape that transformers' models take."""

    def __init__(self, layer_count: int, device: torch.device) -> None:
        self.cursor = Cursor(device)
        super().__init__(layers=[SlotLayer(self.cursor) for _ in range(layer_count)])

    def join(self, prefilled: Cache, first_slot: int, columns: int) -> None:
        """Copy all rows of a prefilled cache into slots `first_slot` … and have room for `columns` columns."""
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            count, _, length, _ = source.keys.shape
            layer.reserve(source.keys, source.values, first_slot + count, max(columns, length))
            layer.keys[first_slot : first_slot + count, :, :length] = source.keys
            layer.values[first_slot : first_slot + count, :, :length] = source.values

    def leave(self, slot: int, last: int) -> None:
        """Free `slot` by moving slot `last` into it."""
        if slot == last:
            return
        for layer in self.layers:
            layer.keys[slot] = layer.keys[last]
            layer.values[slot] = layer.values[last]

    def make_room(self) -> None:
        """Have the columns that the next step writes."""
        for layer in self.layers:
            layer.reserve(layer.keys, layer.values, self.cursor.rows, self.cursor.columns)

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive attention mask of the next step, (rows, 1, 1, columns); None when nothing is hidden."""
        at = self.cursor
        if at.rows == 1:
            return None
        columns = torch.arange(at.columns, device=at.positions.device)
        hidden = columns[None, :] > at.positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]


def _grown(old: torch.Tensor | None, like: torch.Tensor, slots: int, columns: int) -> torch.Tensor:
    if old is not None and old.shape[0] >= slots and old.shape[2] >= columns:
        return old
    had_slots, had_columns = (old.shape[0], old.shape[2]) if old is not None else (0, 0)
    slots = had_slots if had_slots >= slots else max(slots, 2 * had_slots)
    columns = had_columns if had_columns >= columns else -(-columns // COLUMN_BLOCK) * COLUMN_BLOCK
    new = like.new_zeros((slots, like.shape[1], columns, like.shape[3]))
    if old is not None:
        new[:had_slots, :, :had_columns] = old
    return new
