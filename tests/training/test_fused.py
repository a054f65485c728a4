"""The fused LoRA layers and norms against PEFT's and transformers' own: the same results and gradients, in fp32 and near in bf16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.tiny import load_tiny, make_tiny_base
from training.fused import fuse
from training.lora import BLOCK_LINEARS, lora_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def adapted(base: Path, *, fused: bool, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with two adapters, all their factors drawn, the first one on."""
    model = load_tiny(base).to(dtype)
    config = (
        LoraConfig(r=4, lora_alpha=8, target_modules=BLOCK_LINEARS, **changes)
        if changes
        else lora_config(model, rank=4, top_layers=0, task="CAUSAL_LM")
    )
    model = get_peft_model(model, config, adapter_name="one")
    model.add_adapter("two", config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if fused:
        fuse(model)
    return model.eval()


def learnt(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of some tokens, and what a loss on them says of every parameter that learns."""
    ids = torch.randint(5, 300, (2, 11), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits
    (logits.float().log_softmax(-1) * torch.linspace(-1, 1, logits.shape[-1])).sum(-1).mean().backward()
    return logits, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, by the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("adapter", ["one", "two", None])
def test_logits_and_gradients_equal_those_of_peft(base: Path, adapter: str | None) -> None:
    found, expected = adapted(base, fused=True), adapted(base, fused=False)
    if adapter is None:
        with torch.no_grad(), found.disable_adapter(), expected.disable_adapter():
            ids = torch.arange(5, 25)[None]
            assert torch.allclose(found(input_ids=ids).logits, expected(input_ids=ids).logits, atol=1e-5)
        return
    for model in (found, expected):
        model.set_adapter(adapter)
    (logits, grads), (their_logits, their_grads) = learnt(found), learnt(expected)
    assert torch.allclose(logits, their_logits, atol=1e-5)
    assert grads.keys() == their_grads.keys()
    assert len(grads) == 2 * 7 * 2
    assert all(f".{adapter}." in name for name in grads)
    for name, grad in grads.items():
        assert apart(grad, their_grads[name]) < 1e-5, name


def test_a_frozen_adapter_lets_gradients_through_and_gets_none(base: Path) -> None:
    model = adapted(base, fused=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    given = model.get_input_embeddings()(torch.arange(5, 25)[None]).requires_grad_()
    model(inputs_embeds=given).logits.sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
@pytest.mark.parametrize(
    "changes", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=["dropout", "dora", "bias"]
)
def test_layers_that_do_more_keep_the_forward_of_peft(base: Path, changes: dict[str, Any]) -> None:
    found, expected = adapted(base, fused=True, **changes), adapted(base, fused=False, **changes)
    (logits, grads), (their_logits, their_grads) = learnt(found), learnt(expected)
    assert torch.allclose(logits, their_logits, atol=1e-5)
    assert all(apart(grads[name], grad) < 1e-5 for name, grad in their_grads.items())


def test_a_norm_that_learns_keeps_its_own_forward(base: Path) -> None:
    model = adapted(base, fused=True)
    weight = model.get_base_model().model.norm.weight.requires_grad_()
    _, grads = learnt(model)
    assert "base_model.model.model.norm.weight" in grads
    assert weight.grad.abs().sum() > 0


def test_what_the_backward_pass_keeps_of_a_base_in_bf16_is_less(base: Path) -> None:
    from tests.training.test_memory import kept_bytes

    # Rows of 64 would be packed for AVX512, which fails on a CPU with AMX where torch is held to AVX2, as here.
    ids = torch.randint(5, 300, (4, 48), generator=torch.Generator().manual_seed(1))
    kept = []
    for fused in (False, True):
        with kept_bytes() as count:
            adapted(base, fused=fused, dtype=torch.bfloat16).get_base_model().model(input_ids=ids)
            kept.append(count())
    assert kept[1] < 0.75 * kept[0]


def test_in_bf16_gradients_are_fp32_and_near_those_in_fp32(base: Path) -> None:
    """Within what eight bits of mantissa allow, as the angle and the length of each gradient."""
    _, grads = learnt(adapted(base, fused=True, dtype=torch.bfloat16))
    _, exact = learnt(adapted(base, fused=False))
    assert grads.keys() == exact.keys()
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(grad.flatten(), exact[name].flatten(), dim=0) > 0.99, name
        assert float(grad.norm()) == pytest.approx(float(exact[name].norm()), rel=0.1)
