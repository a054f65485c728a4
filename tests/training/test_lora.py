"""LoRA settings: which layers are adapted, and that only they are trained."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import load_tiny, make_tiny_base
from training.lora import BLOCK_LINEARS, lora_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def adapted(base: Path, **more: Any) -> Any:
    from peft import get_peft_model

    model = load_tiny(base)
    return get_peft_model(model, lora_config(model, **({"rank": 4, "top_layers": 0, "task": "CAUSAL_LM"} | more)))


def trainable_state(model: Any) -> dict[str, torch.Tensor]:
    """Name → copy of each trainable parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("top_layers", "layers"), [(0, {0, 1}), (1, {1}), (2, {0, 1}), (5, {0, 1})])
def test_the_last_layers_are_adapted_in_all_their_linears(base: Path, top_layers: int, layers: set[int]) -> None:
    names = trainable_state(adapted(base, top_layers=top_layers))
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in names} == layers
    assert {next(k for k in BLOCK_LINEARS if k in name) for name in names} == set(BLOCK_LINEARS)
    assert len(names) == len(layers) * len(BLOCK_LINEARS) * 2  # A and B
    assert all("lora_" in name for name in names)


def test_rank_scale_and_what_else_is_fixed(base: Path) -> None:
    config = lora_config(load_tiny(base), rank=8, top_layers=1, task="SEQ_CLS", save=["score"])
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.0, "none")
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["score"])
    assert {p.shape[0] for n, p in trainable_state(adapted(base, rank=3)).items() if "lora_A" in n} == {3}


def test_a_fresh_adapter_changes_nothing_and_the_base_is_frozen(base: Path) -> None:
    model = adapted(base)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, load_tiny(base)(input_ids=ids).logits)
    assert [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n] == []


def test_another_shape_of_model_gets_all_its_linears() -> None:
    from peft import get_peft_model
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    lora = lora_config(model, rank=2, top_layers=1, task="CAUSAL_LM")
    assert lora.target_modules == "all-linear"
    names = trainable_state(get_peft_model(model, lora))
    linears = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == linears


def test_the_state_is_a_copy(base: Path) -> None:
    model = adapted(base)
    before = trainable_state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    after = trainable_state(model)
    assert all(torch.allclose(after[name], value + 1.0) for name, value in before.items())
