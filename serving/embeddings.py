"""Embeddings of questions, by the encoder in the guard's process (`reward.guard_server`): the web process loads no model.

Whatever goes wrong is None, and the question is then not looked up by its meaning.
"""

import asyncio
import json
import logging
import math
import struct
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import aiohttp

log = logging.getLogger("dunnock.serving")

CONNECT_S = 1.0


@dataclass(frozen=True)
class Embedded:
    """A text's direction.

    Attributes:
        vector: (H,) float16, of length 1.
        encoder: sha256 of the weights that it is by.
    """

    vector: bytes
    encoder: str


class Embedder:
    """The client. One per app; each event loop that uses it gets connections of its own."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def embed(self, words: str) -> Embedded | None:
        """The embedding of a text; None where there is no answer, or the text is too long to be told whole."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session().post(f"{self._url}/embed", json={"texts": [words]}) as response,
            ):
                said = json.loads(await response.text(errors="replace"))
            (vector,) = said["embeddings"]
            if vector is None:
                return None
            values = [float(value) for value in vector]
            if not math.isclose(math.hypot(*values), 1.0, rel_tol=0.01):
                log.warning("no embedding: that of the guard's process is not of length 1")
                return None
            return Embedded(struct.pack(f"<{len(values)}e", *values), str(said["encoder_sha256"]))
        except (TimeoutError, aiohttp.ClientError) as error:
            log.warning("no embedding: the guard's process does not answer (%r)", error)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
            log.warning("no embedding: the answer of the guard's process cannot be read (%r)", error)
        return None

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if session := self._sessions.pop(asyncio.get_running_loop(), None):
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            self._sessions[loop] = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        return self._sessions[loop]
