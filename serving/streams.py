"""Replies as server-sent events: each is stored, whole or cut, before its last byte is sent."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from core.errors import DunnockError, openai_error
from core.language import gettext, language, speaking
from policy.protocol import Events, StreamEvent
from serving.deferred import told
from serving.guard.verdicts import Verdict
from serving.guarding import Watch
from serving.metrics import OPEN, first_text, replied
from serving.recorder import Recorder
from serving.replies import CUT, Ended, Reply, guard_body, usage_body

log = logging.getLogger("dunnock.serving")

NOT_STORED = "the reply %s, %d characters, could not be stored"  # its text is nobody's business here


class ReplyStream(AsyncIterator[bytes]):
    """The server-sent events of a reply. Whoever sends them calls `aclose()` in any case, also when the client has gone.

    Args:
        events: what may be shown; `close` ends the completion at the engine.
        watch: what looks at the reply, for its verdicts.
        prompt: verdicts on the prompt.
    """

    def __init__(
        self,
        reply: Reply,
        events: Events,
        recorder: Recorder,
        *,
        watch: Watch | None = None,
        prompt: Sequence[Verdict] = (),
        include_usage: bool = False,
    ) -> None:
        self._reply = reply
        self._events = events
        self._recorder = recorder
        self._watch = watch
        self._prompt = tuple(prompt)
        self._include_usage = include_usage
        self._text: list[str] = []
        self._end = StreamEvent()
        self._closed = False
        self._language = language()
        self._storing: asyncio.Future[None] | None = None
        self._head = json.dumps(reply.head("chat.completion.chunk"), ensure_ascii=False)[:-1]
        self._lines = self._produce()
        OPEN.inc()

    async def __anext__(self) -> bytes:
        return await anext(self._lines)

    async def aclose(self) -> None:
        """End the request at the engine and store what came, as cancelled if it had not ended."""
        self._events.close()
        self._over()
        try:
            await self._store(self._end.finish_reason or "cancelled")
        except Exception:
            log.exception(NOT_STORED, self._reply.id, self._length)
        await self._lines.aclose()  # one that a slow reader left at a piece still waits for the next one

    def _over(self) -> None:
        if not self._closed:
            self._closed = True
            OPEN.dec()

    async def _produce(self) -> AsyncGenerator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""}, None)
        shown = False
        try:
            async for event in self._events:
                self._text.append(event.text)
                self._end = event.after(self._end)
                if event.text:
                    if not shown:
                        first_text(self._reply)
                    shown = True
                    yield self._chunk({"content": event.text}, None)
            await self._store(self._end.finish_reason or "stop")
        except DunnockError as error:
            log.error("the reply %s broke off: %s", self._reply.id, error.message)
            await self._store("error")
            with speaking(self._language):
                said = openai_error(told(error))
            yield _line(said[1])
            return
        except Exception:
            log.exception(NOT_STORED, self._reply.id, self._length)
            with speaking(self._language):
                said = openai_error(DunnockError(gettext("the reply could not be stored")))
            yield _line(said[1])
            return
        reason = self._end.finish_reason or "stop"
        yield self._chunk(
            {},
            reason,
            {
                "guard": guard_body(
                    self._verdicts(), cut=reason == CUT, stopped_by=self._watch.stopped_by if self._watch else None
                )
            },
        )
        if self._include_usage:
            yield _line({**self._reply.head("chat.completion.chunk"), "choices": [], "usage": usage_body(self._usage)})
        self._over()
        yield b"data: [DONE]\n\n"

    @property
    def _usage(self) -> tuple[int | None, int | None]:
        return self._end.prompt_tokens, self._end.completion_tokens

    def _verdicts(self) -> tuple[Verdict, ...]:
        return (*self._prompt, *(self._watch.verdicts() if self._watch is not None else ()))

    async def _store(self, finish_reason: str) -> None:
        """Store it the first time that this is called; wait until that is done, also where the one who began it has left."""
        if self._storing is None:
            withheld = self._watch.withheld if self._watch is not None else None
            text = "".join(self._text)
            ended = Ended(self._reply, text, finish_reason, self._usage, self._verdicts(), withheld)
            replied(ended)
            self._storing = asyncio.ensure_future(self._recorder.store([ended]))
        await asyncio.shield(self._storing)

    @property
    def _length(self) -> int:
        return sum(map(len, self._text))

    def _chunk(
        self, delta: dict[str, str], reason: str | None, more: Mapping[str, Any] = MappingProxyType({})
    ) -> bytes:
        choice = json.dumps([{"index": 0, "delta": delta, "finish_reason": reason, **more}], ensure_ascii=False)
        return f'data: {self._head}, "choices": {choice}}}\n\n'.encode()


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
