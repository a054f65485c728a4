"""Packed pairs give the plain batch's states, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_adapter, make_tiny_base
from training.prefix import Packing, find_packing
from training.trunk import reuse_lower_blocks

KEYS = [(5, 6, 7, 8, 9, 10), (5, 6, 7, 20, 21), (5, 6, 7, 8, 30), (5, 6, 7, 40, 41, 42)]


def padded(keys: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, keys))
    ids = torch.tensor([[*key, *[0] * (width - len(key))] for key in keys])
    mask = torch.tensor([[1] * len(key) + [0] * (width - len(key)) for key in keys])
    return ids, mask


def test_a_packed_row_is_shared_part_and_both_rests() -> None:
    packing = Packing(KEYS, 6, "cpu")

    assert packing.width == 3 + 2 + 3  # the second pair: shared 3, rests of 2 and 3
    assert packing.positions[0, :7].tolist() == [0, 1, 2, 3, 4, 5, 4]  # first pair: shared 4, rests of 2 and 1
    assert packing.mask[0, 0, 6, :7].tolist() == [True] * 4 + [False, False, True]
    states = torch.arange(4 * 6).reshape(4, 6, 1).float()
    back = packing.unpack(packing.pack(states))
    for row, key in enumerate(KEYS):
        source = states[row, : len(key), 0].tolist()
        shared = [states[row % 2, t, 0].item() for t in range(4 if row % 2 == 0 else 3)]
        assert back[row, : len(key), 0].tolist() == shared + source[len(shared) :]


def test_a_batch_that_shares_little_stays_as_it_is() -> None:
    assert find_packing([(1, 2, 3), (4, 5, 6)], 3, "cpu") is None
    assert find_packing([(1, 2, 3)], 3, "cpu") is None
    assert find_packing([(1, 2, 3, 4), (1, 2, 3, 5)], 4, "cpu") is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_logits_and_gradients_equal_the_plain_batch(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    adapter = make_tiny_adapter(base, tmp_path / "adapter", seed=3, scale=0.3)
    ids, mask = padded(KEYS)

    def run(packed: bool) -> tuple[torch.Tensor, dict[str, Any]]:
        model = load_tiny(base, adapter)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name and "layers.1." in name)
        if packed:
            assert reuse_lower_blocks(model, 1) is not None
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        logits.log_softmax(-1).pow(2).mean().backward()
        return logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, plain_grads = run(False)
    packed, packed_grads = run(True)

    assert torch.allclose(plain, packed, atol=1e-4)
    assert plain_grads.keys() == packed_grads.keys() != set()
    for name, grad in plain_grads.items():
        assert torch.allclose(grad, packed_grads[name], atol=1e-5), name
