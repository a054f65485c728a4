"""One holder at a time, across all hosts: a named row, taken by one conditional UPDATE.

A holder renews while it works. When it falls silent the lease runs out and another may take it; a holder
on this very host whose process is gone loses it at once, so that a killed round can go on right away.
"""

import datetime as dt
import os
import socket
import threading
import time
from types import TracebackType

from sqlalchemy import or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from core.db import Database, utcnow
from core.errors import Conflict, LeaseLost
from finetune.models import Lease


class HeldLease:
    """A context in which this process holds the lease and renews it in the background.

    Args:
        name: which lease.
        ttl_s: silence after which others may take it; it is renewed three times as often.

    Raises (on entering):
        Conflict: somebody else holds it.
    """

    def __init__(self, db: Database, name: str, ttl_s: float) -> None:
        self.db, self.name, self.ttl_s = db, name, ttl_s
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease-{name}", daemon=True)

    def check(self) -> None:
        """Raise LeaseLost once the lease could not be renewed."""
        if self.lost.is_set():
            raise LeaseLost(f"the lease {self.name!r} went to another worker; this one stops")

    def __enter__(self) -> "HeldLease":
        _ensure_row(self.db, self.name)
        if not self._take():
            with self.db.read() as session:
                holder = session.scalar(select(Lease.holder).where(Lease.name == self.name))
            raise Conflict(f"{self.name} is running already (held by {holder}); one at a time across all hosts")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with self.db.session() as session:
            session.execute(
                update(Lease)
                .where(Lease.name == self.name, Lease.holder == self.holder)
                .values(holder=None, expires_at=None)
            )

    def _take(self) -> bool:
        now = utcnow()
        with self.db.session() as session:
            holder = session.scalar(select(Lease.holder).where(Lease.name == self.name))
            free = [Lease.holder.is_(None), Lease.expires_at < now]
            if holder is not None and _is_dead_here(holder):
                free.append(Lease.holder == holder)
            taken = session.execute(
                update(Lease)
                .where(Lease.name == self.name, or_(*free))
                .values(holder=self.holder, expires_at=now + dt.timedelta(seconds=self.ttl_s))
            )
            return bool(taken.rowcount == 1)  # type: ignore[attr-defined]

    def _renew(self) -> None:
        """Extend the lease until it is left; a database that is away is tried again until the lease has run out."""
        renewed = time.monotonic()
        while not self._stop.wait(self.ttl_s / 3):
            began = time.monotonic()
            try:
                kept = self._extend()
            except DBAPIError:
                kept = time.monotonic() - renewed < self.ttl_s
            else:
                renewed = began
            if not kept:
                self.lost.set()
                return

    def _extend(self) -> bool:
        with self.db.session() as session:
            kept = session.execute(
                update(Lease)
                .where(Lease.name == self.name, Lease.holder == self.holder)
                .values(expires_at=utcnow() + dt.timedelta(seconds=self.ttl_s))
            )
            return bool(kept.rowcount == 1)  # type: ignore[attr-defined]


def take_turns(session: Session, name: str) -> None:
    """Let one transaction at a time pass here, across all hosts, until it ends."""
    if session.get(Lease, name, with_for_update=True) is None:
        try:
            with session.begin_nested():
                session.add(Lease(name=name))
        except IntegrityError:
            pass  # another one made it just now
        session.get(Lease, name, with_for_update=True, populate_existing=True)


def _ensure_row(db: Database, name: str) -> None:
    with db.read() as session:
        if session.get(Lease, name) is not None:
            return
    try:
        with db.session() as session:
            session.add(Lease(name=name))
    except IntegrityError:
        pass  # another worker made it just now


def _is_dead_here(holder: str) -> bool:
    """Whether the holder was a process of this host that is gone."""
    host, pid, *_ = holder.split(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
