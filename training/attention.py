"""Attention over packed rows, piece by piece: only where a token may look.

A packed row (`training.prefix`) holds groups that do not see each other. With a mask over the whole row a token is
compared with all of them all the same, which on a CPU is a third of a step. Here each piece of a row (what all share, a
group's prompt, a completion) attends to the pieces that it follows and to itself, in a call of its own: the same result, and a
quarter of the products for rows of four groups. On a GPU so many small calls cost more than they save, so the mask stays.
"""

from dataclasses import dataclass
from typing import Any

NAME = "dunnock_packed"

ROW_TOKENS = 16_384
"""About how long packed rows may get: attention no longer grows with them, and what all sequences share is there once."""


@dataclass(frozen=True)
class PackedAttention:
    """How a model attends over packed rows; `find` makes it.

    Attributes:
        in_pieces: piece by piece, else under a mask over whole rows.
        row_tokens: about how long rows are best; None for what `training.prefix` takes.
    """

    in_pieces: bool
    row_tokens: int | None

    @classmethod
    def find(cls, model: Any) -> "PackedAttention":
        """In pieces on a CPU, if the model's attention is PyTorch's; without a packing it then attends as it did."""
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        if model.device.type != "cpu" or model.config._attn_implementation not in ("sdpa", NAME):
            return cls(in_pieces=False, row_tokens=None)
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.config._attn_implementation = NAME
        return cls(in_pieces=True, row_tokens=ROW_TOKENS)

    def inputs(self, packing: Any) -> dict[str, Any]:
        """What a forward pass is told of where tokens stand and what they see."""
        import torch

        given = {"position_ids": packing.positions}
        if not self.in_pieces:
            return {**given, "attention_mask": packing.mask}
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # where none is given, transformers makes one
        return {**given, "attention_mask": no_mask, "packing": packing}


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, packing: Any = None, **more: Any
) -> tuple[Any, None]:
    """As transformers' attention functions: (B, heads, T, D) → (B, T, heads, D)."""
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found, _ = sdpa_attention_forward(module, query, key, value, mask, **more)
        return found, None
    return _in_pieces(query, key, value, packing, more.get("scaling"), more.get("dropout", 0.0)), None


def _in_pieces(query: Any, key: Any, value: Any, packing: Any, scaling: float | None, dropout: float) -> Any:
    import torch

    given = query.dtype
    batch, heads, width, size = query.shape
    alike = heads // key.shape[1]
    query = query.float().view(batch, -1, alike, width, size)  # (B, key heads, query heads of each, T, D)
    key, value = key.float(), value.float()
    rows = []
    for r, row in enumerate(packing.pieces):
        lengths = [piece.length for piece in row]
        queries = torch.split(query[r : r + 1], lengths, dim=3)
        keys, values = (torch.split(states[r : r + 1], lengths, dim=2) for states in (key, value))
        found = []
        for i, piece in enumerate(row):
            if piece.padding:
                found.append(query.new_zeros(1, heads, piece.length, size))
                continue
            seen = [*piece.follows, i]
            out = torch.nn.functional.scaled_dot_product_attention(
                queries[i].reshape(1, -1, alike * piece.length, size), torch.cat([keys[j] for j in seen], 2),
                torch.cat([values[j] for j in seen], 2), piece.bias(alike), dropout_p=dropout, scale=scaling,
            )  # fmt: skip
            found.append(out.view(1, heads, piece.length, size))
        rows.append(torch.cat(found, 2))
    return torch.cat(rows).transpose(1, 2).to(given)
