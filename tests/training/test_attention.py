"""Attention piece by piece against attention under a mask over whole packed rows: the same states and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_base
from training.attention import NAME, PackedAttention
from training.prefix import Packing, Plan

UNDER_A_MASK = PackedAttention(in_pieces=False, row_tokens=None)
GROUPS = [[0, 1], [2, 3, 4], [5], [6, 7]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def keys(common: int) -> list[tuple[int, ...]]:
    """Sequences of several lengths in groups, one of which is the beginning of another; `common` tokens all share."""
    generator = torch.Generator().manual_seed(common)
    drawn = iter(torch.randint(5, 300, (500,), generator=generator).tolist())
    take = lambda n: tuple(next(drawn) for _ in range(n))  # noqa: E731
    first, found = take(common), []
    for members, shared in zip(GROUPS, (6, 4, 5, 0), strict=True):
        prompt = first + take(shared)
        found += [prompt + take(3 + 2 * n) for n, _ in enumerate(members)]
    found[7] = found[6] + take(2)
    return found


def packed(common: int, row_tokens: int) -> tuple[Packing, torch.Tensor, torch.Tensor]:
    """The sequences packed, their ids as a plain batch, and 1 where that has tokens, (N, T, 1)."""
    sequences = keys(common)
    width = max(map(len, sequences))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in sequences])
    real = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in sequences])
    return Packing(Plan(sequences, GROUPS, row_tokens), width, "cpu"), ids, real[..., None]


def run(
    model: Any, attention: PackedAttention, packing: Packing, ids: torch.Tensor, real: torch.Tensor
) -> list[torch.Tensor]:
    """(N, T, H) last states of each sequence, and (R, P, H) the gradient of a weighting of them by the embeddings."""
    embedded = model.embed_tokens(packing.pack(ids)).detach().requires_grad_()
    states = model(inputs_embeds=embedded, use_cache=False, **attention.inputs(packing)).last_hidden_state
    found = packing.unpack(states) * real
    (gradient,) = torch.autograd.grad((found * torch.linspace(-1, 1, found.shape[-1])).sum(), embedded)
    return [found.detach(), gradient]


@pytest.mark.parametrize("row_tokens", [24, 10_000], ids=["rows", "one row"])
@pytest.mark.parametrize("common", [0, 5])
def test_states_and_gradients_equal_those_under_a_mask(base: Path, common: int, row_tokens: int) -> None:
    packing, ids, real = packed(common, row_tokens)
    assert (len(packing.pieces) == 1) == (row_tokens > 24)
    plain, in_pieces = load_tiny(base).base_model, load_tiny(base).base_model
    attention = PackedAttention.find(in_pieces)
    assert attention.in_pieces
    assert in_pieces.config._attn_implementation == NAME
    expected, their_gradient = run(plain, UNDER_A_MASK, packing, ids, real)
    found, gradient = run(in_pieces, attention, packing, ids, real)
    assert torch.allclose(found, expected, atol=1e-5)
    assert float((gradient - their_gradient).abs().max() / their_gradient.abs().max()) < 1e-5


def test_without_a_packing_all_is_as_it_was(base: Path) -> None:
    plain, in_pieces = load_tiny(base), load_tiny(base)
    PackedAttention.find(in_pieces)
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    found, expected = (model(input_ids=ids, attention_mask=mask).logits for model in (in_pieces, plain))
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-6)
    written = [model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0) for model in (in_pieces, plain)]
    assert torch.equal(*written)


def test_a_model_with_other_attention_stays_as_it_is(base: Path) -> None:
    model = load_tiny(base)
    model.config._attn_implementation = "eager"
    assert PackedAttention.find(model) == UNDER_A_MASK
    assert model.config._attn_implementation == "eager"


def test_dropout_of_a_base_hides_nothing_but_at_random(base: Path) -> None:
    """In training mode, with dropout: what a token may not see must not reach it, however often it is drawn."""
    packing, ids, real = packed(5, 10_000)
    model = load_tiny(base).base_model
    model.config.attention_dropout = 0.5
    for layer in model.layers:
        layer.self_attn.attention_dropout = 0.5
    attention = PackedAttention.find(model)
    model.train()
    changed = ids.clone()
    changed[7] = torch.where(real[7, :, 0] > 0, 5 + (ids[7] * 7) % 290, ids[7])  # its group stands last in the row
    changed[:, :5] = ids[:, :5]
    found = []
    for rows in (ids, changed):
        torch.manual_seed(3)
        with torch.no_grad():
            states = model(
                inputs_embeds=model.embed_tokens(packing.pack(rows)), use_cache=False, **attention.inputs(packing)
            ).last_hidden_state
        found.append(packing.unpack(states) * real)
    assert torch.equal(found[0][:6], found[1][:6])
    assert not torch.equal(found[0][7], found[1][7])
    assert not torch.equal(found[0][0], run(model.eval(), attention, packing, ids, real)[0][0])
