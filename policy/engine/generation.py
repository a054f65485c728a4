"""One request on its way through an engine: how it wants its tokens, and what its caller holds meanwhile.

No torch here: every engine speaks these.
"""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from core.errors import DunnockError
from policy.engine.text import TextStream

FinishReason = Literal["stop", "length", "cancelled"]


class Likelihood(NamedTuple):
    """How likely a token was.

    Attributes:
        logprob: log p in nats.
        top: ids of the likeliest tokens in its place with theirs, likeliest first, where they were asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How one request wants its tokens; the meanings are those of the OpenAI chat API.

    Attributes:
        temperature: 0 is greedy.
        seed: equal seeds give equal texts; None draws one.
        logprobs: whether each token's log-probability is wanted.
        top_logprobs: how many of the likeliest tokens are wanted with it.
        prompt_logprobs: whether that of each token of the prompt is wanted; then `max_tokens` may be 0.
        json_schema: what the text must conform to.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    json_schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Finish:
    """The end of a completion; counts are in tokens.

    Attributes:
        token_ids: all tokens that were chosen, an end of text among them.
        likelihoods: of each of them, where the request asked for that.
        prompt: of each token of the prompt but the first, likewise.
        compute_s: its share of the time that the engine computed.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = field(default=(), compare=False)
    likelihoods: tuple[Likelihood, ...] = field(default=(), compare=False)
    prompt: tuple[Likelihood, ...] = field(default=(), compare=False)
    compute_s: float = field(default=0.0, compare=False)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Of each token, in nats, where the request asked for that."""
        return tuple(each.logprob for each in self.likelihoods)


@dataclass(frozen=True)
class Piece:
    """Text that is sure, with the tokens that made it since the piece before.

    Attributes:
        likelihoods: of each of the tokens, where the request asked for that; an end of text may come without text.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    likelihoods: tuple[Likelihood, ...] = ()


class Generation:
    """What a caller holds of one request: an iterator of pieces that ends with a `Finish`.

    Args:
        max_tokens: length cap, already within the context.
        pieces: whether each token's text is wanted at once; otherwise the text comes whole at the end.
    """

    def __init__(self, prompt_ids: list[int], max_tokens: int, *, pieces: bool) -> None:
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.pieces = pieces
        self.cancelled = False
        self.over = False
        self._events: queue.SimpleQueue[Piece | Finish | DunnockError] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Nobody reads any more: the row leaves the batch at the next step."""
        self.cancelled = True

    def put(self, event: Piece | Finish | DunnockError) -> None:
        """Called by the decode thread."""
        self.over = self.over or not isinstance(event, Piece)
        self._events.put(event)

    def next(self, timeout_s: float | None = None) -> Piece | Finish | None:
        """The next piece or the end; None after `timeout_s` seconds without one.

        Raises:
            DunnockError: what went wrong with this request in the decode thread.
        """
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, DunnockError):
            raise event
        return event

    def __iter__(self) -> Iterator[Piece | Finish]:
        while not isinstance(event := self.next(), Finish):
            assert event is not None  # no timeout was given
            yield event
        yield event


class Writing:
    """A completion in the making: takes tokens and gives its caller text, and the end.

    Attributes:
        prompt: how likely the tokens of the prompt are, but the first; whoever reads it adds to it, where that is wanted.
        compute_s: its share so far of the time that the engine computed; whoever computes adds to it.
    """

    def __init__(self, generation: Generation, text: TextStream) -> None:
        self.generation = generation
        self.text = text
        self.token_ids: list[int] = []
        self.likelihoods: list[Likelihood] = []
        self.prompt: list[Likelihood] = []
        self.compute_s = 0.0
        self._whole: list[str] = []
        self._told = 0  # tokens that went out with pieces

    def take(
        self, token: int, likelihood: Likelihood | None, eos_ids: frozenset[int], *, last: bool = False
    ) -> bool:  # fmt: skip
        """Take the chosen token; returns whether the completion ends with it.

        Args:
            last: nothing may come after it.
        """
        self.token_ids.append(token)
        if likelihood is not None:
            self.likelihoods.append(likelihood)
        if token in eos_ids:
            return self.end("stop")
        self._emit(self.text.push(token))
        if self.text.stopped or last:
            return self.end("stop")
        if len(self.token_ids) >= self.generation.max_tokens:
            return self.end("length")
        return False

    def end(self, reason: FinishReason) -> bool:
        """Send the rest of the text and the end."""
        self._emit(self.text.finish(), last=True)
        if self._whole:
            self.generation.put(Piece("".join(self._whole)))
        reason = "stop" if self.text.stopped else reason
        prompt_tokens, made = len(self.generation.prompt_ids), tuple(self.token_ids)
        told = tuple(self.likelihoods), tuple(self.prompt)
        self.generation.put(Finish(reason, prompt_tokens, len(made), made, *told, self.compute_s))
        return True

    def fail(self, error: DunnockError) -> bool:
        """End with an error."""
        self.generation.put(error)
        return True

    def _emit(self, text: str, *, last: bool = False) -> None:
        if not self.generation.pieces:
            self._whole += [text] if text else []
        elif text or (last and self._told < len(self.likelihoods)):
            at, self._told = self._told, len(self.token_ids)
            self.generation.put(Piece(text, tuple(self.token_ids[at:]), tuple(self.likelihoods[at:])))


class Spoken(Protocol):
    """What the protocol's side of an engine must know of the base model."""

    tokenizer: Any

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and completion together."""

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn."""

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued, with those that the tokenizer begins every text with."""


class Engine(Protocol):
    """What decodes for many callers at once; all methods may be called from any thread. Errors as of `Decoder`."""

    @property
    def base(self) -> Spoken:
        """The base model."""

    def submit(self, model: str, prompt_ids: list[int], sampling: Sampling, *, pieces: bool = True) -> Generation:
        """Ask for a completion."""

    def load(self, name: str, path: Path) -> None:
        """Load an adapter while others stream; the same name and path again changes nothing."""

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter, let the open ones end, then forget it."""

    def adapters(self) -> dict[str, Path | None]:
        """Names that take requests, with their folders; the base has none."""

    def open_requests(self) -> int:
        """Requests that run or wait."""

    def healthy(self) -> bool:
        """Whether it decodes."""
