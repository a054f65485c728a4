"""Calls at a steady rate, whether or not earlier ones were answered; or many streams at once. In: a URL. Out: latencies, in seconds."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

BODY = {"model": "base", "messages": [{"role": "user", "content": "What sings there?"}], "max_tokens": 64}


@dataclass
class Found:
    """What callers saw.

    Attributes:
        latencies_s: of calls that were answered whole, from when each was due.
        first_s: to the first piece of text, where replies are streamed.
        errors: answers other than 200, and connections that broke.
    """

    latencies_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def quantile_ms(self, q: float) -> float:
        """Of the latencies."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


async def steady(url: str, key: str, rate: float, seconds: float, **more: Any) -> Found:
    """`rate` whole calls a second for so long; a call that waits for a connection is late by that."""
    found = Found()
    async with connected(key) as session:
        await _whole(session, url, Found(), time.perf_counter(), more)  # a connection, and what is made at first use
        began = time.perf_counter()
        calls = []
        for n in range(int(rate * seconds)):
            due = began + n / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.append(asyncio.create_task(_whole(session, url, found, due, more)))
        await asyncio.gather(*calls)
    return found


async def streams(url: str, key: str, n: int, **more: Any) -> Found:
    """`n` streams at once, each read to its end."""
    found = Found()
    async with connected(key) as session:
        await asyncio.gather(*(_streamed(session, url, found, more) for _ in range(n)))
    return found


async def left(url: str, key: str, n: int, at_once: int, seed: int, **more: Any) -> list[str]:
    """`n` streams whose callers leave at random moments: before the answer, after some lines, or not at all. Errors, if any."""
    draw, errors = random.Random(seed), list[str]()
    room = asyncio.Semaphore(at_once)

    async def read(session: aiohttp.ClientSession, lines: int) -> None:
        try:
            async with session.post(f"{url}/chat/completions", json={**BODY, "stream": True, **more}) as response:
                if response.status != 200:
                    errors.append(f"{response.status} {(await response.text())[:200]}")
                async for _ in response.content:
                    lines -= 1
                    if lines < 0:
                        response.close()
                        return
        except (aiohttp.ClientError, TimeoutError) as error:
            errors.append(repr(error))

    async def one(session: aiohttp.ClientSession) -> None:
        async with room:
            reading = asyncio.create_task(read(session, draw.choice((0, 1, 2, 5, 20, 1000))))
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 0.3)
                reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async with connected(key) as session:
        await asyncio.gather(*(one(session) for _ in range(n)))
    return errors


def connected(key: str) -> aiohttp.ClientSession:
    """Connections without limit, that show a key."""
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
    )


async def _whole(session: aiohttp.ClientSession, url: str, found: Found, due: float, more: dict[str, Any]) -> None:
    try:
        async with session.post(f"{url}/chat/completions", json={**BODY, **more}) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        found.errors.append(repr(error))
        return
    if response.status != 200:
        found.errors.append(f"{response.status} {text[:200]}")
        return
    found.latencies_s.append(time.perf_counter() - due)
    found.texts.append(json.loads(text)["choices"][0]["message"]["content"])


async def _streamed(session: aiohttp.ClientSession, url: str, found: Found, more: dict[str, Any]) -> None:
    began = time.perf_counter()
    first, text = None, ""
    try:
        async with session.post(f"{url}/chat/completions", json={**BODY, "stream": True, **more}) as response:
            if response.status != 200:
                found.errors.append(f"{response.status} {(await response.text())[:200]}")
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    found.errors.append(json.dumps(chunk["error"]))
                    return
                said = (chunk["choices"] or [{"delta": {}}])[0]["delta"].get("content")
                if said and first is None:
                    first = time.perf_counter() - began
                text += said or ""
    except (aiohttp.ClientError, TimeoutError) as error:
        found.errors.append(repr(error))
        return
    found.latencies_s.append(time.perf_counter() - began)
    found.first_s.append(first or 0.0)
    found.texts.append(text)
