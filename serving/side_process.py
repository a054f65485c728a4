"""Asking a process of a model beside the web process, on loopback, with a deadline: the guard's, and the one that scores.

Whatever goes wrong, the process gone, too slow, too busy, is `Unanswered`, and says which of the two it was.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import aiohttp

CONNECT_S = 1.0
LOAD_S = 20.0
LATE = "_late"
"""How the code of an error ends that says that a deadline had passed."""


class Unanswered(Exception):
    """No word on the text.

    Attributes:
        outcome: as a verdict has it.
    """

    def __init__(self, outcome: Literal["not_scanned", "timed_out"], why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


@dataclass(frozen=True)
class Held:
    """A model in an artifact folder, and the hash that was recorded of it."""

    path: str
    sha256: str


class SideProcess:
    """A client. One per app; each event loop that uses it gets connections of its own.

    Attributes:
        held: the model that is asked; None before one was loaded, and when the process has lost it.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.held: Held | None = None
        self.timeout_s = timeout_s
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if session := self._sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    async def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """What it answers to a body of JSON.

        Raises:
            Unanswered: it does not, or not with 200.
        """
        try:
            async with asyncio.timeout(timeout_s), self._session().post(f"{self.url}{path}", json=body) as response:
                said = await response.text(errors="replace")
        except TimeoutError as error:
            raise Unanswered("timed_out", f"no answer within {timeout_s} s") from error
        except aiohttp.ClientError as error:
            raise Unanswered("not_scanned", repr(error)) from error
        if response.status == 404:  # it was started anew and holds nothing
            self.held = None
        if response.status != 200:
            late = response.status == 503 and LATE in said
            raise Unanswered("timed_out" if late else "not_scanned", f"it answered {response.status}: {said[:200]}")
        try:
            return json.loads(said)
        except ValueError as error:
            raise unreadable(error) from error

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            connector = aiohttp.TCPConnector(limit=0)
            self._sessions[loop] = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)
        return self._sessions[loop]


def unreadable(error: Exception) -> Unanswered:
    """An answer of another shape."""
    return Unanswered("not_scanned", f"its answer cannot be read: {error!r}")
