"""Attention piece by piece against attention under a mask over whole packed rows: the same states and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_base
from training.attention import NAME, attend_in_pieces, of_packing
from training.prefix import Packing, Plan

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


def run(model: Any, packing: Packing, ids: torch.Tensor, real: torch.Tensor, *, in_pieces: bool) -> list[torch.Tensor]:
    """(N, T, H) last states of each sequence, and (R, P, H) the gradient of a weighting of them by the embeddings."""
    embedded = model.embed_tokens(packing.pack(ids)).detach().requires_grad_()
    states = model(inputs_embeds=embedded, use_cache=False, **of_packing(packing, in_pieces)).last_hidden_state
    found = packing.unpack(states) * real
    (gradient,) = torch.autograd.grad((found * torch.linspace(-1, 1, found.shape[-1])).sum(), embedded)
    return [found.detach(), gradient]


@pytest.mark.parametrize("row_tokens", [24, 10_000], ids=["rows", "one row"])
@pytest.mark.parametrize("common", [0, 5])
def test_states_and_gradients_equal_those_under_a_mask(base: Path, common: int, row_tokens: int) -> None:
    packing, ids, real = packed(common, row_tokens)
    assert (len(packing.pieces) == 1) == (row_tokens > 24)
    plain, in_pieces = load_tiny(base).base_model, load_tiny(base).base_model
    assert attend_in_pieces(in_pieces)
    assert in_pieces.config._attn_implementation == NAME
    expected, their_gradient = run(plain, packing, ids, real, in_pieces=False)
    found, gradient = run(in_pieces, packing, ids, real, in_pieces=True)
    assert torch.allclose(found, expected, atol=1e-5)
    assert float((gradient - their_gradient).abs().max() / their_gradient.abs().max()) < 1e-5


def test_without_a_packing_all_is_as_it_was(base: Path) -> None:
    plain, in_pieces = load_tiny(base), load_tiny(base)
    attend_in_pieces(in_pieces)
    ids = torch.randint(5, 300, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    found, expected = (model(input_ids=ids, attention_mask=mask).logits for model in (in_pieces, plain))
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-6)
    written = [model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0) for model in (in_pieces, plain)]
    assert torch.equal(*written)


def test_a_model_with_other_attention_stays_as_it_is(base: Path) -> None:
    model = load_tiny(base)
    model.config._attn_implementation = "eager"
    assert not attend_in_pieces(model)
    assert model.config._attn_implementation == "eager"
