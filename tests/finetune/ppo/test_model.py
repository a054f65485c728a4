"""Policy, value model and reference from shared passes, against the plain models, one sequence at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import StageError
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Prompt, Rollout
from policy.engine.packed import PackedLinear
from tests.finetune.ppo.conftest import SMALL, rollouts
from tests.tiny import load_tiny

LENGTHS = [1, 5, 3, 3, 7, 2, 4, 1]
Build = Callable[..., LoraActorCritic]

each_depth = pytest.mark.parametrize(("policy_top", "value_top"), [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)


def plain_logps(model: Any, row: Rollout, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, vocabulary) log-probabilities before each token of a completion, and those of the tokens."""
    ids = torch.tensor([[*row.prompt.ids, *row.ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(row.prompt.ids) - 1 : -1]
    logps = (logits / temperature).log_softmax(-1)
    return logps, logps[torch.arange(len(row.ids)), torch.tensor(row.ids)]


@each_depth
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_and_entropies_equal_those_of_the_plain_models(
    base: Path, build: Build, prompts: list[Prompt], tmp_path: Path, policy_top: int, value_top: int, temperature: float
) -> None:
    models = build(0.3, lora_top_layers=policy_top, value_top_layers=value_top, temperature=temperature)
    rows = rollouts(prompts, LENGTHS)
    models.save_policy(tmp_path)
    policy, reference = load_tiny(base, tmp_path), load_tiny(base)
    wanted = [plain_logps(policy, row, temperature) for row in rows]
    expected = torch.cat([chosen for _, chosen in wanted])
    entropies = torch.cat([-(logps.exp() * logps).sum(-1) for logps, _ in wanted])
    for again in range(2):  # from the states that are kept, too
        found_reference = models.reference_logps(rows)
        found, entropy = models.policy_logps(rows, entropy=True)
        assert torch.allclose(found, expected, atol=1e-5), again
        assert entropy is not None
        assert torch.allclose(entropy, entropies, atol=1e-4)
        plain = torch.cat([plain_logps(reference, row, temperature)[1] for row in rows])
        assert torch.allclose(found_reference, plain, atol=1e-5)
    assert not torch.allclose(found, found_reference, atol=0.1)


@each_depth
def test_values_are_those_of_a_model_with_the_value_adapter_and_its_head(
    base: Path, build: Build, prompts: list[Prompt], tmp_path: Path, policy_top: int, value_top: int
) -> None:
    models = build(0.3, lora_top_layers=policy_top, value_top_layers=value_top)
    rows = rollouts(prompts, LENGTHS)
    models.peft.save_pretrained(tmp_path, selected_adapters=["value"])
    plain = load_tiny(base, tmp_path / "value")
    expected = []
    for row in rows:
        ids = torch.tensor([[*row.prompt.ids, *row.ids]])
        with torch.no_grad():
            states = plain.get_base_model().base_model(input_ids=ids).last_hidden_state
            states = states[0, len(row.prompt.ids) - 1 : -1]
            unit = states / states.square().mean(-1, keepdim=True).sqrt()
            expected.append(models.head(unit)[:, 0])
    models.policy_logps(rows)  # whoever came before must not matter
    found = models.values(rows)
    assert torch.allclose(found, torch.cat(expected), atol=1e-5, rtol=1e-4)
    assert found.std() > 0.01


def test_one_row_alone_gives_what_it_gives_among_others(build: Build, prompts: list[Prompt]) -> None:
    models = build(0.3, lora_top_layers=1)
    rows = rollouts(prompts, LENGTHS)
    together = models.policy_logps(rows)[0]
    models.forget()
    alone = torch.cat([models.policy_logps([row])[0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


def test_policy_and_reference_begin_alike_and_values_as_nothing(build: Build, prompts: list[Prompt]) -> None:
    models, rows = build(), rollouts(prompts, LENGTHS)
    assert torch.allclose(models.policy_logps(rows)[0], models.reference_logps(rows), atol=1e-6)
    assert models.values(rows).abs().max() == 0


def test_each_loss_reaches_its_own_adapter_alone(build: Build, prompts: list[Prompt]) -> None:
    models, rows = build(0.3), rollouts(prompts, LENGTHS)

    def touched(named: dict[str, Any]) -> set[str]:
        found = {name for name, p in named.items() if p.grad is not None and p.grad.abs().max() > 0}
        for p in named.values():
            p.grad = None
        return found

    models.policy_logps(rows)[0].sum().backward()
    assert touched(models.policy) == set(models.policy)
    assert touched(models.value) == set()
    models.values(rows).square().sum().backward()
    assert touched(models.value) == set(models.value)
    assert touched(models.policy) == set()
    trainable = {name for name, p in models.peft.named_parameters() if p.requires_grad}
    assert trainable == set(models.policy) | {name for name in models.value if not name.startswith("head.")}
    assert len(models.policy) == 2 * 7 * 2
    assert len(models.value) == 7 * 2 + 2


def test_states_below_the_adapters_are_computed_once(
    build: Build, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, rows = build(0.3, lora_top_layers=1), rollouts(prompts, LENGTHS)
    calls: list[int] = []
    layer = models.layers[0]
    real = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: (calls.append(1), real(*args, **kwargs))[1])
    first = models.reference_logps(rows)
    for _ in range(3):
        models.policy_logps(rows)
        models.values(rows)
    assert len(calls) == 1
    models.forget()
    assert torch.equal(models.reference_logps(rows), first)
    assert len(calls) == 2


def test_shared_prompts_are_read_once(build: Build, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    models, widths = build(), []
    real = models.layers[0].forward
    monkeypatch.setattr(
        models.layers[0], "forward", lambda states, **kwargs: (widths.append(states.shape), real(states, **kwargs))[1]
    )
    models.policy_logps(rollouts(prompts[:1], [4] * 8))
    assert [tuple(shape[:2]) for shape in widths] == [(1, len(prompts[0].ids) + 8 * 3)]  # the last token tells nothing


def test_decoding_speaks_as_the_policy_and_leaves_the_model_as_it_was(
    base: Path, build: Build, prompts: list[Prompt], tmp_path: Path
) -> None:
    models = build(0.3)
    models.save_policy(tmp_path)
    row = rollouts(prompts, [9])[0]
    expected = plain_logps(load_tiny(base, tmp_path), row)[0]
    with models.decoding():
        assert torch.allclose(plain_logps(models.base, row)[0], expected, atol=1e-4)
        packed = [m for m in models.base.modules() if isinstance(m, PackedLinear)]
        assert len(packed) in (0, 2 * 7 + 1)  # all that is linear, or nothing where oneDNN is not built in
    assert not any(isinstance(m, PackedLinear) or hasattr(m, "packed") for m in models.base.modules())
    saved = load_file(base / "model.safetensors")
    for name, parameter in models.base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, saved[name.replace(".base_layer", "")]), name
    assert torch.allclose(models.policy_logps([row])[0], expected[torch.arange(9), torch.tensor(row.ids)], atol=1e-5)


def test_a_model_of_another_shape_is_refused() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with pytest.raises(StageError, match="Llama's shape.*gpt_neox is none.*METHOD=dpo"):
        LoraActorCritic(GPTNeoXForCausalLM(config), SMALL)
