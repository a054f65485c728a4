"""The load generator: annotators who take tasks from a target and judge them. Out: latencies and tasks per second.

Open loop: each annotator finishes one task a second, whether or not the target keeps up; a latency counts from the moment
that the call was due. Closed loop: annotators judge without a pause, so the throughput is all the target can do.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from bench.annotation.http import Connection, Refused
from bench.tools import NotDone

OPEN_ANNOTATORS = 50
CLOSED_ANNOTATORS = 8
WARM_UP_S = 5.0
MAX_FAILURES = 200
"""A target with so many failed calls more than judgments stored is given up."""


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

    def page(self) -> dict[str, Any]:
        """Its page in a browser; nothing where that is not measured."""
        return {}

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
    """Annotators who never pause: each is given a first task, then the clock starts.

    What ends within `seconds` after the warm-up is counted. A failed call of a target that is not strict is counted too,
    and its annotator asks for another task.

    Raises:
        Refused: a call of a strict target failed, or too many did.
        NotDone: it ran out of tasks, or gave nobody a first one.
    """
    loop = _ClosedLoop(target)
    began = time.monotonic()
    await _together([loop.first(annotator) for annotator in range(annotators)])
    if not loop.tasks:
        raise NotDone(f"nobody was given a first task: {dict(loop.failures)}")
    first_s = time.monotonic() - began
    loop.begin = time.monotonic() + WARM_UP_S
    loop.end = loop.begin + seconds
    await _together([loop.work(annotator) for annotator in range(annotators)])
    return {
        "tasks_per_s": round(loop.done / seconds, 2), "tasks": loop.done, "seconds": seconds,
        "first_tasks_s": round(first_s, 2), **loop.found.summary(), "failed_calls": dict(loop.failures),
    }  # fmt: skip


@dataclass
class _ClosedLoop:
    """What the annotators of a closed loop share."""

    target: Target
    begin: float = 0.0
    end: float = 0.0
    done: int = 0
    tasks: dict[int, Any] = field(default_factory=dict)
    found: Latencies = field(default_factory=Latencies)
    failures: Counter[str] = field(default_factory=Counter)

    async def first(self, annotator: int) -> None:
        """Be given a first task."""
        with self._counting_failures():
            self.tasks[annotator] = await self.target.next(annotator)

    async def work(self, annotator: int) -> None:
        """Judge until the time is over."""
        task = self.tasks.get(annotator)
        while time.monotonic() < self.end:
            submitted, task = task, None
            with self._counting_failures():
                if submitted is None:
                    task, _ = await self._timed("next", self.target.next(annotator))
                elif self.target.one_call:
                    task, counts = await self._timed(
                        "submit_and_next", self.target.submit_and_next(annotator, submitted)
                    )
                    self._judged(counts)
                else:
                    _, counts = await self._timed("submit", self.target.submit(annotator, submitted))
                    self._judged(counts)
                    continue
                if task is None:
                    raise NotDone("it ran out of tasks in the closed loop; ask for more tasks or fewer seconds")

    async def _timed(self, name: str, call: Awaitable[Any]) -> tuple[Any, bool]:
        """The answer, and whether it came while the clock ran."""
        began = time.monotonic()
        answer = await call
        ended = time.monotonic()
        counts = self.begin <= ended < self.end
        if counts:
            self.found.seconds[name].append(ended - began)
        return answer, counts

    def _judged(self, counts: bool) -> None:
        self.done += counts
        self.target.acknowledged += 1

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            self.failures[str(error)[:160]] += 1
            if self.target.strict or self.failures.total() > MAX_FAILURES + self.target.acknowledged:
                raise


async def _together(works: list[Any]) -> None:
    """All of them; when one fails the others end and its own error is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as group_of_errors:
        raise group_of_errors.exceptions[0] from None
