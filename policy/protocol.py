"""The words that engines are spoken to in: requests, replies and refusals of the OpenAI chat API, for whichever client sends them.

No IO here: `policy.client` sends from threads, `policy.async_client` from an event loop, and the engines read the same requests.
"""

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from core.errors import ArtifactError, DunnockError, EngineError, InvalidInput, NotFound, PromptTooLong
from core.messages import Message

REASON_CHARS = 20


class ChatRequest(BaseModel):
    """One request for a completion, in the words of the OpenAI chat API."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logprobs: bool = False
    return_token_ids: bool = False  # vLLM's name for it
    response_format: dict[str, Any] | None = None  # for engines that keep to a grammar

    def wire(self) -> dict[str, Any]:
        """The body of the call; what is not asked for is not named, since not every engine knows it."""
        left_out = {name for name in ("logprobs", "return_token_ids", "response_format") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=left_out)


@dataclass(frozen=True)
class ChatReply:
    """A whole completion; `latency_s` is wall-clock time from request to last byte.

    Attributes:
        prompt_token_ids: as the engine encoded the prompt; None where it was not asked or does not say.
        token_ids: the tokens of the completion, as far as the engine tells them.
        tokens: their texts, where log-probabilities were asked for.
        logprobs: nats of each of them.
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
    compute_s: float | None = None


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a streamed completion; finish reason and counts come near the end.

    Attributes:
        tokens: those that made the text, each with its log-probability in nats, where these were asked for.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: tuple[tuple[str, float], ...] = ()
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


def read_reply(answer: Any, latency_s: float) -> ChatReply:
    """A whole answer.

    Raises:
        EngineError: it is not a chat completion.
    """
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        logprobs = _content(choice) if choice.get("logprobs") else None
        return ChatReply(
            text=_text(choice["message"].get("content")),
            finish_reason=_reason(choice["finish_reason"]) or "stop",
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            latency_s=latency_s,
            prompt_token_ids=_tuple(answer.get("prompt_token_ids")),
            token_ids=_tuple(choice.get("token_ids")),
            tokens=None if logprobs is None else tuple(str(token["token"]) for token in logprobs),
            logprobs=None if logprobs is None else tuple(float(token["logprob"]) for token in logprobs),
            compute_s=_seconds(usage.get("compute_seconds")),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's answer is not a chat completion: {error!r}") from error


def read_event(chunk: Any) -> StreamEvent:
    """An event of a stream.

    Raises:
        EngineError: the engine failed in mid-stream, or this is no event of a chat completion.
    """
    try:
        if failed := chunk.get("error"):
            said = failed.get("message", failed) if isinstance(failed, dict) else failed
            raise EngineError(f"the engine failed in mid-stream: {said}")
        choice = (chunk.get("choices") or [{}])[0]
        usage = chunk.get("usage") or {}
        return StreamEvent(
            text=_text((choice.get("delta") or {}).get("content")),
            finish_reason=_reason(choice.get("finish_reason")),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            tokens=tuple((str(token["token"]), float(token["logprob"])) for token in _content(choice)),
            compute_s=_seconds(usage.get("compute_seconds")),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's stream is none of a chat completion: {error!r}") from error


def _content(choice: Any) -> list[Any]:
    """The tokens of a choice, or of a piece of one, that are told with their log-probabilities."""
    return (choice.get("logprobs") or {}).get("content") or []


def _text(content: Any) -> str:
    """A text, or the texts of parts; of what is neither there is a TypeError."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError(f"a text was expected, and not {type(content).__name__}")
    return content or ""


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
