"""Tries to sign in, counted in the database: limits, windows, what is kept, and many at once."""

import datetime as dt
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, update

from access import throttle
from access.models import SignInAttempt
from access.people import find_login
from access.sessions import open_session
from access.throttle import admit, device_cookie, forgive
from core.db import Database, utcnow
from core.errors import TooManyRequests
from tests.factories import make_person

SECRET = "k" * 32


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database of either kind."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")


def age(db: Database, by: dt.timedelta) -> None:
    with db.session() as session:
        session.execute(update(SignInAttempt).values(at=utcnow() - by))


def kept(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(SignInAttempt)) or 0


def refused(db: Database, login: str, address: str, device: str = "") -> bool:
    try:
        admit(db, SECRET, login, address, device)
    except TooManyRequests:
        return True
    return False


def test_ten_failures_a_minute_for_one_login_and_address(database: Database) -> None:
    assert not any(refused(database, "ana", "10.0.0.1") for _ in range(10))
    assert refused(database, "ana", "10.0.0.1")
    assert kept(database) == 10  # a try that was refused does not lengthen the wait
    assert not refused(database, "ana", "10.0.0.2")
    assert not refused(database, "ben", "10.0.0.1")
    age(database, dt.timedelta(seconds=61))
    assert not refused(database, "ana", "10.0.0.1")


def test_sixty_failures_a_minute_from_one_address_whoever_it_names(database: Database) -> None:
    assert not any(refused(database, f"login-{n}", "10.0.0.1") for n in range(60))
    assert refused(database, "another", "10.0.0.1")
    assert not refused(database, "another", "10.0.0.2")


def test_a_hundred_failures_an_hour_for_one_login_from_wherever(database: Database) -> None:
    assert not any(refused(database, "ana", f"10.0.{n}.1") for n in range(100))
    with pytest.raises(TooManyRequests, match="hour"):
        admit(database, SECRET, "ana", "10.9.9.9")
    age(database, dt.timedelta(minutes=59))
    assert refused(database, "ana", "10.9.9.9")
    age(database, dt.timedelta(minutes=61))
    assert not refused(database, "ana", "10.9.9.9")
    assert kept(database) == 1  # what is older than an hour is gone


def sign_in_from(db: Database, login: str, address: str) -> None:
    with db.session() as session:
        person = find_login(session, login) or make_person(session, login)
        open_session(session, person, "password", address=address, user_agent="Firefox")


@pytest.mark.parametrize("known", ["device", "address", "network"])
def test_a_known_device_or_address_has_a_budget_of_its_own(db: Database, known: str) -> None:
    sign_in_from(db, "ana", {"address": "10.5.5.5", "network": "2001:db8:1:2::5"}.get(known, "192.0.2.1"))
    where = {"address": ("10.5.5.5", ""), "network": ("2001:db8:1:2::6", "")}
    address, device = where.get(known, ("10.8.8.8", device_cookie(SECRET, "ana")))
    for n in range(100):
        admit(db, SECRET, "ana", f"10.0.{n}.1")
    assert refused(db, "ana", "10.9.9.9")
    assert not any(refused(db, "Ana", address, device) for _ in range(10))
    assert refused(db, "ana", address, device)  # ten a minute there as well
    tries = 10
    for _ in range(9):
        age(db, dt.timedelta(minutes=2))
        tries += sum(not refused(db, "ana", address, device) for _ in range(10))
    age(db, dt.timedelta(minutes=2))
    assert tries == 100
    assert refused(db, "ana", address, device)  # and a hundred an hour
    if known == "device":
        assert not refused(db, "ana", "10.8.8.8", device_cookie(SECRET, "ana"))  # another one of theirs


@pytest.mark.parametrize(
    "device",
    [
        device_cookie(SECRET, "ben"), device_cookie("another secret", "ana"), "x.y", ".", "é.é",
        device_cookie(SECRET, "ana")[1:],
    ],
    ids=["of another", "by another secret", "of no shape", "empty", "no ASCII", "cut"],  # what is drawn must name no test
)  # fmt: skip
def test_marks_of_others_and_made_up_ones_count_as_none(database: Database, device: str) -> None:
    for n in range(100):
        admit(database, SECRET, "ana", f"10.0.{n}.1")
    assert refused(database, "ana", "10.9.9.9", device)


def test_spellings_of_a_login_share_its_budget(database: Database) -> None:
    assert not any(refused(database, login, "10.0.0.1") for login in ("ana", "ANA", "Ana", " aNa ", "ａｎａ") * 2)
    assert refused(database, "anA", "10.0.0.1")


def test_successes_do_not_count(database: Database) -> None:
    for _ in range(30):
        forgive(database, admit(database, SECRET, "ana", "10.0.0.1"))
    assert kept(database) == 0


def test_neighbours_in_an_ipv6_network_count_as_one(database: Database) -> None:
    assert not any(refused(database, "ana", f"2001:db8:1:2::{n:x}") for n in range(1, 11))
    assert refused(database, "ana", "2001:db8:1:2:ffff::1")
    assert not refused(database, "ana", "2001:db8:1:3::1")


def test_what_was_typed_is_not_kept_in_a_readable_form(database: Database) -> None:
    admit(database, SECRET, "my password in the wrong field", "10.0.0.1")
    with database.read() as session:
        row = session.scalars(select(SignInAttempt)).one()
    for value in (row.login_key, row.address_key):
        assert len(value) == 64
        assert int(value, 16)
    assert throttle._key(SECRET, "login", "x") != throttle._key("another secret", "login", "x")


def test_of_many_at_once_no_more_than_the_limit_get_through(db: Database) -> None:
    """Each thread has connections of its own, as each web process has."""
    start, results = threading.Barrier(24), []

    def knock() -> None:
        start.wait()
        results.append(not refused(db, "ana", "10.0.0.1"))

    threads = [threading.Thread(target=knock) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 24
    assert sum(results) <= 10
    assert kept(db) == sum(results)
