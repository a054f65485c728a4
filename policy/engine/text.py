"""From conversations to tokens, and from tokens to text while it streams: no broken characters, and nothing of a stop string gets out."""

import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from core.errors import InvalidInput

UNFINISHED = "\ufffd"


class ChatEncoder:
    """The chat template of a tokenizer; may be called from many threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._encoding = threading.Lock()  # tokenizers may refuse to be borrowed by two threads

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        Raises:
            InvalidInput: the model's chat template refuses this order of roles.
        """
        with self._encoding:
            try:
                encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            except TemplateError as error:
                raise InvalidInput(f"the chat template refuses these messages: {error}", param="messages") from error
        return list(encoded["input_ids"])

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued, with those that the tokenizer begins every text with."""
        with self._encoding:
            return list(self._tokenizer(text)["input_ids"])


class TextStream:
    """Decodes one completion token by token.

    The pieces joined are what decoding all tokens at once gives, up to the first stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [s for s in stop if s]
        self._ids: list[int] = []
        self._start = 0  # first token of the window that is decoded again
        self._read = 0  # tokens whose text is out
        self._before = ""  # text of the window up to `_read`
        self._held = ""  # decoded, but it may begin a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; returns the text that is now sure, perhaps none."""
        self._ids.append(token)
        window = self._decode(self._ids[self._start :])
        if window.endswith(UNFINISHED) or len(window) <= len(self._before):
            return ""
        fresh = window[len(self._before) :]
        self._start, self._read = self._read, len(self._ids)
        self._before = self._decode(self._ids[self._start : self._read])
        return self._release(fresh)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        fresh = self._decode(self._ids[self._start :])[len(self._before) :]
        text = self._release(fresh) + self._held
        self._held = ""
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _release(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
