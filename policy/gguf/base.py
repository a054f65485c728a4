"""The base model as llama.cpp holds it: a GGUF file made once per base and kept, and the base's own tokenizer beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from policy.base import base_sha256
from policy.engine.text import ChatEncoder
from policy.gguf.convert import BaseType, convert_base, read_config

FORM = 1  # of the files that `convert` writes; a new one makes them anew


@dataclass
class GgufBase:
    """A base model that llama.cpp can load, and what the decoder must know of it.

    Attributes:
        folder: where the base came from, with its `config.json`.
        file: the GGUF.
        context_tokens: most tokens of prompt and completion together.
        eos_ids: tokens that end a completion.
    """

    folder: Path
    file: Path
    tokenizer: Any
    context_tokens: int
    eos_ids: frozenset[int]

    def __post_init__(self) -> None:
        self._encoder = ChatEncoder(self.tokenizer)

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, the embedded engine's exactly; errors as of `ChatEncoder.encode`."""
        return self._encoder.encode(messages)


def load_gguf_base(
    folder: Path, cache_dir: Path, kind: BaseType, context_tokens: int, file: Path | None = None
) -> GgufBase:
    """Have the base as GGUF, converted unless it was before.

    Args:
        folder: configuration and tokenizer; and the weights, where there is no `file`.
        cache_dir: files are kept in its folder `gguf`, named by the weights' sha256.
        context_tokens: wanted; no more than the model was trained with are given.
        file: the GGUF itself, where it was made elsewhere; `kind` says nothing then.

    Raises:
        ArtifactError: the base cannot be converted, or `file` is not there.
    """
    from transformers import AutoTokenizer

    config = read_config(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos_ids = _eos_ids(folder, config, tokenizer)
    if file is None:
        file = cache_dir / "gguf" / f"{base_sha256(folder)[:16]}-{kind}-{FORM}.gguf"
        if not file.exists():
            convert_base(folder, file, kind, eos_ids)
    elif not file.is_file():
        raise ArtifactError(f"{file} is not there; DUNNOCK_GGUF__FILE names it")
    context = min(context_tokens, int(config["max_position_embeddings"]))
    return GgufBase(folder, file, tokenizer, context, eos_ids)


def merge_gguf(folder: Path, adapter: Path | None, file: Path, kind: BaseType) -> None:
    """Write a base with an adapter merged into it as one GGUF, which `load_gguf_base` takes as `file`.

    Raises:
        ArtifactError: the base cannot be converted, or the adapter is none of its.
    """
    from transformers import AutoTokenizer

    eos_ids = _eos_ids(folder, read_config(folder), AutoTokenizer.from_pretrained(folder))
    convert_base(folder, file, kind, eos_ids, adapter=adapter)


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """As transformers' `generate` ends: by generation_config.json, else config.json; and the tokenizer's."""
    path = folder / "generation_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else config
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    found = said.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)
