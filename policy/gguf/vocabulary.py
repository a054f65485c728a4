"""The token texts that a GGUF file of ours holds.

Each token's bytes are read as Latin-1, so that a token that ends in the middle of a character is still text of its own and
llama.cpp tells of it at once. Encoding and decoding are done by the base's own tokenizer, outside.
"""

import json
from pathlib import Path

import gguf

from core.errors import ArtifactError


def vocabulary(folder: Path, size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Texts and kinds of `size` tokens; special ones get a name that llama.cpp knows nothing of.

    Raises:
        ArtifactError: the tokenizer is not a byte-level BPE.
    """
    try:
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        model, added = stored["model"], stored.get("added_tokens", [])
        if model["type"] != "BPE" or model.get("byte_fallback"):
            raise ValueError(f"a {model['type']} model")
        ids = {int(index): text for text, index in model["vocab"].items()}
        special = {int(token["id"]) for token in added if token.get("special")}
        plain = {int(token["id"]): str(token["content"]) for token in added if not token.get("special")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder}/tokenizer.json is no byte-level BPE, the kind that is converted: {error}"
        ) from error
    texts, kinds, seen = [], [], set[str]()
    for index in range(size):
        known = index in ids or index in plain
        text = f"<|{index}|>"
        if known and index not in special:
            raw = plain[index].encode() if index in plain else _token_bytes(ids[index])
            text = "".join(BYTE_SIGNS[b] for b in raw.decode("latin-1").encode())
        if text in seen:  # llama.cpp wants each text once
            text, known = f"<|{index}|>", False
        seen.add(text)
        texts.append(text)
        kinds.append(gguf.TokenType.NORMAL if known and index not in special else gguf.TokenType.CONTROL)
    return texts, kinds


def _byte_signs() -> list[str]:
    """The sign that byte-level BPE writes for each byte. Source: Radford et al. 2019, GPT-2's `bytes_to_unicode`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


BYTE_SIGNS = _byte_signs()
_BYTES = {sign: byte for byte, sign in enumerate(BYTE_SIGNS)}


def _token_bytes(text: str) -> bytes:
    return bytes(_BYTES[sign] for sign in text) if all(s in _BYTES for s in text) else text.encode()
