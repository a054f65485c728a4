"""The client of an engine for an event loop: what `policy.client` is to threads. `/v1` holds a thousand streams open with it.

    client = AsyncEngineClient("http://127.0.0.1:8091/v1")
    stream = await client.stream(request)
    async for event in stream: ...

One per process is enough; each event loop that uses it gets connections of its own.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from core.errors import EngineError, NotFound
from policy.client import CONNECT_TIMEOUT_S, HEALTH_TIMEOUT_S, is_loopback
from policy.protocol import ChatReply, ChatRequest, StreamEvent, read_event, read_reply, refusal, unreachable
from policy.shapes import CHAT, Shape

KEPT_S = 30.0
"""How long an idle connection is kept: less than engines wait before they close it, so that few are lost."""
NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""No connection came about, so nothing was sent."""
LINE_BYTES = 4 * 1024 * 1024
"""The longest line of a stream."""


class AsyncEngineClient:
    """Talks to an engine; arguments as of `policy.client.EngineClient`."""

    def __init__(self, base_url: str, api_key: str = "", timeout_s: float = 120.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._root = self.base_url.removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s
        )
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if session := self._sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    async def complete(self, request: ChatRequest, headers: Mapping[str, str] | None = None) -> ChatReply:
        """Ask for a whole completion. Errors as of `EngineClient.complete`.

        Args:
            headers: more of them, e.g. those of a trace.
        """
        start = time.monotonic()
        answer = await self._call(f"{self.base_url}{request.shape.path}", request.wire(), headers)
        return read_reply(answer, time.monotonic() - start, request)

    async def stream(self, request: ChatRequest, headers: Mapping[str, str] | None = None) -> "AsyncCompletionStream":
        """Ask for a streamed completion. Arguments and errors as of `complete`; these are raised before the first event."""
        body = {**request.wire(), "stream": True, "stream_options": {"include_usage": True}}
        try:
            response = await self._send(f"{self.base_url}{request.shape.path}", body, headers)
            if response.status != 200:
                raise refusal(response.status, await response.text(errors="replace"))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(self.base_url, error, reached=not isinstance(error, NOT_REACHED)) from error
        return AsyncCompletionStream(response, self.base_url, request.shape)

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Prompt tokens of a request by the engine's own template; None where it cannot say."""
        body = request.tokenize_wire()
        try:
            return int((await self._call(f"{self._root}/tokenize", body))["count"])
        except (NotFound, KeyError, TypeError):
            return None

    async def healthy(self) -> bool:
        """Whether the engine says that it is well."""
        timeout = aiohttp.ClientTimeout(total=HEALTH_TIMEOUT_S)
        try:
            async with self._session().get(f"{self._root}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _call(self, url: str, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        try:
            async with await self._send(url, body, headers) as response:
                text = await response.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unreachable(self.base_url, error, reached=not isinstance(error, NOT_REACHED)) from error
        if response.status != 200:
            raise refusal(response.status, text)
        try:
            return json.loads(text)
        except ValueError as error:
            raise EngineError(f"the engine at {self.base_url} answered in no JSON ({error})") from error

    async def _send(self, url: str, body: dict[str, Any], headers: Mapping[str, str] | None) -> aiohttp.ClientResponse:
        """Send a request, and once more when a kept connection was lost before an answer.

        Only to an engine on loopback: another may have begun with the completion, and it would be paid for twice.
        """
        session = self._session()
        try:
            return await session.post(url, json=body, headers=headers)
        except aiohttp.ServerDisconnectedError:
            if not is_loopback(url):
                raise
            return await session.post(url, json=body, headers=headers)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = aiohttp.ClientSession(
                headers=self._headers,
                timeout=self._timeout,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
                read_bufsize=LINE_BYTES,
                trust_env=False,  # an engine on loopback is never behind the machine's proxy
            )
        return self._sessions[loop]


class AsyncCompletionStream(AsyncIterator[StreamEvent]):
    """The events of one streamed completion; closing it ends the request at the engine."""

    def __init__(self, response: aiohttp.ClientResponse, base_url: str, shape: Shape = CHAT) -> None:
        self._response = response
        self._shape = shape
        self._base_url = base_url
        self._ended = False

    async def __anext__(self) -> StreamEvent:
        try:
            while line := await self._response.content.readline():
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self._ended = True
                    break
                event = read_event(json.loads(payload), self._shape)
                self._ended = self._ended or event.finish_reason is not None
                return event
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError, ValueError) as error:
            self.close()
            raise unreachable(self._base_url, error) from error
        self._response.release()
        if not self._ended:  # without chunks or a length, a connection that was lost looks like an end
            raise EngineError(f"the stream of the engine at {self._base_url} broke off")
        raise StopAsyncIteration

    def close(self) -> None:
        """End the request; safe to call twice. The connection goes with it: what the engine still sends is for nobody."""
        self._response.close()

    async def __aenter__(self) -> "AsyncCompletionStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
