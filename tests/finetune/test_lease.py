"""The lease: one holder at a time, taken over when it runs out or its process is gone, and its loss is noticed."""

import datetime as dt
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, text, update

from core.db import Database, utcnow
from core.errors import Conflict, LeaseLost
from finetune.lease import HeldLease
from finetune.models import Lease


@pytest.fixture(params=["database", "postgres_database"])
def db(request: pytest.FixtureRequest) -> Database:
    """A migrated database, once of each kind."""
    return request.getfixturevalue(request.param)


def row(db: Database, name: str = "cycle") -> Lease:
    with db.read() as session:
        return session.scalars(select(Lease).where(Lease.name == name)).one()


def hold(db: Database, holder: str, expires_in_s: float) -> None:
    """A row as another worker leaves it."""
    with db.session() as session:
        session.add(Lease(name="cycle", holder=holder, expires_at=utcnow() + dt.timedelta(seconds=expires_in_s)))


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_two_holders_cannot_be(db: Database) -> None:
    with HeldLease(db, "cycle", 60) as first:
        with pytest.raises(Conflict, match=f"held by {first.holder}.*one at a time"), HeldLease(db, "cycle", 60):
            pytest.fail("two hold the lease")
        with HeldLease(db, "another", 60) as other:
            other.check()
        first.check()
        assert row(db).holder == first.holder
    assert (row(db).holder, row(db).expires_at) == (None, None)
    with HeldLease(db, "cycle", 60) as second:
        assert row(db).holder == second.holder != first.holder


def test_of_many_that_try_at_once_one_holds(db: Database) -> None:
    leases = [HeldLease(db, "cycle", 60) for _ in range(6)]
    barrier, results = threading.Barrier(6), []

    def take(lease: HeldLease) -> None:
        barrier.wait()
        try:
            lease.__enter__()
            results.append(lease)
        except Conflict:
            results.append(None)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (holder,) = [lease for lease in results if lease is not None]
    assert len(results) == 6
    assert row(db).holder == holder.holder
    holder.__exit__(None, None, None)


def test_it_is_given_back_when_the_work_fails(database: Database) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), HeldLease(database, "cycle", 60):
        raise RuntimeError("out of memory")
    assert row(database).holder is None


def test_one_that_ran_out_can_be_taken(database: Database) -> None:
    hold(database, "elsewhere:1:abcd", expires_in_s=0.5)
    with pytest.raises(Conflict, match="elsewhere:1:abcd"), HeldLease(database, "cycle", 60):
        pass
    wait_for(lambda: row(database).expires_at < utcnow())
    with HeldLease(database, "cycle", 60) as lease:
        assert row(database).holder == lease.holder
        assert row(database).expires_at > utcnow() + dt.timedelta(seconds=30)


@pytest.mark.parametrize(("host", "free"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_a_dead_process_of_this_host_holds_nothing(database: Database, host: str, *, free: bool) -> None:
    """The same process number on another host may be alive."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    hold(database, f"{host}:{child.pid}:abcd", expires_in_s=600)
    if free:
        with HeldLease(database, "cycle", 60) as lease:
            assert row(database).holder == lease.holder
    else:
        with pytest.raises(Conflict), HeldLease(database, "cycle", 60):
            pass


def test_a_live_process_of_this_host_keeps_it(database: Database) -> None:
    hold(database, f"{socket.gethostname()}:1:abcd", expires_in_s=600)  # process 1 is always there
    with pytest.raises(Conflict), HeldLease(database, "cycle", 60):
        pass


def test_it_is_renewed_while_the_work_goes_on(database: Database) -> None:
    with HeldLease(database, "cycle", 1.5) as lease:
        first = row(database).expires_at
        wait_for(lambda: row(database).expires_at > first)
        lease.check()


def test_a_lost_lease_is_noticed_and_not_taken_back(database: Database) -> None:
    with HeldLease(database, "cycle", 0.6) as lease:
        lease.check()
        with database.session() as session:
            session.execute(
                update(Lease).values(holder="elsewhere:1:abcd", expires_at=utcnow() + dt.timedelta(hours=1))
            )
        wait_for(lease.lost.is_set)
        with pytest.raises(LeaseLost, match="went to another worker"):
            lease.check()
    assert row(database).holder == "elsewhere:1:abcd"


def test_a_database_that_is_away_for_a_moment_costs_nothing_and_one_that_stays_away_the_lease(
    database: Database,
) -> None:
    with HeldLease(database, "cycle", 2.0) as lease:
        first = row(database).expires_at
        rename(database, "lease", "away")
        time.sleep(1.0)  # at least one renewal fails
        rename(database, "away", "lease")
        wait_for(lambda: row(database).expires_at > first)
        lease.check()
        rename(database, "lease", "away")
        wait_for(lease.lost.is_set)
        rename(database, "away", "lease")
        with pytest.raises(LeaseLost):
            lease.check()


def rename(db: Database, old: str, new: str) -> None:
    with db.session() as session:
        session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
