"""Models and adapters of the Llama family as GGUF files, which llama.cpp reads.

    convert_base(folder, Path("base.gguf"), "q8_0")          a transformers folder with safetensors
    convert_adapter(adapter, folder, Path("adapter.gguf"))   a PEFT LoRA adapter of that base
    convert_base(folder, Path("both.gguf"), "q8_0", adapter=adapter)   both in one, merged in fp32 before rounding

No torch: weights are read as bytes. What the file cannot say, or we have not shown to be equal, is refused, never left
out: other architectures, scaled rotary embeddings, biases; DoRA, saved modules, other targets of an adapter.

llama.cpp turns pairs of neighbours where transformers turns the two halves of a head, so the rows of q and k are laid
out anew (Su et al. 2021, arXiv:2104.09864, eq. 34; both are the same rotation).

The vocabulary in the file is one of our own (`policy.gguf.vocabulary`).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from core.errors import ArtifactError
from policy.engine.names import read_lora_config
from policy.gguf.vocabulary import vocabulary

BaseType = Literal["f32", "f16", "bf16", "q8_0", "q4_1"]
Floats = NDArray[np.float32]

TYPES: dict[BaseType, tuple[gguf.GGMLQuantizationType, gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_1),
}
"""What linear layers are stored as, what token embeddings and output are, and what the file is called; norms are fp32."""

LINEAR = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")  # llama.cpp ends a text at each of them


@dataclass(frozen=True)
class Shape:
    """What of a Llama's configuration the layout of its weights hangs on."""

    layers: int
    heads: int
    kv_heads: int


def convert_base(
    folder: Path, target: Path, kind: BaseType, eos_ids: frozenset[int] | None = None, *, adapter: Path | None = None
) -> None:
    """Write a base model as GGUF, all or nothing.

    Args:
        folder: `config.json`, safetensors and the tokenizer.
        eos_ids: tokens that end a completion; None: the configuration's.
        adapter: a PEFT LoRA adapter of it, which is added to the weights before they are rounded.

    Raises:
        ArtifactError: the model is not one that this file can hold, or the adapter not one of its.
    """
    config = read_config(folder)
    factors = _factors(adapter, config) if adapter is not None else {}
    partial = _partial(target)
    writer = gguf.GGUFWriter(partial, "llama")
    _write_config(writer, config, TYPES[kind][2])
    _write_vocabulary(writer, folder, config, eos_ids or _configured_eos(config))
    linear, wide, _ = TYPES[kind]
    shape = shape_of(config)
    for name, plain in _base_weights(folder, shape, bool(config.get("tie_word_embeddings"))):
        change = factors.get(name)
        weights = _rotated(name, plain if change is None else plain + change[1] @ change[0], shape)
        stored = gguf.GGMLQuantizationType.F32 if weights.ndim == 1 else wide if "blk." not in name else linear
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, stored), raw_dtype=stored)
    _finish(writer, partial, target)


def convert_adapter(adapter: Path, base: Path, target: Path) -> None:
    """Write a PEFT LoRA adapter as GGUF, fp32, all or nothing; its scaling is multiplied into the B factors.

    Args:
        adapter: `adapter_config.json` and `adapter_model.safetensors`.
        base: the folder of the base model that it belongs to.

    Raises:
        ArtifactError: it is no plain LoRA adapter of this base, or it adapts what is not among `LINEAR`.
    """
    base_config = read_config(base)
    shape = shape_of(base_config)
    factors = _factors(adapter, base_config)
    partial = _partial(target)
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # 0: no scaling beside what is in B already
    for name, (a, b) in factors.items():
        for side, weights in (("a", a), ("b", _rotated(name, b, shape))):
            writer.add_tensor(f"{name}.weight.lora_{side}", np.ascontiguousarray(weights, np.float32))
    _finish(writer, partial, target)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a Llama that GGUF holds as it is.

    Raises:
        ArtifactError: it is another architecture, or has parts that are not converted.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable config.json: {error}") from error
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {
        "model_type": (config.get("model_type"), "llama"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias")), False),
        "mlp_bias": (bool(config.get("mlp_bias")), False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    wrong = [f"{name} {is_!r} (taken: {wanted!r})" for name, (is_, wanted) in found.items() if is_ != wanted]
    if wrong:
        raise ArtifactError(
            f"{folder} cannot be served by llama.cpp here: {', '.join(wrong)}. Set DUNNOCK_ENGINE=transformers."
        )
    return cast(dict[str, Any], config)


def shape_of(config: dict[str, Any]) -> Shape:
    """Layers and heads."""
    heads = int(config["num_attention_heads"])
    return Shape(int(config["num_hidden_layers"]), heads, int(config.get("num_key_value_heads") or heads))


def linear_sizes(config: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Width of what each linear layer takes ("A") and gives ("B"), by its name in GGUF."""
    shape, hidden, inner = shape_of(config), int(config["hidden_size"]), int(config["intermediate_size"])
    head_dim = int(config.get("head_dim") or hidden // shape.heads)
    queries, keys = shape.heads * head_dim, shape.kv_heads * head_dim
    pairs = {
        "attn_q": (hidden, queries), "attn_k": (hidden, keys), "attn_v": (hidden, keys), "attn_output": (queries, hidden),
        "ffn_gate": (hidden, inner), "ffn_up": (hidden, inner), "ffn_down": (inner, hidden),
    }  # fmt: skip
    return {name: {"A": taken, "B": given} for name, (taken, given) in pairs.items()}


def read_safetensors(files: list[Path]) -> Iterator[tuple[str, Floats]]:
    """All tensors by name, as fp32.

    Raises:
        ArtifactError: a file is missing or damaged, or holds numbers that are no floats.
    """
    for path in files:
        try:
            tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} holds no readable safetensors: {error}") from error
        for name, tensor in tensors:
            yield name, _floats(bytes(tensor["data"]), str(tensor["dtype"]), tuple(tensor["shape"]), path)


def permuted(weights: Floats, heads: int) -> Floats:
    """Rows of q or k, (heads * head_dim, …), as llama.cpp turns them: halves of a head become neighbours."""
    pairs = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weights.shape))


def _rotated(name: str, weights: Floats, shape: Shape) -> Floats:
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.rpartition(".")[2])
    return weights if heads is None else permuted(weights, heads)


def _floats(data: bytes, dtype: str, shape: tuple[int, ...], path: Path) -> Floats:
    readers: dict[str, Callable[[], Floats]] = {
        "F32": lambda: np.frombuffer(data, np.float32),
        "F16": lambda: np.frombuffer(data, np.float16).astype(np.float32),
        "BF16": lambda: (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32),
    }
    if dtype not in readers:
        raise ArtifactError(f"{path} holds {dtype} numbers; F32, F16 and BF16 are converted")
    return readers[dtype]().reshape(shape)


# --- the base --------------------------------------------------------------------------------------------


def _write_config(writer: gguf.GGUFWriter, config: dict[str, Any], kind: gguf.LlamaFileType) -> None:
    shape = shape_of(config)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // shape.heads)
    rope = config.get("rope_parameters") or {}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(kind)
    writer.add_block_count(shape.layers)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(int(config["vocab_size"]))


def _base_weights(folder: Path, shape: Shape, tied: bool) -> Iterator[tuple[str, Floats]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no safetensors")
    missing = {f"blk.{i}.{part}" for i in range(shape.layers) for part in (*LINEAR.values(), *NORMS.values())}
    missing |= {"token_embd", "output_norm"} | (set() if tied else {"output"})
    for key, weights in read_safetensors(files):
        name = _base_name(key.removesuffix(".weight"))
        if name == "output" and tied:
            continue
        if name is None or name not in missing:
            raise ArtifactError(f"{folder}: {key} is no weight of a plain Llama of {shape.layers} layers")
        missing.remove(name)
        yield name, weights
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(sorted(missing)[:3])} of {len(missing)} missing weights")


def _base_name(key: str) -> str | None:
    if key in WHOLE:
        return WHOLE[key]
    layer, _, part = key.removeprefix("model.layers.").partition(".")
    found = {**LINEAR, **NORMS}.get(part)
    return f"blk.{layer}.{found}" if found and layer.isdecimal() else None


def _configured_eos(config: dict[str, Any]) -> frozenset[int]:
    found = config.get("eos_token_id")
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], eos_ids: frozenset[int]) -> None:
    """Token texts for llama.cpp's grammars and its own reports; see the module's words on Latin-1."""
    texts, kinds = vocabulary(folder, int(config["vocab_size"]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ Ġ"])  # llama.cpp wants some; it never encodes here
    if not 1 <= len(eos_ids) <= len(EOS_KEYS):
        raise ArtifactError(f"{folder} has {len(eos_ids)} end tokens; GGUF holds 1 to {len(EOS_KEYS)}")
    for key, token in zip(EOS_KEYS, sorted(eos_ids), strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}", token)
    writer.add_add_bos_token(False)


# --- adapters --------------------------------------------------------------------------------------------


def _factors(adapter: Path, base_config: dict[str, Any]) -> dict[str, tuple[Floats, Floats]]:
    """The factors A and B of each adapted layer by its name in GGUF; the scaling is multiplied into B, no row is moved.

    Raises:
        ArtifactError: as of `convert_adapter`.
    """
    shape, sizes, config = shape_of(base_config), linear_sizes(base_config), _lora_config(adapter)
    found: dict[str, dict[str, Floats]] = {}
    for key, weights in sorted(read_safetensors([adapter / "adapter_model.safetensors"]), key=lambda pair: pair[0]):
        name, side = _adapted(key, adapter)
        layer, _, part = name.removeprefix("blk.").partition(".")
        fits = int(layer) < shape.layers and weights.ndim == 2
        if not fits or sizes[part][side] != weights.shape[side == "A"]:
            raise ArtifactError(f"{adapter}: {key} {weights.shape} does not fit this base model; wrong base?")
        found.setdefault(name, {})[side] = weights if side == "A" else weights * _scaling(config, rank=weights.shape[1])
    if halves := [name for name, sides in found.items() if len(sides) != 2]:
        raise ArtifactError(f"{adapter}: {halves[0]} has one LoRA factor and not two; the file is damaged")
    return {name: (sides["A"], sides["B"]) for name, sides in found.items()}


def _lora_config(adapter: Path) -> dict[str, Any]:
    config = read_lora_config(adapter)
    refused = [option for option in ("alpha_pattern", "layer_replication", "lora_bias") if config.get(option)]
    if refused:
        raise ArtifactError(
            f"{adapter}: {refused} of a LoRA adapter are not converted. Set DUNNOCK_ENGINE=transformers."
        )
    return config


def _adapted(key: str, adapter: Path) -> tuple[str, str]:
    """A key of PEFT's -> the module's name in GGUF, and the factor: A or B."""
    module, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
    side = factor.removesuffix(".weight")
    name = _base_name(module)
    if side not in ("A", "B") or name is None or name.rpartition(".")[2] not in LINEAR.values():
        raise ArtifactError(
            f"{adapter}: {key} is not a LoRA factor of one of {', '.join(LINEAR)}; llama.cpp would serve the adapter"
            " without it. Set DUNNOCK_ENGINE=transformers, or train only these modules."
        )
    return name, side


def _scaling(config: dict[str, Any], rank: int) -> np.float32:
    """What PEFT multiplies B·A with: alpha / r, or alpha / √r. Source: Kalajdzievski 2023, arXiv:2312.03732."""
    alpha = float(config["lora_alpha"])
    return np.float32(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _partial(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def _finish(writer: gguf.GGUFWriter, partial: Path, target: Path) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
