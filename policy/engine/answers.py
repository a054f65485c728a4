"""What an engine answers to one request, whole or as server-sent events."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import DunnockError
from policy.engine.generation import Finish, Generation, Likelihood, Piece, Spoken
from policy.protocol import ChatRequest
from policy.shapes import TokenLogprob

LOOK_FOR_CLIENT_S = 1.0


@dataclass(frozen=True)
class Answering:
    """One request that is being answered.

    Attributes:
        gone: whether whoever asked has left.
    """

    request: ChatRequest
    generation: Generation
    base: Spoken
    gone: Callable[[], bool]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self) -> dict[str, Any]:
        """The answer when it is whole; token ids, where they are asked for, stand where vLLM puts them."""
        text, end = self._read()
        request, prompt_ids = self.request, self.generation.prompt_ids
        told = self._told(end.token_ids, end.likelihoods) if request.logprobs else None
        if request.prompt_logprobs:
            text, told = request.messages[0].content + text, [*self._of_prompt(end), *(told or [])]
        choice: dict[str, Any] = {"index": 0, **request.shape.choice(text, end.reason, told)}
        answer: dict[str, Any] = {**self._head(request.shape.whole), "choices": [choice], "usage": _usage(end)}
        if request.return_token_ids:
            choice["token_ids"], answer["prompt_token_ids"] = list(end.token_ids), prompt_ids
        return answer

    def lines(self, *, usage: bool) -> "Lines":
        """The answer as it comes."""
        return Lines(self._events(usage), self.generation)

    def _read(self) -> tuple[str, Finish]:
        text = ""
        while not isinstance(event := self.generation.next(LOOK_FOR_CLIENT_S), Finish):
            text += event.text if event else ""
            if event is None and self.gone():
                self.generation.cancel()
        return text, event

    def _events(self, usage: bool) -> Iterator[bytes]:
        shape, at = self.request.shape, 0
        head = self._head(shape.chunk)

        def chunk(choice: dict[str, Any]) -> bytes:
            return _line({**head, "choices": [{"index": 0, **choice}]})

        if opening := shape.opening():
            yield chunk(opening)
        try:
            while not isinstance(event := self.generation.next(LOOK_FOR_CLIENT_S), Finish):
                if event is None and self.gone():
                    return
                if event:
                    yield chunk(shape.piece(event.text, self._of(event), at))
                    at += len(event.text)
        except DunnockError as error:
            yield _line(error_body(error))
            return
        yield chunk(shape.piece("", None, at, event.reason))
        if usage:
            yield _line({**head, "choices": [], "usage": _usage(event)})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _of(self, piece: Piece) -> list[TokenLogprob] | None:
        return self._told(piece.token_ids, piece.likelihoods) if piece.likelihoods else None

    def _told(self, ids: Sequence[int], likelihoods: Sequence[Likelihood]) -> list[TokenLogprob]:
        said = self.base.tokenizer.decode
        return [
            TokenLogprob(said([i]), each.logprob, tuple((said([j]), value) for j, value in each.top))
            for i, each in zip(ids, likelihoods, strict=True)
        ]

    def _of_prompt(self, end: Finish) -> list[TokenLogprob]:
        first, *others = self.generation.prompt_ids
        return [TokenLogprob(self.base.tokenizer.decode([first]), None), *self._told(others, end.prompt)]


class Lines(Iterator[bytes]):
    """Server-sent events. `close()`, which the server calls in any case, frees the row."""

    def __init__(self, lines: Iterator[bytes], generation: Generation) -> None:
        self._lines, self._generation = lines, generation

    def __next__(self) -> bytes:
        return next(self._lines)

    def close(self) -> None:
        self._generation.cancel()


def error_body(error: DunnockError) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _usage(end: Finish) -> dict[str, float]:
    """Tokens as OpenAI counts them, and seconds that were computed for them, which is ours."""
    return {
        "compute_seconds": round(end.compute_s, 6),
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
