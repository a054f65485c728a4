"""Several engines as one: the least busy that is well answers, and what a burst has too much goes to another pool.

    engines = Engines(settings, loader)
    reply = await engines.complete(version, request)
    events = await engines.stream(version, request)

The local pool is the engine that always was and `DUNNOCK_ENGINES__REPLICAS`; where all of it holds as many calls as it may,
`DUNNOCK_ENGINES__OVERFLOW` is asked. An engine that failed some times in a row is left alone for a while, then tried with one
call. A call goes on to the next engine only where the one before surely did nothing with it: no connection came about, or it
refused at once because it is full. What broke off later is an error, for it may have been paid for.

An engine that does not know the version is given it, and asked once more.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from core.errors import EngineError, NotFound
from core.language import gettext
from core.settings import EnginesSettings, Settings
from policy.async_client import AsyncEngineClient
from policy.client import EngineClient
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest, Events, StreamEvent, Untouched
from serving.metrics import ENGINE_FAILURES, LEFT_ALONE, OUTSTANDING
from serving.routing import make_ready
from serving.telemetry import UNTRACED, Part, Trace

log = logging.getLogger("dunnock.serving")

Made = TypeVar("Made")


@dataclass
class Replica:
    """One engine.

    Attributes:
        name: in figures, which do not tell where it is: "local-0", "overflow-1".
        outstanding: calls that it holds.
        failures: in a row.
        closed_until: by the monotonic clock, when it may be tried again; 0 while it is well.
        trying: one call is trying it.
        share_s: how long a call would have had it since it was made, had its time always been split among the calls it held.
    """

    name: str
    client: AsyncEngineClient
    loader: EngineClient
    outstanding: int = 0
    failures: int = 0
    closed_until: float = 0.0
    trying: bool = False
    share_s: float = 0.0
    _looked_s: float = 0.0

    def shared_s(self) -> float:
        """`share_s` by now; what it grew by while a call was open is that call's part of the engine's time."""
        now = time.monotonic()
        if self.outstanding:
            self.share_s += (now - self._looked_s) / self.outstanding
        self._looked_s = now
        return self.share_s

    def begun(self) -> None:
        """It holds one more call."""
        self.shared_s()
        self.outstanding += 1
        OUTSTANDING.labels(self.name).inc()

    def ended(self) -> None:
        """It holds one less."""
        self.shared_s()
        self.outstanding -= 1
        OUTSTANDING.labels(self.name).dec()

    def failed(self, error: EngineError, of: EnginesSettings) -> None:
        """It failed once more; after some times in a row it is left alone."""
        ENGINE_FAILURES.labels(self.name).inc()
        self.trying = False
        self.failures += 1
        if self.failures >= of.failures:
            self.closed_until = time.monotonic() + of.rest_s
            LEFT_ALONE.labels(self.name).set(1)
            log.warning("%s is left alone for %s s: %s", self.client.base_url, of.rest_s, error.message)

    def may_be_asked(self) -> bool:
        """Whether it is well, or has rested and nobody tries it yet."""
        return not self.closed_until or (time.monotonic() >= self.closed_until and not self.trying)


class Engines:
    """The pools. One per app.

    Args:
        loader: the client of the first engine, which others use too.
    """

    def __init__(self, settings: Settings, loader: EngineClient) -> None:
        self._settings = settings
        local = [settings.engine_base_url, *settings.engines.replicas]
        self.local = [
            self._replica(f"local-{i}", url, loader if url == settings.engine_base_url else None)
            for i, url in enumerate(local)
        ]
        self.overflow = [self._replica(f"overflow-{i}", url, None) for i, url in enumerate(settings.engines.overflow)]

    def _replica(self, name: str, url: str, loader: EngineClient | None) -> Replica:
        of = self._settings
        theirs = loader or EngineClient(url, of.engine_api_key, of.engine_timeout_s)
        return Replica(name, AsyncEngineClient(url, of.engine_api_key, of.engine_timeout_s), theirs)

    async def complete(self, version: PolicyVersion, request: ChatRequest, trace: Trace = UNTRACED) -> ChatReply:
        """A whole completion. Errors as of `policy.client.EngineClient.complete`, and ArtifactError where the version cannot be loaded."""
        with trace.part("engine") as part:
            held, reply = await self._ask(version, lambda client: client.complete(request, part.headers()), part)
        held.replica.ended()
        held.replica.failures = 0
        return reply if reply.compute_s is not None else replace(reply, compute_s=held.share_s())

    async def stream(self, version: PolicyVersion, request: ChatRequest, trace: Trace = UNTRACED) -> "CountedEvents":
        """A streamed completion; the engine counts as busy with it until it is closed."""
        part = trace.begin("engine")
        try:
            held, events = await self._ask(version, lambda client: client.stream(request, part.headers()), part)
        except BaseException as error:
            part.end(error)
            raise
        return CountedEvents(events, held, part, self._settings.engines)

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Prompt tokens of a request; None where the first engine that answers cannot say."""
        *order, last = self._order()
        for replica in order:
            with suppress(EngineError):
                return await replica.client.count_tokens(request)
        return await last.client.count_tokens(request)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        for replica in (*self.local, *self.overflow):
            await replica.client.close()
        for replica in (*self.local[1:], *self.overflow):
            replica.loader.close()

    def _order(self) -> list[Replica]:
        """Whom to ask, first to last. Where nobody is well all are tried: that an error is certain helps nobody."""
        limit = self._settings.engines.most_outstanding
        well = [replica for replica in self.local if replica.may_be_asked()]
        free = [replica for replica in well if not limit or replica.outstanding < limit]
        spill = [replica for replica in self.overflow if replica.may_be_asked()]
        pools = [free, spill, [replica for replica in well if replica not in free]]
        found = [replica for pool in pools for replica in sorted(pool, key=lambda r: r.outstanding)]
        return found or [*self.local, *self.overflow]

    async def _ask(
        self, version: PolicyVersion, call: Callable[[AsyncEngineClient], Awaitable[Made]], part: Part
    ) -> tuple["Held", Made]:
        """What the first engine that can answer gives; its call counts as outstanding until the caller takes it off."""
        order = self._order()
        for replica in order:
            replica.begun()
            held = Held(replica, replica.share_s)
            replica.trying = bool(replica.closed_until)
            part.at(replica.client.base_url)
            try:
                made = await self._with_version(replica, version, call)
            except Untouched as error:
                replica.ended()
                replica.failed(error, self._settings.engines)
                if replica is order[-1]:
                    raise
                log.warning("%s; the next engine is asked", error.message)
            except EngineError as error:
                replica.ended()
                replica.failed(error, self._settings.engines)
                raise
            except BaseException:
                replica.ended()
                replica.trying = False
                raise
            else:
                if replica.closed_until:
                    LEFT_ALONE.labels(replica.name).set(0)
                replica.closed_until, replica.trying = 0.0, False
                return held, made
        raise AssertionError("there is always an engine")

    async def _with_version(
        self, replica: Replica, version: PolicyVersion, call: Callable[[AsyncEngineClient], Awaitable[Made]]
    ) -> Made:
        """Do `call`; if the engine does not know the version, as after its restart, load it and try once more."""
        try:
            return await call(replica.client)
        except NotFound:
            log.info("%s does not know %s; loading it", replica.client.base_url, version.name)
        await asyncio.to_thread(make_ready, replica.loader, version, self._settings)
        try:
            return await call(replica.client)
        except NotFound as error:
            raise EngineError(
                gettext(
                    "the engine does not know %(name)r after loading it; a vLLM server must be started with `--served-model-name base`",
                    name=version.name,
                )
            ) from error


@dataclass(frozen=True)
class Held:
    """A call that an engine holds; since when, by its `share_s`."""

    replica: Replica
    since_s: float

    def share_s(self) -> float:
        """Its part of the engine's time so far."""
        return self.replica.shared_s() - self.since_s


class CountedEvents:
    """A stream that its engine is busy with until it is closed. One that breaks off is a failure of its engine, one that comes to
    its end a success."""

    def __init__(self, events: Events, held: Held, part: Part, settings: EnginesSettings) -> None:
        self._events, self._held, self._replica, self._part = events, held, held.replica, part
        self._settings = settings
        self._closed = False
        self._share_s = 0.0

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        try:
            async for event in self._events:
                yield event
            self._replica.failures = 0
        except EngineError as error:
            if not self._closed:  # what broke off because we let go of it is nobody's failure
                self._part.end(error)
                self._replica.failed(error, self._settings)
            raise
        finally:
            self.close()

    def close(self) -> None:
        self._events.close()
        if not self._closed:
            self._share_s = self.share_s()
            self._closed = True
            self._part.end()
            self._replica.ended()

    def share_s(self) -> float:
        """Its part of the engine's time, in seconds, so far or until it was closed."""
        return self._share_s if self._closed else self._held.share_s()
