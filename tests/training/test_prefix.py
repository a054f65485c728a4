"""Packed pairs give the plain batch's states, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_adapter, make_tiny_base
from training import prefix
from training.prefix import Packing, Plan, find_packing, neighbours
from training.trunk import share_trunk

KEYS = [(5, 6, 7, 8, 9, 10), (5, 6, 7, 20, 21), (5, 6, 7, 8, 30), (5, 6, 7, 40, 41, 42)]

PAIRS = [(0, 2), (1, 3)]


def padded(keys: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, keys))
    ids = torch.tensor([[*key, *[0] * (width - len(key))] for key in keys])
    mask = torch.tensor([[1] * len(key) + [0] * (width - len(key)) for key in keys])
    return ids, mask


def test_a_packed_row_is_what_all_share_then_pair_by_pair() -> None:
    packing = Packing(Plan(KEYS, PAIRS), 6, "cpu")

    assert Plan(KEYS, PAIRS).width == 3 + (1 + 2 + 1) + (2 + 3)  # all share 3; the first pair one more; then the rests
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 5, 4, 3, 4, 3, 4, 5]]
    seen = packing.mask[0, 0].int().tolist()
    assert seen[6] == [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0]  # the first pair's second side: not the first side
    assert seen[8] == [1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0]  # the second pair's first side: nothing of the first pair
    assert seen[11] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("row_tokens", [384, 4])
def test_states_come_back_to_where_they_were(monkeypatch: pytest.MonkeyPatch, row_tokens: int) -> None:
    monkeypatch.setattr(prefix, "ROW_TOKENS", row_tokens)
    packing = Packing(Plan(KEYS, PAIRS), 6, "cpu")
    assert len(packing.positions) == (1 if row_tokens == 384 else 2)
    ids, _ = padded(KEYS)
    back = packing.unpack(packing.pack(ids[:, :, None]))
    places = packing.unpack(packing.positions[:, :, None])
    for row, key in enumerate(KEYS):
        assert back[row, : len(key), 0].tolist() == list(key)
        assert places[row, : len(key), 0].tolist() == list(range(len(key)))


def test_a_few_large_groups_do_not_leave_rows_half_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four groups of 10 beside 2 in common, in rows of about 16: three rows would hold 22, 12 and 12 of 66; four hold 48."""
    monkeypatch.setattr(prefix, "ROW_TOKENS", 16)
    keys = [(1, 2, *range(10 * i, 10 * i + 8), *range(100 + j, 101 + j)) for i in range(1, 5) for j in (1, 2)]
    plan = Plan(keys, [(2 * i, 2 * i + 1) for i in range(4)])
    assert (len(plan.rows), plan.width) == (4, 12)


def test_a_batch_that_shares_little_stays_as_it_is() -> None:
    assert find_packing([(1, 2, 3), (4, 5, 6)], 3, "cpu") is None
    assert find_packing([(1, 2, 3)], 3, "cpu") is None
    assert find_packing([(1, 2, 3, 4), (1, 2, 3, 5)], 4, "cpu") is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("row_tokens", [384, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_logits_and_gradients_equal_the_plain_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, row_tokens: int
) -> None:
    monkeypatch.setattr(prefix, "ROW_TOKENS", row_tokens)
    base = make_tiny_base(tmp_path / "base")
    adapter = make_tiny_adapter(base, tmp_path / "adapter", seed=3, scale=0.3)
    ids, mask = padded(KEYS)

    def run(packed: bool) -> tuple[torch.Tensor, dict[str, Any]]:
        model = load_tiny(base, adapter)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name and ("layers.1." in name or first == 0))
        if packed:
            assert share_trunk(model, first) is not None
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        logits.log_softmax(-1).pow(2).mean().backward()
        return logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, plain_grads = run(False)
    packed, packed_grads = run(True)

    assert torch.allclose(plain, packed, atol=1e-4)
    assert plain_grads.keys() == packed_grads.keys() != set()
    for name, grad in plain_grads.items():
        assert torch.allclose(grad, packed_grads[name], atol=1e-5), name


def test_neighbours_are_those_that_begin_alike() -> None:
    prompt, other = tuple(range(10, 20)), tuple(range(30, 40))
    keys = [(1, *prompt, 5), (1, *other, 6), (1, *prompt, 7, 8), (1, 2), (1, *prompt)]
    assert sorted(sorted(group) for group in neighbours(keys)) == [[0, 2, 4], [1], [3]]
    assert neighbours([]) == []
    assert neighbours([(1, 2, 3)] * 2) == [[0], [1]]  # what all share is shared anyway
