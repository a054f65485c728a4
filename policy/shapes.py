"""The two shapes of OpenAI's answers, a chat's and a text's: as engines and `/v1` write them, and as clients read them.

    CHAT.choice("Hello", "stop", None)     {"message": {"role": "assistant", "content": "Hello", ...}, ...}
    TEXT.choice("Hello", "stop", None)     {"text": "Hello", ...}

What stands around the choices (ids, usage, the guard's word) is their writers' own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class TokenLogprob(NamedTuple):
    """A token of a text with the log of its probability.

    Attributes:
        logprob: in nats; None for the first token of a prompt, before which there is nothing.
        top: the likeliest in its place with theirs, likeliest first, where they were asked for.
    """

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


Told = Sequence[TokenLogprob]


class Shape(Protocol):
    """How texts are wrapped.

    Attributes:
        path: below `/v1`.
        whole: `object` of a whole answer.
        chunk: `object` of each part of a stream.
    """

    path: str
    whole: str
    chunk: str

    def choice(self, text: str, reason: str | None, told: Told | None) -> dict[str, Any]:
        """Of a whole answer; `told` None where no log-probabilities were asked for."""

    def opening(self) -> dict[str, Any] | None:
        """What a stream says of a choice before its text; None: nothing."""

    def piece(self, text: str, told: Told | None, at: int = 0, reason: str | None = None) -> dict[str, Any]:
        """Of a stream; at the end with the reason and without text.

        Args:
            at: characters of the choice that came before.
        """

    def read(self, choice: Any, *, whole: bool = False) -> tuple[str, list[TokenLogprob] | None]:
        """Text and tokens of a choice, whole or a piece; errors are those of what is not there or of another kind."""


class _Chat:
    path, whole, chunk = "/chat/completions", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, reason: str | None, told: Told | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "finish_reason": reason, "logprobs": None if told is None else self._told(told)}

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def piece(self, text: str, told: Told | None, at: int = 0, reason: str | None = None) -> dict[str, Any]:
        delta = {} if reason is not None and not text else {"content": text}
        logprobs = {} if told is None else {"logprobs": self._told(told)}
        return {"delta": delta, "finish_reason": reason, **logprobs}

    def read(self, choice: Any, *, whole: bool = False) -> tuple[str, list[TokenLogprob] | None]:
        holder = choice["message"] if whole else choice.get("delta") or {}
        logprobs = choice.get("logprobs")
        told = None if not logprobs else [self._read(token) for token in logprobs.get("content") or []]
        return _text(holder.get("content")), told

    def _told(self, told: Told) -> dict[str, Any]:
        return {
            "content": [{**_word(t.text, t.logprob), "top_logprobs": [_word(*each) for each in t.top]} for t in told]
        }

    def _read(self, token: Any) -> TokenLogprob:
        top = tuple((str(each["token"]), float(each["logprob"])) for each in token.get("top_logprobs") or [])
        return TokenLogprob(str(token["token"]), float(token["logprob"]), top)


class _Text:
    path, whole, chunk = "/completions", "text_completion", "text_completion"

    def choice(self, text: str, reason: str | None, told: Told | None) -> dict[str, Any]:
        return {"text": text, "finish_reason": reason, "logprobs": None if told is None else self._told(told, 0)}

    def opening(self) -> dict[str, Any] | None:
        return None

    def piece(self, text: str, told: Told | None, at: int = 0, reason: str | None = None) -> dict[str, Any]:
        return {"text": text, "finish_reason": reason, "logprobs": None if told is None else self._told(told, at)}

    def read(self, choice: Any, *, whole: bool = False) -> tuple[str, list[TokenLogprob] | None]:
        written, logprobs = choice["text"] if whole else choice.get("text"), choice.get("logprobs")
        if not logprobs:
            return _text(written), None
        tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
        tops = logprobs.get("top_logprobs") or [None] * len(tokens)
        told = [
            TokenLogprob(str(token), None if value is None else float(value), _likeliest_first(top))
            for token, value, top in zip(tokens, values, tops, strict=True)
        ]
        return _text(written), told

    def _told(self, told: Told, at: int) -> dict[str, Any]:
        offsets, tops = [], []
        for token in told:
            offsets.append(at)
            at += len(token.text)
            # as at OpenAI the token itself is among the likeliest, also where it is none of them
            own = {} if token.logprob is None else {token.text: token.logprob}
            tops.append({**own, **dict(reversed(token.top))} if token.top else None)
        return {
            "tokens": [t.text for t in told], "token_logprobs": [t.logprob for t in told],
            "top_logprobs": tops if any(tops) else None, "text_offset": offsets,
        }  # fmt: skip


CHAT: Shape = _Chat()
TEXT: Shape = _Text()


def _word(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace"))}


def _likeliest_first(top: Any) -> tuple[tuple[str, float], ...]:
    found = [(str(token), float(value)) for token, value in (top or {}).items()]
    return tuple(sorted(found, key=lambda each: -each[1]))


def _text(content: Any) -> str:
    """A text, or the texts of parts; of what is neither there is a TypeError."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError(f"a text was expected, and not {type(content).__name__}")
    return content or ""
