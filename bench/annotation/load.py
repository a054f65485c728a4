"""The load generator: annotators who take tasks from a target and judge them. Out: latencies and tasks per second.

Open loop: each annotator finishes one task a second, whether or not the target keeps up; a latency counts from the moment
that the call was due. Closed loop: annotators judge without a pause, so the throughput is all the target can do.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from bench.annotation.http import Connection, Refused

OPEN_ANNOTATORS = 50
CLOSED_ANNOTATORS = 8
WARM_UP_S = 5.0
MAX_FAILURES = 200


class NotDone(Exception):
    """A target cannot do what was asked of it; the message is for the record."""


class Target(ABC):
    """What is measured. `prepare` comes first and `stop` last, whatever happens between."""

    name: str
    open_too = False
    """Whether the open loop is run as well."""
    largest = 100_000
    """The most tasks it is tried with."""
    one_call = False
    """Whether a judgment and the next task fit in one call."""
    strict = False
    """Whether one failed call ends the run, or is counted."""

    def __init__(self) -> None:
        self.callers: list[Connection] = []
        """Each annotator's connection, made by `prepare`."""
        self.acknowledged = 0
        """Judgments that it said it has stored, those of the warm-up too."""

    @abstractmethod
    def prepare(self, size: int, limit_s: float) -> dict[str, Any]:
        """Start it with `size` tasks waiting, within `limit_s`; what there is to tell of it.

        Raises:
            NotDone: it took too long or failed.
        """

    @abstractmethod
    async def next(self, annotator: int) -> Any:
        """What this annotator judges now; None when nothing is left.

        Raises:
            Refused: the target answered with an error.
        """

    @abstractmethod
    async def submit(self, annotator: int, task: Any) -> None:
        """Judge it.

        Raises:
            Refused: the target answered with an error.
        """

    async def submit_and_next(self, annotator: int, task: Any) -> Any:
        """Both in one call, where `one_call` says so."""
        raise NotImplementedError

    @abstractmethod
    def check(self) -> dict[str, int]:
        """What it has stored, and how much of it is wrong."""

    @abstractmethod
    def stop(self) -> None:
        """End its processes and remove its files."""


@dataclass
class Latencies:
    """Seconds of the calls of a loop, by what was asked for."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def summary(self) -> dict[str, Any]:
        """Medians and 99th percentiles in milliseconds, by what was asked for."""
        return {name: summary(values) for name, values in self.seconds.items()}


def summary(seconds: list[float]) -> dict[str, Any]:
    """Count, median, 99th percentile and maximum in milliseconds.

    The percentile is interpolated between the values around it and is never above the maximum.
    """
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    figures = {"p50_ms": median(seconds), "p99_ms": cuts[98], "max_ms": max(seconds)}
    return {"n": len(seconds), **{name: round(1000 * value, 2) for name, value in figures.items()}}


async def open_loop(target: Target, seconds: float, annotators: int = OPEN_ANNOTATORS) -> dict[str, Any]:
    """Each annotator asks once a second and judges half a second later.

    Raises:
        Refused: a call failed.
        NotDone: it ran out of tasks.
    """
    found = Latencies()
    begin = time.monotonic() + 0.5

    async def work(annotator: int) -> None:
        offset = annotator / annotators
        for second in range(int(seconds + WARM_UP_S)):
            due = begin + offset + second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = await target.next(annotator)
            if task is None:
                raise NotDone("it ran out of tasks in the open loop; ask for more tasks or fewer seconds")
            got = time.monotonic()
            if second >= WARM_UP_S:
                found.seconds["next"].append(got - due)
            due = max(due + 0.5, got)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await target.submit(annotator, task)
            target.acknowledged += 1
            if second >= WARM_UP_S:
                found.seconds["submit"].append(time.monotonic() - due)

    await _together([work(annotator) for annotator in range(annotators)])
    return found.summary()


async def closed_loop(target: Target, seconds: float, annotators: int = CLOSED_ANNOTATORS) -> dict[str, Any]:
    """Annotators who never pause; what ends within `seconds` after the warm-up is counted.

    A failed call of a target that is not strict is counted, and its annotator asks for another task.

    Raises:
        Refused: a call of a strict target failed, or too many did.
        NotDone: it ran out of tasks.
    """
    found, failures, done = Latencies(), Counter[str](), 0
    first = time.monotonic() + WARM_UP_S
    end = first + seconds

    async def timed(name: str, call: Awaitable[Any]) -> tuple[Any, bool]:
        began = time.monotonic()
        answer = await call
        ended = time.monotonic()
        counts = first <= ended < end
        if counts:
            found.seconds[name].append(ended - began)
        return answer, counts

    async def step(annotator: int, task: Any) -> Any:
        nonlocal done
        if task is None:
            task, _ = await timed("next", target.next(annotator))
        elif target.one_call:
            task, counts = await timed("submit_and_next", target.submit_and_next(annotator, task))
            done += counts
            target.acknowledged += 1
        else:
            _, counts = await timed("submit", target.submit(annotator, task))
            done += counts
            target.acknowledged += 1
            return None
        if task is None:
            raise NotDone("it ran out of tasks in the closed loop; ask for more tasks or fewer seconds")
        return task

    async def work(annotator: int) -> None:
        task = None
        while time.monotonic() < end:
            try:
                task = await step(annotator, task)
            except Refused as error:
                failures[str(error)[:160]] += 1
                if target.strict or failures.total() > MAX_FAILURES:
                    raise
                task = None

    await _together([work(annotator) for annotator in range(annotators)])
    return {
        "tasks_per_s": round(done / seconds, 2), "tasks": done, "seconds": seconds, **found.summary(),
        "failed_calls": dict(failures),
    }  # fmt: skip


async def _together(works: list[Any]) -> None:
    """All of them; when one fails the others end and its own error is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
