"""What adapters may be called, and which of them engines take at all. No torch here: every engine reads it."""

import json
import re
from pathlib import Path
from typing import Any, cast

from core.errors import ArtifactError, InvalidInput, NotFound

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
REFUSED_OPTIONS = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name an adapter."""
    if not NAME.fullmatch(name) or name == BASE:
        raise InvalidInput(f"adapter name {name!r}: 1 to 60 of A-Z a-z 0-9 . _ -, not {BASE!r}", param="lora_name")


def unknown_model(name: str) -> NotFound:
    """The error of a name that is neither the base nor a loaded adapter."""
    return NotFound(f"the model {name!r} does not exist", code="model_not_found", param="model")


def read_lora_config(path: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA adapter in PEFT's form.

    Raises:
        ArtifactError: the folder holds none, or one with more than engines serve.
    """
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        kind, bias = config.get("peft_type"), config.get("bias", "none")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} holds no readable PEFT adapter in safetensors: {error}") from error
    refused = [option for option in REFUSED_OPTIONS if config.get(option)]
    if kind != "LORA" or bias != "none" or refused:
        raise ArtifactError(f"{path}: only plain LoRA without bias is served; found {kind} {refused}")
    return cast(dict[str, Any], config)
