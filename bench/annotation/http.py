"""A keep-alive HTTP/1.1 connection that costs the load generator little: it shares two cores with what it measures."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

CALL_S = 120.0
"""A call without an answer for so long has failed."""


class Refused(Exception):
    """A call was answered with an error, or not at all."""


@dataclass
class Answer:
    """What came back."""

    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Connection:
    """One annotator's connection to a server on this machine, with the cookies it was given."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    keep: bool = True
    """Whether the server keeps connections; one that closes them without a word loses the next call otherwise."""
    _reader: asyncio.StreamReader | None = field(default=None, init=False)
    _writer: asyncio.StreamWriter | None = field(default=None, init=False)

    async def get(self, path: str) -> Answer:
        """A GET."""
        return await self.call("GET", path, b"", "")

    async def post(self, path: str, body: Any, limit_s: float = CALL_S) -> Answer:
        """A POST of JSON."""
        return await self.call("POST", path, json.dumps(body).encode(), "application/json", limit_s)

    async def post_form(self, path: str, form: dict[str, str]) -> Answer:
        """A POST of a form."""
        return await self.call("POST", path, urlencode(form).encode(), "application/x-www-form-urlencoded")

    async def call(self, method: str, path: str, body: bytes, kind: str, limit_s: float = CALL_S) -> Answer:
        """Ask and read the answer; a redirect is an answer and is not followed.

        Raises:
            Refused: a status of 400 or more, an end of the connection, or no answer within `limit_s`.
        """
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._exchange(self._head(method, path, len(body), kind) + body)
        except TimeoutError:
            self.close()
            raise Refused(f"{method} {_shape(path)}: no answer within {limit_s:.0f} s") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise Refused(f"{method} {_shape(path)}: {type(error).__name__}") from error
        if answer.status >= 400:
            told = answer.body[:200].decode(errors="replace") if "json" in answer.fields.get("content-type", "") else ""
            raise Refused(f"{method} {_shape(path)}: {answer.status} {told}".strip())
        return answer

    def close(self) -> None:
        """Let the connection go; the next call opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    def _head(self, method: str, path: str, length: int, kind: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if not self.keep:
            lines.append("Connection: close")
        if self.cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        if kind:
            lines += [f"Content-Type: {kind}", f"Content-Length: {length}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _exchange(self, sent: bytes) -> Answer:
        if self._writer is None or self._writer.is_closing() or (self._reader is not None and self._reader.at_eof()):
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        reader = self._reader
        assert reader is not None
        self._writer.write(sent)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields: dict[str, str] = {}
        for line in head[1:]:
            name, _, value = line.partition(": ")
            if name.lower() == "set-cookie":
                cookie, _, content = value.partition(";")[0].partition("=")
                self.cookies[cookie] = content
            elif name:
                fields[name.lower()] = value
        body = await _read_body(reader, fields)
        if not self.keep or fields.get("connection", "").lower() == "close" or head[0].startswith("HTTP/1.0"):
            self.close()
        return Answer(int(head[0].split(" ", 2)[1]), fields, body)


async def _read_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return await reader.read()  # it lasts until the server closes
    parts = []
    while length := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(length + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _shape(path: str) -> str:
    """A path with its numbers and tokens left out, so that failures of one kind count as one."""
    parts = path.partition("?")[0].split("/")
    return "/".join("…" if part.isdigit() or len(part) > 20 else part for part in parts)
