"""The base model in memory: weights, tokenizer and what the decoder must know of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import SettingsError
from policy.engine.text import ChatEncoder

DEFAULT_CONTEXT_TOKENS = 2048


@dataclass
class LoadedBase:
    """A causal language model and its tokenizer.

    Attributes:
        context_tokens: most tokens of prompt and completion together.
        eos_ids: tokens that end a completion.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    context_tokens: int
    eos_ids: frozenset[int]

    def __post_init__(self) -> None:
        self._encoder = ChatEncoder(self.tokenizer)

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn; errors as of `ChatEncoder.encode`."""
        return self._encoder.encode(messages)

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued; as of `ChatEncoder.encode_raw`."""
        return self._encoder.encode_raw(text)


def load_base(path: Path | str, device: Literal["auto", "cpu", "cuda"] = "auto") -> LoadedBase:
    """Load a local folder or hub id: bf16 on CUDA, fp32 on a CPU (bf16 is ten times slower on most of them).

    Raises:
        SettingsError: the model has layers without full attention, which the slot cache cannot hold.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = torch.bfloat16 if name == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    model.to(name).eval().requires_grad_(False)
    return as_base(model, AutoTokenizer.from_pretrained(path))


def as_base(model: Any, tokenizer: Any) -> LoadedBase:
    """A model that is in memory already, for decoding.

    Raises:
        SettingsError: as of `load_base`.
    """
    _require_full_attention(model.config, model.config.name_or_path)
    context = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT_TOKENS
    return LoadedBase(model, tokenizer, model.device, context, _eos_ids(model, tokenizer))


def _require_full_attention(config: Any, path: Path | str) -> None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if not hasattr(config, "layer_types") else None
    if kinds != {"full_attention"} or window:
        raise SettingsError(
            f"{path} has layers of kinds {sorted(kinds)} (sliding window: {window}); the embedded engine takes full "
            "attention only. Serve this model with vLLM and name it in DUNNOCK_ENGINE_URL."
        )


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
