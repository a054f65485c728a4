"""Versions that change under open streams: every text must be that of the version whose name came with it."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.serving.installed import Served
from bench.serving.load import connected
from core.db import Database
from policy.versions import active_version, rollback

VERSION_HEADER = "X-Dunnock-Policy-Version"


@dataclass
class Seen:
    """What readers saw.

    Attributes:
        replies: of each version and prompt, with how often each text came.
        gap_s: the longest wait for a piece once a stream had begun, and `first_s` that for the first one.
    """

    replies: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    gap_s: float = 0.0
    first_s: float = 0.0


async def under_swaps(ours: Served, db: Database, prompts: Sequence[str], swaps: int, tokens: int) -> dict[str, Any]:
    """As many open streams as there are prompts, each asked anew as it ends, while two versions take turns.

    Returns:
        Replies by version, those that were not the text of a quiet run of that version, errors, gaps in seconds.
    """
    names = (await _bring_back(db, None), ours.model)
    golden, seen, going = Seen(), Seen(), True
    for name in names:  # one reader, nobody beside it
        await _bring_back(db, name)
        for prompt in prompts:
            await _read(ours, prompt, tokens, golden)

    async def reader(prompt: str) -> None:
        while going:
            await _read(ours, prompt, tokens, seen)

    readers = [asyncio.create_task(reader(prompt)) for prompt in prompts]
    for n in range(swaps):
        await asyncio.sleep(2.0)
        await _bring_back(db, names[n % 2])
    await asyncio.sleep(2.0)
    going = False
    await asyncio.gather(*readers)
    return _compared(golden, seen, swaps)


def _compared(golden: Seen, seen: Seen, swaps: int) -> dict[str, Any]:
    by_version: dict[str, int] = {}
    other = 0
    for (version, prompt), texts in seen.replies.items():
        by_version[version] = by_version.get(version, 0) + sum(texts.values())
        other += sum(n for text, n in texts.items() if text not in golden.replies.get((version, prompt), {}))
    return {
        "swaps": swaps, "replies": by_version, "not_as_golden": other, "errors": len(golden.errors) + len(seen.errors),
        "first_error": (golden.errors + seen.errors)[:1], "longest_gap_s": round(seen.gap_s, 3), "longest_first_s": round(seen.first_s, 3),
        "quiet_longest_gap_s": round(golden.gap_s, 3), "quiet_longest_first_s": round(golden.first_s, 3),
    }  # fmt: skip


async def _bring_back(db: Database, name: str | None) -> str:
    """Make a version active, by the row that a roll-back is; its name."""

    def act() -> str:
        with db.session() as writing:
            if name != active_version(writing).name:
                rollback(writing, actor="bench", reason="a swap under load", to=name)
            return active_version(writing).name

    return await asyncio.to_thread(act)


async def _read(ours: Served, prompt: str, tokens: int, seen: Seen) -> None:
    body = {
        "model": "dunnock", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0, "stream": True,
    }  # fmt: skip
    asked = last = time.perf_counter()
    text, first = "", True
    try:
        async with connected(ours.key) as client, client.post(f"{ours.url}/chat/completions", json=body) as response:
            if response.status != 200:
                seen.errors.append(f"{response.status} {(await response.text())[:200]}")
                return
            version = response.headers[VERSION_HEADER]
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    seen.errors.append(json.dumps(chunk["error"]))
                    return
                if said := (chunk["choices"] or [{"delta": {}}])[0]["delta"].get("content"):
                    now = time.perf_counter()
                    if first:
                        seen.first_s, first = max(seen.first_s, now - asked), False
                    else:
                        seen.gap_s = max(seen.gap_s, now - last)
                    last, text = now, text + said
    except (aiohttp.ClientError, TimeoutError) as error:
        seen.errors.append(repr(error))
        return
    texts = seen.replies.setdefault((version, prompt), {})
    texts[text] = texts.get(text, 0) + 1
