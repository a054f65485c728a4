"""Answers that are made on an event loop, under ASGI and WSGI alike.

A view of `/v1` says in its thread who asks and what for, as every view does, and returns a `Deferred`: an answer without a body, and
the coroutine that makes it. `Gateway` is the ASGI app of the web process: it runs views in threads, and what
they defer on its event loop, where an open stream costs a task and no thread. Under WSGI, as in `flask run`, the same
coroutine runs on a loop in a thread of its own, and the calling thread waits for it.

    Answer(status, headers, body)     what a coroutine gives; a body of pieces is sent as they come
"""

import asyncio
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from string import printable
from typing import Any, TypeVar, cast
from urllib.parse import quote_from_bytes

from a2wsgi import WSGIMiddleware
from a2wsgi.wsgi import build_environ
from flask import Flask, Response

from core.errors import DunnockError, EngineError, RateLimited, openai_error
from core.language import N_, gettext, language, speaking

log = logging.getLogger("dunnock.serving")

SLOT = "dunnock.deferred"
DEFERRED_PATHS = ("/v1/chat/completions", "/v1/moderations")
MOST_BODY = 4 * 1024 * 1024
"""As Flask's MAX_CONTENT_LENGTH; the view says so in its own words."""
LEFT = 499
"""The status, in what is told of a request, of a caller who left before there was an answer; nginx says the same."""
BODY_S = 60.0
"""How long a body may take to come. Until it is there it costs no thread."""
QUERY = printable.encode()
"""What of a query stays as it came."""
ENGINE = N_("The engine does not answer, is overloaded or failed. Try again in a while.")
INTERNAL = N_("Something failed on our side; nothing was changed. It has been logged.")

T = TypeVar("T")
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Answer:
    """What a coroutine answers; its headers come on top of those of the view."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media: str = "application/json"


class Deferred(Response):
    """What a view returns when the rest is done on an event loop. `make` must not need the request any more."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        super().__init__(mimetype="application/json")
        self._make, self._language = make, language()
        self.over: Callable[[int], None] = lambda status: None
        """Called with the status once all of it is over; 499: the caller left before there was an answer."""

    async def make(self) -> Answer:
        """The answer, in the language of its request; an error in OpenAI's shape."""
        try:
            with speaking(self._language):
                answer = await answered(self._make)
        except BaseException:
            self.over(LEFT)
            raise
        if isinstance(answer.body, bytes):
            self.over(answer.status)
            return answer
        return replace(answer, body=_Heard(answer.body, partial(self.over, answer.status)))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """As a WSGI response: hand over to the gateway where it asks, else run on the loop of `_loop`."""
        if (slot := environ.get(SLOT)) is not None:
            slot.append(self)
            return super().__call__(environ, start_response)
        answer = wait(self.make())
        plain = Response(status=answer.status, headers=self._with(answer))
        if isinstance(answer.body, bytes):
            plain.set_data(answer.body)
        else:
            plain.response = _Pieces(answer.body)
        return plain(environ, start_response)

    def _with(self, answer: Answer) -> list[tuple[str, str]]:
        own = {"Content-Type": answer.media, **answer.headers}
        given = {name.lower() for name in (*own, "Content-Length")}
        return [(name, value) for name, value in self.headers if name.lower() not in given] + list(own.items())


async def answered(make: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """What `make` gives, or the error that it raises in OpenAI's shape."""
    try:
        return await make()
    except DunnockError as error:
        if error.status >= 500:
            log.error("%s: %s", type(error).__name__, error.message)
        status, body = openai_error(told(error))
        headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, RateLimited) else {}
        return Answer(json.dumps(body).encode(), status, headers)
    except Exception:
        log.exception("unexpected error while a reply was made")
        _, body = openai_error(DunnockError(gettext(INTERNAL)))
        return Answer(json.dumps(body).encode(), 500)


def told(error: DunnockError) -> DunnockError:
    """An error as callers may know it: where the engine is, and its own words, which no check has seen, stay in the log."""
    of_engine = isinstance(error, EngineError) and error.code == EngineError.code
    return EngineError(gettext(ENGINE)) if of_engine else error


class _Heard(AsyncIterator[bytes]):
    """A body of pieces of which somebody hears when it has ended or is closed."""

    def __init__(self, pieces: AsyncIterator[bytes], over: Callable[[], None]) -> None:
        self._pieces, self._over = pieces, over

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self._over()
            raise

    async def aclose(self) -> None:
        try:
            await _close(self._pieces)
        finally:
            self._over()


class Gateway:
    """The ASGI app: what views defer on the loop, everything else in threads.

    Args:
        app: the Flask app.
        threads: of the views.
        closing: awaited when the process ends.
    """

    def __init__(self, app: Flask, threads: int, closing: Sequence[Callable[[], Awaitable[None]]] = ()) -> None:
        self.app = app
        self._wsgi = WSGIMiddleware(cast(Any, app), workers=threads)
        self._views = ThreadPoolExecutor(threads, thread_name_prefix="view")
        self._closing = list(closing)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the life of the process."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(_plain(scope), receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_S):
                body = await _read(receive)
        except TimeoutError:
            await _send_whole(send, 408, [("Connection", "close")], b"")
            return
        if body is None:
            return  # the client has gone; what it sent may be the half of what it meant
        if scope["method"] == "POST" and scope["path"] in DEFERRED_PATHS:
            await self._deferred(scope, body, receive, send)
        else:
            await self._wsgi(_sized(scope, body), _said(body, receive), send)  # type: ignore[arg-type]  # its own names for the same shapes

    async def _live(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        for close in self._closing:
            await close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _deferred(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        deferred, status, headers, said = await loop.run_in_executor(self._views, self._view, scope, body)
        if deferred is None:
            await _send_whole(send, status, headers, said)
            return
        gone = asyncio.ensure_future(_until_gone(receive))
        made = asyncio.ensure_future(deferred.make())
        try:
            await asyncio.wait({gone, made}, return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                made.cancel()
                with suppress(asyncio.CancelledError):
                    await made
                return
            answer = made.result()
            headers = deferred._with(answer)
            if isinstance(answer.body, bytes):
                await _send_whole(send, answer.status, headers, answer.body)
            else:
                await _send_pieces(send, answer.status, headers, answer.body, gone)
        finally:
            gone.cancel()
            if not made.done():
                made.cancel()

    def _view(self, scope: Message, body: bytes) -> tuple[Deferred | None, int, list[tuple[str, str]], bytes]:
        """Run the view in this thread: what it defers, or its status, headers and body."""
        environ: dict[str, Any] = dict(build_environ(scope, io.BytesIO(body)))  # type: ignore[arg-type]
        slot: list[Deferred] = []
        environ |= {SLOT: slot, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        told: list[Any] = []
        pieces = self.app(environ, cast(Any, lambda status, headers, *_: told.extend((status, headers))))
        try:
            said = b"".join(pieces)
        finally:
            if close := getattr(pieces, "close", None):
                close()
        return (slot[0] if slot else None), int(told[0].split()[0]), told[1], said


def _plain(scope: Message) -> Message:
    """A request without headers that WSGI could not tell from others ("X_Forwarded_For"), and with a query in ASCII."""
    headers = [(name, value) for name, value in scope["headers"] if b"_" not in name]
    return {**scope, "headers": headers, "query_string": quote_from_bytes(scope["query_string"], QUERY).encode()}


def _sized(scope: Message, body: bytes) -> Message:
    """A request whose body has the length that it says: Flask looks at that alone to refuse what is too large."""
    headers = [
        (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, *([(b"content-length", b"%d" % len(body))] if body else [])]}


def _said(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be received once more; then whatever comes."""
    left = [body]

    async def receive_again() -> Message:
        return {"type": "http.request", "body": left.pop()} if left else await receive()

    return receive_again


async def _read(receive: Receive) -> bytes | None:
    """The request's body, cut where it is longer than any view takes; None where the client left."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if size <= MOST_BODY:
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
        if not message.get("more_body"):
            return b"".join(pieces)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_whole(send: Send, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    sized = [*((n, v) for n, v in headers if n.lower() != "content-length"), ("Content-Length", str(len(body)))]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": _bytes(sized)})
        await send({"type": "http.response.body", "body": body})


async def _send_pieces(
    send: Send, status: int, headers: list[tuple[str, str]], pieces: AsyncIterator[bytes], gone: "asyncio.Future[None]"
) -> None:
    """Send what comes until it ends or the client has gone; the iterator is closed in any case."""

    async def pump() -> None:
        await send({"type": "http.response.start", "status": status, "headers": _bytes(headers)})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    sending = asyncio.ensure_future(pump())
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and (error := sending.exception()) is not None and not isinstance(error, OSError):
            raise error
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await sending
        await asyncio.shield(asyncio.ensure_future(_close(pieces)))


async def _close(pieces: AsyncIterator[bytes]) -> None:
    if close := getattr(pieces, "aclose", None):
        await close()


def _bytes(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


# Under WSGI -----------------------------------------------------------------------------------------------------------


class _Pieces(Iterator[bytes]):
    """An asynchronous body for a WSGI server, which calls `close()` in any case."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def __next__(self) -> bytes:
        async def following() -> bytes | None:
            return await anext(self._pieces, None)

        piece = wait(following())
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """End it: what it holds is let go."""
        wait(_close(self._pieces))


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop of callers that have none, and wait for it in this thread."""
    future: Future[T] = asyncio.run_coroutine_threadsafe(work, _loop())
    return future.result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop of this process for callers that have none."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="deferred", daemon=True).start()
    return loop
