"""The words that engines are spoken to in: requests, replies and refusals of the OpenAI API, for whichever client sends them.

No IO here: `policy.client` sends from threads, `policy.async_client` from an event loop, and the engines read the same requests.
"""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.errors import ArtifactError, DunnockError, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import Message
from policy.shapes import CHAT, TEXT, Shape, TokenLogprob

REASON_CHARS = 20
OPTIONAL = ("logprobs", "top_logprobs", "return_token_ids", "response_format")


class ChatRequest(BaseModel):
    """One request for a completion, in the words of the OpenAI chat API.

    Attributes:
        max_tokens: 0 only where nothing but the tokens of the prompt is asked for.
        raw: the one turn is a text that is continued as it stands, without a chat template (OpenAI's `/v1/completions`).
        top_logprobs: so many of the likeliest in the place of each token are told with it.
        prompt_logprobs: the tokens of a raw prompt are told too.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(256, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    return_token_ids: bool = False  # vLLM's name for it
    response_format: dict[str, Any] | None = None  # for engines that keep to a grammar
    raw: bool = False
    prompt_logprobs: bool = False

    @model_validator(mode="after")
    def _means_something(self) -> "ChatRequest":
        if self.raw and len(self.messages) != 1:
            raise ValueError("a raw prompt is one text")
        if self.prompt_logprobs and not (self.raw and self.logprobs):
            raise ValueError("the tokens of a prompt are told with those of a raw prompt's completion")
        if not self.max_tokens and not self.prompt_logprobs:
            raise ValueError("max_tokens is 1 or more")
        return self

    @property
    def shape(self) -> Shape:
        """Of the answers to it."""
        return TEXT if self.raw else CHAT

    def wire(self) -> dict[str, Any]:
        """The body of the call; what is not asked for is not named, since not every engine knows it."""
        left_out = {name for name in OPTIONAL if not getattr(self, name)}
        body = self.model_dump(mode="json", exclude=left_out | {"raw", "prompt_logprobs"})
        if not self.raw:
            return body
        for name in ("messages", "logprobs", "top_logprobs"):
            body.pop(name, None)
        told = {"logprobs": self.top_logprobs} if self.logprobs else {}
        echo = {"echo": True} if self.prompt_logprobs else {}
        return {**body, "prompt": self.messages[0].content, **told, **echo}

    def tokenize_wire(self) -> dict[str, Any]:
        """The body of a call that counts the tokens of its prompt."""
        if self.raw:
            return {"prompt": self.messages[0].content}
        return {"messages": [m.model_dump() for m in self.messages], "add_generation_prompt": True}


@dataclass(frozen=True)
class ChatReply:
    """A whole completion; `latency_s` is wall-clock time from request to last byte.

    Attributes:
        prompt_token_ids: as the engine encoded the prompt; None where it was not asked or does not say.
        token_ids: the tokens of the completion, as far as the engine tells them.
        tokens: their texts, where log-probabilities were asked for.
        logprobs: nats of each of them.
        tops: the likeliest in the place of each, likeliest first, as far as they were asked for.
        prompt: the tokens of the prompt, where they were asked for.
        compute_s: seconds that the engine computed for it, where it tells them.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    tokens: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    tops: tuple[tuple[tuple[str, float], ...], ...] | None = None
    prompt: tuple[TokenLogprob, ...] | None = None
    compute_s: float | None = None

    def told(self) -> tuple[TokenLogprob, ...] | None:
        """The tokens of the completion; None where they were not asked for."""
        if self.tokens is None or self.logprobs is None:
            return None
        return tuple(map(TokenLogprob, self.tokens, self.logprobs, self.tops or ((),) * len(self.tokens)))


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a streamed completion; finish reason and counts come near the end.

    Attributes:
        tokens: those that made the text, where they were asked for.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: tuple[TokenLogprob, ...] = ()
    compute_s: float | None = None

    def after(self, earlier: "StreamEvent") -> "StreamEvent":
        """What is known of the end once this has followed on what was known before; without text."""
        return StreamEvent(
            finish_reason=self.finish_reason or earlier.finish_reason,
            prompt_tokens=earlier.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            completion_tokens=earlier.completion_tokens if self.completion_tokens is None else self.completion_tokens,
            compute_s=earlier.compute_s if self.compute_s is None else self.compute_s,
        )


class Untouched(EngineError):
    """The engine surely did nothing with the call: it was not reached, or refused it at once because it is full."""


class Events(Protocol):
    """Events of a completion, as an engine sends them or as a guard lets them through."""

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...

    def close(self) -> None:
        """End the completion; safe to call twice."""


def read_reply(answer: Any, latency_s: float, request: ChatRequest | None = None) -> ChatReply:
    """A whole answer.

    Args:
        request: that it answers; a chat without prompt log-probabilities where it is not given.

    Raises:
        EngineError: it is not a completion.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        text, told = (request.shape if request else CHAT).read(choice, whole=True)
        prompt_tokens, prompt = int(usage["prompt_tokens"]), None
        if request is not None and request.prompt_logprobs:
            text = text.removeprefix(request.messages[0].content)
            prompt, told = tuple((told or [])[:prompt_tokens]), (told or [])[prompt_tokens:]
        return ChatReply(
            text=text,
            finish_reason=_reason(choice["finish_reason"]) or "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=int(usage["completion_tokens"]),
            latency_s=latency_s,
            prompt_token_ids=_tuple(answer.get("prompt_token_ids")),
            token_ids=_tuple(choice.get("token_ids")),
            tokens=None if told is None else tuple(token.text for token in told),
            logprobs=None if told is None else tuple(_known(token.logprob) for token in told),
            tops=tuple(token.top for token in told) if told and any(token.top for token in told) else None,
            prompt=prompt,
            compute_s=_seconds(usage.get("compute_seconds")),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's answer is not a completion: {error!r}") from error


def read_event(chunk: Any, shape: Shape = CHAT) -> StreamEvent:
    """An event of a stream.

    Raises:
        EngineError: the engine failed in mid-stream, or this is no event of a completion.
    """
    try:
        if failed := chunk.get("error"):
            said = failed.get("message", failed) if isinstance(failed, dict) else failed
            raise EngineError(f"the engine failed in mid-stream: {said}")
        choice = (chunk.get("choices") or [{}])[0]
        usage = chunk.get("usage") or {}
        text, told = shape.read(choice)
        return StreamEvent(
            text=text,
            finish_reason=_reason(choice.get("finish_reason")),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            tokens=tuple(told or ()),
            compute_s=_seconds(usage.get("compute_seconds")),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's stream is none of a completion: {error!r}") from error


def _known(logprob: float | None) -> float:
    if logprob is None:
        raise TypeError("a log-probability was expected, and there is none")
    return logprob


def _seconds(told: Any) -> float | None:
    """Seconds; None of what are none, since this is no word of the protocol."""
    known = isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told < math.inf
    return float(told) if known else None


def _reason(reason: Any) -> str | None:
    """Why a completion ended, no longer than it is stored."""
    return None if reason is None else str(reason)[:REASON_CHARS]


def _tuple(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)


def unreachable(url: str, error: Exception, *, reached: bool = True) -> EngineError:
    """What a connection that failed means; `reached`: it had come about."""
    kind = EngineError if reached else Untouched
    return kind(f"the engine at {url} cannot be reached ({type(error).__name__}: {error}); is it running?")


def refusal(status: int, text: str) -> DunnockError:
    """The error that a refusing answer means, whoever wrote it."""
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    error = error if isinstance(error, dict) else {"message": str(error)}
    message = str(error.get("message") or text[:200])
    code = error.get("code")
    if code == "context_length_exceeded" or "maximum context length" in message:
        return PromptTooLong(message, param="messages")
    if code == ArtifactError.code:
        return ArtifactError(message)
    if status == 404:
        return NotFound(message, code="model_not_found", param="model")
    if status in (400, 409, 422):
        return InvalidInput(message, param=error.get("param"))
    # Our engines say 503 of a completion that failed half-way too, by another code.
    full = status in (429, 503) and code in (None, "engine_overloaded", status, str(status))
    kind = Untouched if full else EngineError
    return kind(f"the engine answered {status}: {message}")
