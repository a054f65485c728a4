"""Message types shared by pages, engine and trainers: a conversation is a list of role and content."""

import hashlib
import json
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant"]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    content: str


def user(content: str) -> list[dict[str, str]]:
    """A conversation of one user turn, as plain dicts."""
    return [{"role": "user", "content": content}]


def conversation_hash(messages: list[dict[str, str]]) -> str:
    """sha256 (hex) of a conversation; equal conversations are one prompt."""
    payload = [[m["role"], m["content"]] for m in messages]
    return hashlib.sha256(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def strip_bidi(text: object) -> str:
    """The text without the signs that turn the direction of what comes after: for titles and for sentences with a name in
    them, where no element of its own holds them in."""
    return _TURNING.sub("", str(text))


def plain_text(text: str) -> str:
    """Text as it is stored: newlines as in Unix, no NUL (PostgreSQL refuses it), no half surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode()


def whole_signs(text: str) -> str:
    """A text that can be sent: halves of a sign that came apart are one again, and a half alone is the sign for "unreadable"."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
