"""Replies as server-sent events: all replies to a request are stored, whole or cut, before the first of them ends."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from core.errors import DunnockError, openai_error
from core.language import gettext, language, speaking
from policy.protocol import ChatReply, Events, StreamEvent
from serving.deferred import told
from serving.energy import Metered
from serving.guard.verdicts import Verdict
from serving.guarding import Watch
from serving.metrics import OPEN, first_text, replied
from serving.recorder import Recorder
from serving.replies import CUT, Ended, Reply, guard_body, tokens_of, usage_body, usage_of
from serving.telemetry import NO_PART, Part

log = logging.getLogger("dunnock.serving")

UNMETERED = Metered()
NOT_STORED = "the reply %s, %d characters, could not be stored"  # its text is nobody's business here


@dataclass
class Streamed:
    """One of the replies to a request, on its way.

    Attributes:
        events: what may be shown; `close` ends the completion at the engine.
        watch: what looks at the reply, for its verdicts; None for what the guard itself says.
        meter: what it takes.
        guarding: what is told of the watch; it ends with it.
        prompt: verdicts on its prompt.
        end: what is known of its end so far.
    """

    reply: Reply
    events: Events
    watch: Watch | None = None
    meter: Metered = UNMETERED
    guarding: Part = NO_PART
    prompt: Sequence[Verdict] = ()
    text: list[str] = field(default_factory=list)
    told: int = 0
    end: StreamEvent = field(default_factory=StreamEvent)

    def take(self, event: StreamEvent) -> None:
        """What came."""
        if event.text and not any(self.text):
            first_text(self.reply)
        self.text.append(event.text)
        self.end = event.after(self.end)

    def piece(self, event: StreamEvent) -> dict[str, Any]:
        """What came, in the shape of its call."""
        request = self.reply.request
        told = request.shape.piece(
            event.text, event.tokens if request.logprobs else None, len(self.reply.echoed) + self.told
        )
        self.told += sum(len(token.text) for token in event.tokens)
        return told

    @property
    def usage(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens, as far as they are known."""
        return self.end.prompt_tokens, self.end.completion_tokens


class Said:
    """A text that is known, as the events of a completion."""

    def __init__(self, text: str, reason: str) -> None:
        self._event = StreamEvent(text, reason, 0, 0)

    @classmethod
    def of(cls, whole: ChatReply) -> "Said":
        """A completion that was made before its stream begins."""
        said = cls(whole.text, whole.finish_reason)
        counts = whole.prompt_tokens, whole.completion_tokens
        said._event = StreamEvent(whole.text, whole.finish_reason, *counts, compute_s=whole.compute_s)
        return said

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        yield self._event

    def close(self) -> None:
        """There is nothing to end."""

    def share_s(self) -> float:
        """No engine works for it."""
        return 0.0


class ReplyStream(AsyncIterator[bytes]):
    """The server-sent events of the replies to a request. Whoever sends them calls `aclose()` in any case, also when the client
    has gone.

    Args:
        choices: the replies, in the order of their indices.
        beside: what was drawn and is not given; it is stored and paid for with them.
    """

    def __init__(
        self,
        choices: Sequence[Streamed],
        recorder: Recorder,
        *,
        include_usage: bool = False,
        beside: Sequence[Ended] = (),
    ) -> None:
        self._choices = tuple(choices)
        self._recorder = recorder
        self._include_usage = include_usage
        self._beside = tuple(beside)
        self._shape = choices[0].reply.request.shape
        self._energy_j: float | None = None
        self._usage: tuple[int | None, int | None] = (None, None)
        self._closed = False
        self._language = language()
        self._storing: asyncio.Future[None] | None = None
        self._head = _head(choices[0].reply)
        self._lines = self._produce()
        OPEN.inc()

    async def __anext__(self) -> bytes:
        return await anext(self._lines)

    async def aclose(self) -> None:
        """End the requests at the engine and store what came, as cancelled where it had not ended."""
        for choice in self._choices:
            choice.events.close()
        self._over()
        try:
            await self._store("cancelled")
        except Exception:
            log.exception(NOT_STORED, self._choices[0].reply.id, self._length)
        await self._lines.aclose()  # one that a slow reader left at a piece still waits for the next one

    def _over(self) -> None:
        if not self._closed:
            self._closed = True
            OPEN.dec()

    async def _produce(self) -> AsyncGenerator[bytes]:
        for i, choice in enumerate(self._choices):
            if opening := self._shape.opening():
                yield self._chunk(i, opening)
            if choice.reply.echo:
                yield self._chunk(i, self._shape.piece(choice.reply.echoed, None))
        try:
            async for i, event in _merged([choice.events for choice in self._choices]):
                self._choices[i].take(event)
                if event.text or event.tokens:
                    yield self._chunk(i, self._choices[i].piece(event))
            await self._store("stop")
        except DunnockError as error:
            log.error("the reply %s broke off: %s", self._choices[0].reply.id, error.message)
            await self._store("error")
            yield self._failure(told(error))
            return
        except Exception:
            log.exception(NOT_STORED, self._choices[0].reply.id, self._length)
            yield self._failure(None)
            return
        if taken := self._choices[0].meter.told(self._energy_j):
            self._head = _head(self._choices[0].reply, energy=taken)
        for i, choice in enumerate(self._choices):
            reason = choice.end.finish_reason or "stop"
            cut_by = choice.watch.stopped_by if choice.watch else None
            guard = guard_body(self._verdicts(choice), cut=reason == CUT, stopped_by=cut_by)
            yield self._chunk(i, self._shape.piece("", None, reason=reason), {"guard": guard, **self._named(i)})
        if self._include_usage:
            head = self._choices[0].reply.head(self._shape.chunk)
            yield _line({**head, "choices": [], "usage": usage_body(self._usage)})
        self._over()
        yield b"data: [DONE]\n\n"

    def _verdicts(self, choice: Streamed) -> tuple[Verdict, ...]:
        return (*choice.prompt, *(choice.watch.verdicts() if choice.watch is not None else ()))

    async def _store(self, unended: str) -> None:
        """Store them the first time that this is called; wait until that is done, also where the one who began it has left.

        Args:
            unended: the finish reason of those that have none.
        """
        if self._storing is None:
            ended = [self._ended(choice, choice.end.finish_reason or unended) for choice in self._choices]
            taken = [each.energy_j for each in ended if each.energy_j is not None]
            self._energy_j = sum(taken) if taken else None
            prompt, written = usage_of(ended)
            self._usage = prompt, (written or 0) + tokens_of(self._beside)
            replied(ended)
            self._storing = asyncio.ensure_future(self._stored(ended))
        await asyncio.shield(self._storing)

    async def _stored(self, ended: Sequence[Ended]) -> None:
        with ended[0].reply.call.trace.part("store"):
            await self._recorder.store_all(ended, self._beside)

    def _ended(self, choice: Streamed, reason: str) -> Ended:
        choice.guarding.end()
        withheld = choice.watch.withheld if choice.watch is not None else None
        text, energy_j = "".join(choice.text), choice.meter.joules(choice.end.compute_s)
        return Ended(choice.reply, text, reason, choice.usage, self._verdicts(choice), withheld, energy_j=energy_j)

    @property
    def _length(self) -> int:
        return sum(len(text) for choice in self._choices for text in choice.text)

    def _failure(self, error: DunnockError | None) -> bytes:
        with speaking(self._language):
            return _line(openai_error(error or DunnockError(gettext("the reply could not be stored")))[1])

    def _named(self, i: int) -> dict[str, str]:
        """By what feedback names a reply, where the stream's id does not."""
        return {"completion_id": self._choices[i].reply.id} if len(self._choices) > 1 else {}

    def _chunk(self, i: int, piece: Mapping[str, Any], more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
        choice = json.dumps([{"index": i, **piece, **more}], ensure_ascii=False)
        return f'data: {self._head}, "choices": {choice}}}\n\n'.encode()


def _head(reply: Reply, **more: Any) -> str:
    """What every chunk begins with."""
    head = reply.head(reply.request.shape.chunk)
    return json.dumps({**head, "dunnock": {**head["dunnock"], **more}}, ensure_ascii=False)[:-1]


async def _merged(sources: Sequence[Events]) -> AsyncGenerator[tuple[int, StreamEvent]]:
    """The events of all sources as they come, each with its source's place; the first error ends all."""
    if len(sources) == 1:
        async for event in sources[0]:
            yield 0, event
        return
    readers = [aiter(source) for source in sources]
    coming = {asyncio.ensure_future(anext(reader)): i for i, reader in enumerate(readers)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                i = coming.pop(future)
                try:
                    event = future.result()
                except StopAsyncIteration:
                    continue
                coming[asyncio.ensure_future(anext(readers[i]))] = i
                yield i, event
    finally:
        for future in coming:
            future.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await future
        for source, reader in zip(sources, readers, strict=True):
            source.close()
            if close := getattr(reader, "aclose", None):
                await close()


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
