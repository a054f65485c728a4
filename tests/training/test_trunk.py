"""Lower blocks that are computed once: the same output and gradients as the plain model, for less work."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import StageError
from tests.tiny import load_tiny, make_tiny_adapter, make_tiny_base
from training.lora import lora_config
from training.trunk import Trunk, is_llama_shaped, share_trunk

LENGTHS = [7, 3, 9]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def adapted(base: Path, *, top_layers: int = 1) -> Any:
    """A model whose last layer carries an adapter that changes it; equal calls give equal weights."""
    from peft import get_peft_model

    model = load_tiny(base)
    model = get_peft_model(model, lora_config(model, rank=2, top_layers=top_layers, task="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def batch(lengths: list[int] = LENGTHS, seed: int = 0, width: int | None = None) -> dict[str, torch.Tensor]:
    """(B, T) ids and mask, padded on the right."""
    width = width or max(lengths)
    ids = torch.randint(5, 300, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    return {"input_ids": ids * mask, "attention_mask": mask}


def same(found: torch.Tensor, expected: torch.Tensor, inputs: dict[str, torch.Tensor]) -> bool:
    """Equal wherever a token stands; what padding gives does not matter."""
    mask = inputs["attention_mask"].bool()
    return torch.allclose(found[mask], expected[mask], atol=2e-5)


@pytest.mark.parametrize("adapters", ["on", "off"])
def test_it_equals_the_plain_forward(base: Path, adapters: str) -> None:
    from contextlib import nullcontext

    plain, model = adapted(base), adapted(base)
    blocks = share_trunk(model, 1)
    assert blocks is not None
    inputs = batch()
    outputs = []
    with torch.no_grad():
        for each in (plain, model, model):  # the second time from the store
            with each.disable_adapter() if adapters == "off" else nullcontext():
                outputs.append(each(**inputs).logits)
    assert same(outputs[1], outputs[0], inputs)
    assert same(outputs[2], outputs[0], inputs)
    assert (blocks.misses, blocks.hits) == (3, 3)


def test_adapters_change_the_output_and_share_the_store(base: Path) -> None:
    model = adapted(base)
    blocks = share_trunk(model, 1)
    assert blocks is not None
    with torch.no_grad():
        on = model(**batch()).logits
        with model.disable_adapter():
            off = model(**batch()).logits
    assert not same(on, off, batch())
    assert (blocks.misses, blocks.hits) == (3, 3)


def test_gradients_equal_those_of_the_plain_forward(base: Path) -> None:
    plain, model = adapted(base), adapted(base)
    share_trunk(model, 1)
    inputs = batch()
    for each in (plain, model):
        mask = inputs["attention_mask"].bool()
        each(**inputs).logits[mask].square().mean().backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n], rtol=1e-4, atol=1e-6) for n in expected)
    assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_a_sequence_is_known_again_in_another_batch(base: Path) -> None:
    plain, model = adapted(base), adapted(base)
    blocks = share_trunk(model, 1)
    assert blocks is not None
    first = batch(LENGTHS)
    other = {name: value[[2, 1]] for name, value in first.items()}
    wider = {name: torch.nn.functional.pad(value[:1], (0, 4)) for name, value in first.items()}
    with torch.no_grad():
        model(**first)
        assert (blocks.misses, blocks.hits) == (3, 0)
        assert same(model(**other).logits, plain(**other).logits, other)
        assert (blocks.misses, blocks.hits) == (3, 2)
        assert same(model(**wider).logits, plain(**wider).logits, wider)
        assert (blocks.misses, blocks.hits) == (3, 3)
        new = batch([5], seed=9)
        assert same(model(**new).logits, plain(**new).logits, new)
        assert (blocks.misses, blocks.hits) == (4, 3)


def test_without_a_mask_every_token_counts(base: Path) -> None:
    plain, model = adapted(base), adapted(base)
    blocks = share_trunk(model, 1)
    assert blocks is not None
    ids = batch([6, 6])["input_ids"]
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=2e-5)
    assert (blocks.misses, blocks.hits) == (2, 2)


def test_padding_on_the_left_takes_the_plain_way(base: Path) -> None:
    plain, model = adapted(base), adapted(base)
    blocks = share_trunk(model, 1)
    assert blocks is not None
    inputs = {name: value.flip(1) for name, value in batch().items()}
    with torch.no_grad():
        assert same(model(**inputs).logits, plain(**inputs).logits, inputs)
    assert (blocks.misses, blocks.hits) == (0, 0)


def test_the_model_is_whole_after_an_error(base: Path) -> None:
    model = adapted(base)
    share_trunk(model, 1)
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[99_999]]))
    decoder = model.get_base_model().base_model
    assert len(decoder.layers) == 2
    assert type(decoder.norm).__name__ == "LlamaRMSNorm"


def test_trainable_lower_blocks_are_refused(base: Path) -> None:
    model = adapted(base, top_layers=0)
    with pytest.raises(StageError, match="blocks below 1 have trainable parameters"):
        share_trunk(model, 1)
    decoder = model.get_base_model().base_model
    assert decoder.forward.__func__ is type(decoder).forward  # left as it was


def test_without_frozen_blocks_nothing_is_stored(base: Path) -> None:
    plain, model = adapted(base, top_layers=0), adapted(base, top_layers=0)
    trunk = share_trunk(model, 0)
    assert trunk is not None
    with torch.no_grad():
        assert same(model(**batch()).logits, plain(**batch()).logits, batch())
    assert (trunk.misses, trunk.hits, trunk.states) == (0, 0, {})


def test_another_shape_of_model_is_left_alone() -> None:
    from peft import get_peft_model
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    wrapped = get_peft_model(model, lora_config(model, rank=2, top_layers=1, task="CAUSAL_LM"))
    assert share_trunk(wrapped, 1) is None


@pytest.mark.parametrize(
    "odd", [{"layer_types": ["full_attention", "sliding_attention"]}, {"embedding_multiplier": 12.0}]
)
def test_blocks_that_are_not_alike_are_left_alone(base: Path, odd: dict[str, Any]) -> None:
    decoder = load_tiny(base).base_model
    assert is_llama_shaped(decoder)
    for name, value in odd.items():
        setattr(decoder.config, name, value)
    assert not is_llama_shaped(decoder)


def test_an_adapter_of_disk_works_as_one_that_is_trained(base: Path, tmp_path: Path) -> None:
    """The store is about the base, not about how the adapter came there."""
    adapter = make_tiny_adapter(base, tmp_path / "adapter")
    model = load_tiny(base, adapter)  # all layers adapted, but none of them trained
    assert isinstance(share_trunk(model, 1), Trunk)


# What a caller decides ------------------------------------------------------------------------------------------------


def test_groups_of_any_size_equal_the_plain_forward(base: Path) -> None:
    """Three texts of one prompt and one of another; with lower states that are new, that are known, and of both kinds."""
    plain, model = adapted(base), adapted(base)
    trunk = share_trunk(model, 1)
    assert trunk is not None
    keys = [[5, 6, 7, 8, 9, 10, 11, 20 + i] + [30] * i for i in range(3)] + [[40, 41, 42]]
    groups = [[0, 1, 2], [3]]
    width = max(map(len, keys))
    inputs = {
        "input_ids": torch.tensor([key + [0] * (width - len(key)) for key in keys]),
        "attention_mask": torch.tensor([[1] * len(key) + [0] * (width - len(key)) for key in keys]),
    }
    expected = plain.get_base_model().base_model(**inputs).last_hidden_state
    with torch.no_grad():
        trunk.prepare(*(value[[1, 3]] for value in inputs.values()), [[0], [1]])
        for _ in range(2):
            found = trunk.forward(**inputs, groups=groups, use_cache=False).last_hidden_state
            assert same(found, expected, inputs)
    assert (trunk.misses, trunk.hits) == (2 + 2, 2 + 4)


def test_what_has_no_room_is_computed_anew(base: Path) -> None:
    plain, model = adapted(base), adapted(base)
    one = 7 * 64 * 4 / 1e6  # MB of the first sequence's states
    trunk = share_trunk(model, 1, keep_mb=one)
    assert trunk is not None
    with torch.no_grad():
        for _ in range(2):
            assert same(model(**batch()).logits, plain(**batch()).logits, batch())
    assert [len(key) for key in trunk.states] == [7]
    assert (trunk.misses, trunk.hits) == (5, 1)
    trunk.forget()
    assert (trunk.states, trunk.room) == ({}, one * 1e6)


def test_what_is_not_to_be_kept_is_not(base: Path) -> None:
    model = adapted(base)
    trunk = share_trunk(model, 1)
    assert trunk is not None
    with torch.no_grad():
        model(**batch())
        trunk.keeping = False
        model(**batch(seed=4))
        known = set(trunk.states)
        assert len(known) == 3
        trunk.keeping = True
        model(**batch(seed=5))
        assert len(trunk.states) == 6
        trunk.forget(known)
    assert set(trunk.states) == known
