"""Figures that cost much are kept for as long as they were worth: fifty times what they took, at most ten minutes.

What is cheap is computed each time. Several who ask at once wait for one computation.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from core.db import utcnow

KEPT = 50
CHEAP_S = 0.25
MOST_S = 600.0
MOST_KEYS = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Kept(Generic[T]):
    """A computed value and when it was computed."""

    value: T
    at: dt.datetime


@dataclass
class _Shelf:
    """What is kept of one database."""

    lock: threading.Lock
    found: dict[Hashable, tuple[float, Kept[Any]]]
    busy: dict[Hashable, threading.Lock]


_shelves: "WeakKeyDictionary[Engine, _Shelf]" = WeakKeyDictionary()
_shelves_lock = threading.Lock()


def kept(session: Session, key: Hashable, compute: Callable[[], T]) -> Kept[T]:
    """The value of `compute`, from this process's memory if it is there and young enough."""
    shelf = _shelf(session.get_bind().engine)
    with shelf.lock:
        busy = shelf.busy.setdefault(key, threading.Lock())
    with busy:
        until, found = shelf.found.get(key, (0.0, None))
        began = time.monotonic()
        if found is not None and began < until:
            return cast(Kept[T], found)
        fresh = Kept(compute(), utcnow())
        now = time.monotonic()
        with shelf.lock:
            shelf.found.pop(key, None)
            if now - began > CHEAP_S:
                shelf.found[key] = (now + min(KEPT * (now - began), MOST_S), fresh)
            while len(shelf.found) > MOST_KEYS:
                shelf.found.pop(next(iter(shelf.found)))
        return fresh


def _shelf(engine: Engine) -> _Shelf:
    with _shelves_lock:
        return _shelves.setdefault(engine, _Shelf(threading.Lock(), {}, {}))
