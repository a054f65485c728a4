"""Attention over packed rows, piece by piece: only where a token may look.

A packed row (`training.prefix`) holds groups that do not see each other. With a mask over the whole row a token is
compared with all of them all the same, which on a CPU is a third of a step. Here each piece of a row (what all share, a
group's prompt, a completion) attends to the pieces that it follows and to itself, in a call of its own: the same result, and a
quarter of the products for rows of four groups. On a GPU so many small calls cost more than they save, so the mask stays.
"""

from typing import Any

import torch
from torch import Tensor, cat, nn

NAME = "dunnock_packed"

ROW_TOKENS = 16_384
"""About how long packed rows may get: attention no longer grows with them, and what all sequences share is there once."""


def attend_in_pieces(model: Any) -> bool:
    """Have a model follow the `packing` that a forward pass is given; without one all is as it was.

    Returns:
        False where the model stays as it is, since it is not on a CPU or its attention is not PyTorch's.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.device.type != "cpu" or model.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    return True


def of_packing(packing: Any, in_pieces: bool) -> dict[str, Any]:
    """What a forward pass over packed rows is told of what each token sees."""
    given = {"position_ids": packing.positions}
    if not in_pieces:
        return {**given, "attention_mask": packing.mask}
    return {
        **given,
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "packing": packing,
    }  # so that none is made


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    packing: Any = None,
    scaling: Any = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: (B, heads, T, D) → (B, T, heads, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packing is None or more.get("dropout"):
        found, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
        return found, None
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
            out = nn.functional.scaled_dot_product_attention(
                queries[i].reshape(1, -1, alike * piece.length, size), cat([keys[j] for j in seen], 2),
                cat([values[j] for j in seen], 2), piece.bias(alike), scale=scaling,
            )  # fmt: skip
            found.append(out.view(1, heads, piece.length, size))
        rows.append(cat(found, 2))
    return cat(rows).transpose(1, 2).to(given), None
