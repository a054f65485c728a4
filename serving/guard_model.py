"""Asking the guard's model (`reward.guard`, a process of its own on loopback) what a text breaks, with a deadline.

    model = GuardModel("http://127.0.0.1:8093", timeout_s=1.0)
    await model.use(name, folder, sha256)                     loads it there; the one before answers until then
    await model.p_broken(context, text, {"slug": "Do not …"}) -> {"slug": 0.02}

Whatever goes wrong, the process gone, too slow, too busy, is `Unanswered`, and says which of the two it was.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import aiohttp

log = logging.getLogger("dunnock.serving")

CONNECT_S = 1.0
LOAD_S = 60.0


class Unanswered(Exception):  # noqa: N818 (it is no error of the caller's)
    """No word on the text.

    Attributes:
        outcome: as a verdict has it.
    """

    def __init__(self, outcome: Literal["not_scanned", "timed_out"], why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


class GuardModel:
    """The client. One per app; each event loop that uses it gets connections of its own.

    Attributes:
        name: the model that is asked; None before one was loaded.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.name: str | None = None
        self._timeout_s = timeout_s
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def use(self, name: str, path: str, sha256: str) -> None:
        """Have the process load a model and ask that one from now on.

        Raises:
            Unanswered: it did not.
        """
        await self._post("/load", {"name": name, "path": path, "sha256": sha256}, LOAD_S)
        self.name = name

    async def p_broken(self, context: str, text: str, rules: Mapping[str, str]) -> dict[str, float]:
        """P(broken) of each rule, by name, for what was written so far.

        Args:
            context: the end of the conversation.
            rules: their words, by name.

        Raises:
            Unanswered: it cannot be asked, or did not answer in time.
        """
        if self.name is None:
            raise Unanswered("not_scanned", "no model is loaded")
        asked = [{"name": name, "text": words} for name, words in rules.items()]
        body = {"model": self.name, "items": [{"context": context, "text": text, "rules": asked}]}
        said = await self._post("/v1/score", body, self._timeout_s)
        try:
            found = {name: float(value) for name, value in said["items"][0].items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Unanswered("not_scanned", f"its answer cannot be read: {error!r}") from error
        if missing := set(rules) - set(found):
            raise Unanswered("not_scanned", f"it says nothing of {sorted(missing)}")
        return found

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if session := self._sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s), self._session().post(f"{self.url}{path}", json=body) as response:
                said = await response.text()
        except TimeoutError as error:
            raise Unanswered("timed_out", f"no answer within {timeout_s} s") from error
        except aiohttp.ClientError as error:
            raise Unanswered("not_scanned", repr(error)) from error
        if response.status != 200:
            raise Unanswered("not_scanned", f"it answered {response.status}: {said[:200]}")
        return json.loads(said)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            connector = aiohttp.TCPConnector(limit=0)
            self._sessions[loop] = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)
        return self._sessions[loop]
