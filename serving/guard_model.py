"""Asking the guard's model (`reward.guard_server`, a process of its own on loopback) what a text breaks, with a deadline.

    model = GuardModel("http://127.0.0.1:8093", timeout_s=1.0)
    await model.use(Held(folder, sha256))                     loads it there; the one before answers until then
    await model.judge(context, text, {"slug": "Do not …"})    {"slug": Word(0.02, 0.91, False)}

Whatever goes wrong, the process gone, too slow, too busy, is `Unanswered`, and says which of the two it was.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import aiohttp

CONNECT_S = 1.0
LOAD_S = 20.0
MOST_RULES = 128
"""That its process takes in one item."""


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
    """A guard's model: its folder and the hash that was recorded of it."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Word:
    """P(broken) of a rule, the threshold that it has, and whether that is reached."""

    broken: float
    threshold: float
    hit: bool


class GuardModel:
    """The client. One per app; each event loop that uses it gets connections of its own.

    Attributes:
        held: the model that is asked; None before one was loaded, and when its process has lost it.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.held: Held | None = None
        self._name = ""
        self._common = 1.0
        self._thresholds: dict[str, float] = {}
        self._timeout_s = timeout_s
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def use(self, held: Held) -> None:
        """Have the process load a model and ask that one from now on; the one before is let go.

        Raises:
            Unanswered: it did not load it.
        """
        said = await self._post("/load", {"path": held.path, "sha256": held.sha256}, LOAD_S)
        before = self._name
        try:
            self._thresholds = {name: float(value) for name, value in said["thresholds"].items()}
            self._name, self._common = str(said["model"]), float(said["threshold"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unanswered("not_scanned", f"its answer cannot be read: {error!r}") from error
        self.held = held
        if before and before != self._name:
            with suppress(Unanswered):
                await self._post("/unload", {"model": before}, LOAD_S)

    async def judge(self, context: str, text: str, rules: Mapping[str, str], start: int = 0) -> dict[str, Word]:
        """A word on each rule, by name, for what was written so far.

        Args:
            context: the end of the conversation.
            rules: their words, by name.
            start: the first character that was not asked about before; the model is shown all from there on.

        Raises:
            Unanswered: it cannot be asked, or did not answer in time.
        """
        if self.held is None:
            raise Unanswered("not_scanned", "no model is loaded")
        asked = [{"name": name, "text": words} for name, words in rules.items()]
        parts = [asked[i : i + MOST_RULES] for i in range(0, len(asked), MOST_RULES)]
        items = [{"context": context, "text": text, "start": start, "rules": part} for part in parts]
        body = {"model": self._name, "deadline_ms": 1000 * self._timeout_s, "items": items}
        said = await self._post("/v1/score", body, self._timeout_s)
        try:
            broken = {name: float(p) for item in said["items"] for name, p in item["broken"].items()}
            hits = {name for item in said["items"] for name in item["hits"]}
            words = {name: Word(broken[name], self._thresholds.get(name, self._common), name in hits) for name in rules}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unanswered("not_scanned", f"its answer cannot be read: {error!r}") from error
        if not all(math.isfinite(word.broken) for word in words.values()):
            raise Unanswered("not_scanned", "a probability is no number")
        return words

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if session := self._sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
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
            late = response.status == 503 and "guard_late" in said
            raise Unanswered("timed_out" if late else "not_scanned", f"it answered {response.status}: {said[:200]}")
        try:
            return json.loads(said)
        except ValueError as error:
            raise Unanswered("not_scanned", f"its answer cannot be read: {error!r}") from error

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            connector = aiohttp.TCPConnector(limit=0)
            self._sessions[loop] = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)
        return self._sessions[loop]
