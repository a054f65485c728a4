"""The load generator's connection reads what real servers send."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bench.annotation.http import Answer, Connection, Refused
from tests.bench.loops import run as run_loop


def asked(
    answers: list[bytes], calls: Callable[[Connection], Awaitable[list[Answer]]], **options: bool
) -> tuple[list[Answer], list[bytes]]:
    """The answers to `calls` by a server that sends `answers` in turn, and the requests' heads; one without a length ends the connection."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while len(heads) < len(answers):
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
                await reader.readexactly(int(lengths[0].split()[1]) if lengths else 0)
                heads.append(head)
                sent = answers[len(heads) - 1]
                writer.write(sent)
                await writer.drain()
                if b"ontent-Length" not in sent and b"chunked" not in sent:
                    break
        except asyncio.IncompleteReadError:
            pass  # the client closed
        writer.close()

    async def run() -> list[Answer]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            connection = Connection(server.sockets[0].getsockname()[1], {"X-Who": "ana"}, **options)
            try:
                return await calls(connection)
            finally:
                connection.close()

    return run_loop(run()), heads


@pytest.mark.parametrize(
    "sent",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"ok": 1}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"ok\r\n5;x=y\r\n": 1}\r\n0\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"ok": 1}',
    ],
    ids=["length", "chunked", "to the end"],
)
def test_bodies(sent: bytes) -> None:
    async def calls(connection: Connection) -> list[Answer]:
        return [await connection.get("/a"), await connection.post("/b", {"x": 1})]

    answers, heads = asked([sent, sent], calls)
    assert [answer.json() for answer in answers] == [{"ok": 1}] * 2
    assert heads[0].startswith(b"GET /a HTTP/1.1\r\n")
    assert b"X-Who: ana\r\n" in heads[1]


def test_cookies_are_sent_back() -> None:
    signed_in = b"HTTP/1.1 302 Found\r\nSet-Cookie: session=abc=; Path=/\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"

    async def calls(connection: Connection) -> list[Answer]:
        return [await connection.post_form("/auth", {"email": "a b"}), await connection.get("/x")]

    answers, heads = asked([signed_in, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], calls)
    assert (answers[0].status, answers[0].fields["location"]) == (302, "/x")
    assert b"Cookie: session=abc=\r\n" in heads[1]
    assert b"Cookie" not in heads[0]


def test_an_error_is_refused_and_names_its_kind_of_path() -> None:
    sent = b'HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"no":1}'

    async def calls(connection: Connection) -> list[Answer]:
        return [await connection.get("/api/tasks/17/annotations?x=1")]

    with pytest.raises(Refused, match=r'^GET /api/tasks/…/annotations: 409 \{"no":1\}$'):
        asked([sent], calls)


def test_a_server_that_hangs_up_is_refused() -> None:
    async def calls(connection: Connection) -> list[Answer]:
        return [await connection.get("/a")]

    with pytest.raises(Refused, match="^GET /a: IncompleteReadError$"):
        asked([b"HTTP/1.1"], calls)


def test_no_connection_is_kept_where_the_server_keeps_none() -> None:
    async def calls(connection: Connection) -> list[Answer]:
        return [await connection.get("/a")]

    _, heads = asked([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], calls, keep=False)
    assert b"Connection: close\r\n" in heads[0]
