"""Limits: exact under many threads on both databases, paced evenly, quotas by UTC days, and Redis where there is one."""

import datetime as dt
import itertools
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from access.limits import Limit, Terms, admit, check_quota, estimated_tokens, spend, take
from access.models import Pace, TenantUsage
from access.tenants import Agreed, create_tenant
from core.db import Database
from core.errors import RateLimited
from core.settings import LimitsSettings

NOON = dt.datetime(2026, 12, 1, 12, tzinfo=dt.UTC)
IN_DATABASE = LimitsSettings()
SECOND = dt.timedelta(seconds=1)
numbers = itertools.count(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A migrated database of either kind."""
    name = "database" if request.param == "sqlite" else "postgres_database"
    found: Database = request.getfixturevalue(name)
    return found


def make_terms(database: Database, **limits: int) -> Terms:
    with database.session() as session:
        tenant = create_tenant(session, "lead", Agreed("Acme", **limits))
    return Terms(tenant.id, tenant.key, tenant.requests_per_minute, tenant.tokens_per_day, None)


def admitted(act: Callable[[], None]) -> bool:
    try:
        act()
    except RateLimited:
        return False
    return True


def test_eight_threads_get_through_as_often_as_was_agreed(either: Database) -> None:
    limits = (Limit("tenant:1", 60),)
    together = threading.Barrier(8)

    def knock(_: int) -> int:
        together.wait()
        return sum(admitted(lambda: take(either, limits, IN_DATABASE, NOON)) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(knock, range(8))) == 60
    with either.read() as session:
        ahead = session.scalars(select(Pace.paid_until_us)).one() - int(NOON.timestamp() * 1_000_000)
    assert ahead == 60_000_000


def test_after_a_whole_minute_at_once_they_come_evenly(either: Database) -> None:
    limits = (Limit("tenant:1", 6),)
    assert [admitted(lambda: take(either, limits, IN_DATABASE, NOON)) for _ in range(7)] == [True] * 6 + [False]
    with pytest.raises(RateLimited) as refused:
        take(either, limits, IN_DATABASE, NOON + 4 * SECOND)
    assert refused.value.retry_after_s == 6
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert admitted(lambda: take(either, limits, IN_DATABASE, NOON + 10 * SECOND))
    assert not admitted(lambda: take(either, limits, IN_DATABASE, NOON + 10 * SECOND))
    later = NOON + dt.timedelta(minutes=10)
    assert sum(admitted(lambda: take(either, limits, IN_DATABASE, later)) for _ in range(9)) == 6


@pytest.fixture(scope="module")
def shared(migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One database for many runs of a test, which name what they limit anew."""
    path = tmp_path_factory.mktemp("limits") / "dunnock.db"
    shutil.copy(migrated_file, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.dispose()


@hypothesis_settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 400), gaps=st.lists(st.integers(0, 40_000), min_size=1, max_size=40))
def test_what_is_told_to_wait_is_enough_and_no_second_too_much(shared: Database, n: int, gaps: list[int]) -> None:
    """Against the rule itself: never more than `n` and what has run in since, and a refused one may come when it was told."""
    limits, now = (Limit(f"key:{next(numbers)}", n),), NOON
    for through, gap in enumerate(gaps):
        now += dt.timedelta(milliseconds=gap) if through else dt.timedelta()
        try:
            take(shared, limits, IN_DATABASE, now)
        except RateLimited as refused:
            told = now + refused.retry_after_s * SECOND
            if refused.retry_after_s > 1:
                with pytest.raises(RateLimited):
                    take(shared, limits, IN_DATABASE, told - SECOND)
            now = told
            take(shared, limits, IN_DATABASE, now)
        assert through + 1 <= n + (now - NOON).total_seconds() * n / 60 + 1


def test_the_limit_of_a_key_does_not_use_up_its_tenants(database: Database) -> None:
    of_tenant, key, other = Limit("tenant:1", 5), Limit("key:1", 2), Limit("key:2", None)
    assert [admitted(lambda: take(database, (of_tenant, key), IN_DATABASE, NOON)) for _ in range(4)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [admitted(lambda: take(database, (other, of_tenant), IN_DATABASE, NOON)) for _ in range(4)] == [
        True, True, True, False,
    ]  # fmt: skip


def test_without_limits_nothing_is_asked_of_the_database(database: Database) -> None:
    terms = make_terms(database)
    said: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
    admit(database, (terms.pace,), terms, IN_DATABASE)
    assert said == []
    limited = Terms(terms.tenant_id, "acme", 10, 10, None)
    admit(database, (limited.pace,), limited, IN_DATABASE)
    assert [line.split()[0] for line in said if not line.startswith("BEGIN")] == ["SELECT", "INSERT"]


def test_a_day_has_so_many_tokens_and_ends_at_midnight_utc(either: Database) -> None:
    terms = make_terms(either, tokens_per_day=100, requests_per_minute=2)
    late = dt.datetime(2026, 12, 1, 23, 59, 30, tzinfo=dt.UTC)
    with either.session() as session:
        spend(session, terms.tenant_id, 60, 39, late)
    admit(either, (terms.pace,), terms, IN_DATABASE, late)
    with either.session() as session:
        spend(session, terms.tenant_id, 0, 1, late)
    east = late.astimezone(dt.timezone(dt.timedelta(hours=9)))
    with pytest.raises(RateLimited) as refused:
        admit(either, (terms.pace,), terms, IN_DATABASE, east)
    assert (refused.value.code, refused.value.retry_after_s) == ("insufficient_quota", 30)
    admit(either, (terms.pace,), terms, IN_DATABASE, late + 30 * SECOND)
    with either.read() as session:
        rows = [(r.day, r.requests, r.prompt_tokens, r.completion_tokens) for r in session.scalars(select(TenantUsage))]
    assert rows == [(dt.date(2026, 12, 1), 2, 60, 40)]


def test_what_the_quota_refuses_takes_no_request(database: Database) -> None:
    terms = make_terms(database, tokens_per_day=1, requests_per_minute=1)
    with database.session() as session:
        spend(session, terms.tenant_id, 1, 0, NOON)
    for _ in range(3):
        with pytest.raises(RateLimited):
            admit(database, (terms.pace,), terms, IN_DATABASE, NOON)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Pace)) == 0


def test_usage_is_counted_by_eight_threads_at_once(either: Database) -> None:
    terms = make_terms(either)

    def reply(_: int) -> None:
        for _ in range(10):
            with either.session() as session:
                spend(session, terms.tenant_id, 3, 5, NOON)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reply, range(8)))
    with either.read() as session:
        row = session.scalars(select(TenantUsage)).one()
        check_quota(session, terms, NOON)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (80, 240, 400)


def test_of_the_house_nothing_is_counted(database: Database) -> None:
    with database.session() as session:
        spend(session, None, 3, 5, NOON)
        assert session.scalar(select(func.count()).select_from(TenantUsage)) == 0


def test_texts_of_which_no_engine_told_the_tokens_cost_some() -> None:
    assert [estimated_tokens(words) for words in ("", "a", "four", "fives")] == [0, 1, 1, 2]


# Elsewhere ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis server of the test's own, on a socket."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on this machine")
    socket = tmp_path / "r.sock"
    line = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.01)
        yield f"redis+unix://{socket}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_redis_counts_for_all(database: Database, redis_url: str) -> None:
    settings, limits = LimitsSettings(storage_url=redis_url), (Limit("tenant:1", 60),)

    def knock(_: int) -> int:
        return sum(admitted(lambda: take(database, limits, settings)) for _ in range(12))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(knock, range(8))) == 60
    with pytest.raises(RateLimited) as refused:
        take(database, limits, settings)
    assert 1 <= refused.value.retry_after_s <= 60
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Pace)) == 0


def test_a_storage_that_is_away_is_stood_in_for_by_the_database(database: Database, tmp_path: Path) -> None:
    settings, limits = LimitsSettings(storage_url=f"redis+unix://{tmp_path}/none.sock"), (Limit("tenant:1", 3),)
    assert sum(admitted(lambda: take(database, limits, settings)) for _ in range(5)) == 3
