"""Sessions as rows: found by their token alone, over when they should be, cheap to use."""

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from access.models import SessionRecord
from access.sessions import browser_of, end_session, end_sessions, find_session, live_sessions, note_seen, open_session
from core.db import Database, utcnow
from core.errors import NotFound
from core.settings import Settings
from tests.conftest import SignedIn
from tests.factories import make_person


def opened(session: Session, person_id: int | None = None) -> tuple[SessionRecord, str]:
    person = make_person(session)
    return open_session(session, person, "password", address="10.0.0.1", user_agent="Firefox")


def test_a_token_finds_its_session_and_is_not_stored(session: Session, settings: Settings) -> None:
    row, token = opened(session)
    assert token not in {str(value) for value in vars(row).values()}
    found = find_session(session, token, settings)
    assert found is not None
    assert found[0].id == row.id
    assert found[1].id == row.person_id
    for wrong in ("", "x", row.token_sha256):
        assert find_session(session, wrong, settings) is None


@pytest.mark.parametrize(
    "over",
    [{"ended_at": utcnow()}, {"last_seen_at": utcnow() - dt.timedelta(days=8)}, {"created_at": utcnow() - dt.timedelta(days=31)}],
    ids=lambda over: next(iter(over)),
)  # fmt: skip
def test_a_session_that_is_over_opens_nothing_and_is_not_listed(
    session: Session, settings: Settings, over: dict[str, dt.datetime]
) -> None:
    row, token = opened(session)
    assert [r.id for r in live_sessions(session, row.person_id, settings)] == [row.id]
    session.execute(update(SessionRecord).values(**over))
    session.expire_all()
    assert find_session(session, token, settings) is None
    assert live_sessions(session, row.person_id, settings) == []


def test_one_ends_ones_own_and_nobody_elses(session: Session, settings: Settings) -> None:
    row, _ = opened(session)
    other, token = opened(session)
    with pytest.raises(NotFound):
        end_session(session, other.id, row.person_id)
    assert find_session(session, token, settings) is not None
    first = end_session(session, row.id, row.person_id).ended_at
    assert end_session(session, row.id, row.person_id).ended_at == first


def test_all_sessions_but_one(session: Session, settings: Settings) -> None:
    person = make_person(session)
    rows = [open_session(session, person, "password", address="", user_agent="")[0] for _ in range(3)]
    assert end_sessions(session, person.id, but=rows[1].id) == 2
    assert [row.id for row in live_sessions(session, person.id, settings)] == [rows[1].id]
    assert end_sessions(session, person.id) == 1


def test_old_sessions_are_forgotten_at_the_next_sign_in(session: Session) -> None:
    person = make_person(session)
    old, recent = (open_session(session, person, "password", address="", user_agent="")[0].id for _ in range(2))
    past = utcnow() - dt.timedelta(days=91)
    session.execute(update(SessionRecord).where(SessionRecord.id == old).values(last_seen_at=past))
    opened(session)  # somebody else's sign-in forgets nothing
    assert session.get(SessionRecord, old, populate_existing=True) is not None
    new, _ = open_session(session, person, "password", address="", user_agent="")
    kept = session.scalars(select(SessionRecord.id).where(SessionRecord.person_id == person.id)).all()
    assert sorted(kept) == [recent, new.id]


def test_last_seen_is_written_once_a_minute(session: Session) -> None:
    row, _ = opened(session)
    before = row.last_seen_at
    note_seen(session, row.id)
    session.refresh(row)
    assert row.last_seen_at == before
    session.execute(update(SessionRecord).values(last_seen_at=before - dt.timedelta(seconds=61)))
    note_seen(session, row.id)
    session.refresh(row)
    assert row.last_seen_at > before


@pytest.fixture
def statements(database: Database) -> Iterator[list[str]]:
    """What is sent to the database."""
    seen: list[str] = []

    def note(*args: object) -> None:
        seen.append(str(args[2]))

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


def test_a_request_costs_one_look_up_and_no_write(annotator: SignedIn, statements: list[str]) -> None:
    annotator.client.get("/chat")
    of_access = [s for s in statements if "session_record" in s or "person" in s]
    assert len(of_access) == 1
    assert of_access[0].startswith("SELECT")
    assert not [s for s in statements if s.startswith(("UPDATE", "INSERT"))]


def test_a_request_after_a_minute_writes_when_it_was(
    annotator: SignedIn, database: Database, statements: list[str]
) -> None:
    with database.session() as session:
        session.execute(update(SessionRecord).values(last_seen_at=utcnow() - dt.timedelta(minutes=5)))
    annotator.client.get("/chat")
    annotator.client.get("/chat")
    assert (
        len([s for s in statements if s.startswith("UPDATE session_record")]) == 2
    )  # the one above, and one by the app
    with database.read() as session:
        assert utcnow() - session.scalars(select(SessionRecord.last_seen_at)).one() < dt.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/150.0 Safari/537.36 Edg/150.0", "Edge, Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Safari/604.1", "Safari, iPhone"),
        ("Werkzeug/3.1.9", "Werkzeug/3.1.9"),
        ("", "?"),
    ],
)
def test_browsers_are_named_in_two_words(sent: str, shown: str) -> None:
    assert browser_of(sent) == shown
