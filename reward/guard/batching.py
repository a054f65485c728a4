"""Batching what arrives together: one thread computes, whoever asks is put in a queue that has an end.

Nothing is waited for to fill a batch: while one is computed, what arrives meanwhile is the next. Alone, an item starts at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.errors import EngineError, TooManyRequests

In = TypeVar("In")
Out = TypeVar("Out")

FULL = "guard_full"
LATE = "guard_late"


@dataclass
class Counts:
    """What has happened since the start; read without a lock, each figure right by itself."""

    items: int = 0
    batches: int = 0
    refused: int = 0  # items that found the queue full
    late: int = 0  # items whose deadline had passed when their turn came
    failed: int = 0


@dataclass
class _Waiting(Generic[In, Out]):
    item: In
    deadline: float
    future: "Future[Out]" = field(default_factory=Future)


class Batcher(Generic[In, Out]):
    """Runs items of any threads through one function, together.

    Args:
        run: results of a batch's items, in order. Called in one thread only.
        most_batch, most_waiting: items that are run together, and that may wait for it.
    """

    def __init__(self, run: Callable[[Sequence[In]], Sequence[Out]], *, most_batch: int, most_waiting: int) -> None:
        self.counts = Counts()
        self._run = run
        self._most_batch, self._most_waiting = most_batch, most_waiting
        self._waiting: deque[_Waiting[In, Out]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="guard model", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[In], deadline: float = float("inf")) -> "list[Future[Out]]":
        """Queue items, all or none.

        Args:
            deadline: on the clock of `time.monotonic`; an item whose turn comes later is not run, and says so.

        Raises:
            TooManyRequests: they do not all find room (code `guard_full`).
            EngineError: it is closed, or its thread has died.
        """
        if not self.alive():
            raise EngineError("the guard's model does not run")
        waiting: list[_Waiting[In, Out]] = [_Waiting(item, deadline) for item in items]
        with self._changed:
            if len(self._waiting) + len(items) > self._most_waiting:
                self.counts.refused += len(items)
                raise TooManyRequests(
                    f"{len(self._waiting)} texts wait for the guard's model, and {self._most_waiting} may; ask again later",
                    code=FULL,
                )
            self._waiting += waiting
            self._changed.notify()
        return [w.future for w in waiting]

    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    def alive(self) -> bool:
        """Whether it runs what is queued."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """End the thread after the batch that it is at; what still waits fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for left in self._waiting:
            left.future.set_exception(EngineError("the guard's model was ended"))
        self._waiting.clear()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                batch = [self._waiting.popleft() for _ in range(min(self._most_batch, len(self._waiting)))]
            self._serve(batch)

    def _serve(self, batch: "list[_Waiting[In, Out]]") -> None:
        now = time.monotonic()
        for late in (w for w in batch if w.deadline < now):
            self.counts.late += 1
            late.future.set_exception(EngineError("the deadline passed before the guard's model came to it", code=LATE))
        live = [w for w in batch if w.deadline >= now]
        if not live:
            return
        try:
            found = self._run([w.item for w in live])
        except Exception as error:  # noqa: BLE001 (whoever waits is told; the thread goes on for others)
            self.counts.failed += len(live)
            for w in live:
                w.future.set_exception(error)
            return
        self.counts.items += len(live)
        self.counts.batches += 1
        for w, result in zip(live, found, strict=True):
            w.future.set_result(result)
