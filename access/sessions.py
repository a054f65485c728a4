"""Signed-in browsers as rows: opened at sign-in, found by the cookie's token on each request, ended by hand or by time.

In: the random token that a cookie holds. Out: the record and its person, or nobody. The token itself is not stored.
"""

import datetime as dt
import hashlib
import secrets
from collections.abc import Sequence
from typing import cast

from sqlalchemy import CursorResult, delete, select, update
from sqlalchemy.orm import Session

from access.models import Person, SessionRecord
from core.db import utcnow
from core.errors import NotFound
from core.language import gettext
from core.settings import Settings

SEEN_EVERY = dt.timedelta(minutes=1)
"""`last_seen_at` and a key's `last_used_at` are written at most so often: a request must not cost a write."""
KEPT = dt.timedelta(days=90)
"""How long a session that is over is remembered, with its address and browser."""
MAX_ADDRESS, MAX_USER_AGENT = 64, 300  # characters
SHOWN = 50
"""Sessions in a list; whoever has more ends them all at once."""

# In this order: Edge and Opera also say Chrome, and Chrome also says Safari.
BROWSERS = (
    ("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("FxiOS/", "Firefox"), ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"), ("Safari/", "Safari"), ("curl/", "curl"),
)  # fmt: skip
SYSTEMS = (
    ("iPhone", "iPhone"), ("iPad", "iPad"), ("Android", "Android"), ("Windows", "Windows"), ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"), ("Linux", "Linux"),
)  # fmt: skip


def open_session(
    session: Session, person: Person, method: str, *, address: str, user_agent: str
) -> tuple[SessionRecord, str]:
    """Record a browser that signs in, and forget the person's sessions that were not seen for `KEPT`.

    Returns:
        The row and the token for its cookie, which is not stored and cannot be read again.
    """
    forgotten = SessionRecord.last_seen_at < utcnow() - KEPT
    session.execute(delete(SessionRecord).where(SessionRecord.person_id == person.id, forgotten))
    token = secrets.token_urlsafe(32)
    row = SessionRecord(
        person_id=person.id,
        token_sha256=_sha256(token),
        method=method,
        address=address[:MAX_ADDRESS],
        user_agent=user_agent[:MAX_USER_AGENT],
    )
    session.add(row)
    session.flush()
    return row, token


def find_session(session: Session, token: str, settings: Settings) -> tuple[SessionRecord, Person] | None:
    """The live record of a token and its active person, in one statement; None where either is over."""
    found = session.execute(
        select(SessionRecord, Person)
        .join(Person, Person.id == SessionRecord.person_id)
        .where(SessionRecord.token_sha256 == _sha256(token))
    ).one_or_none()
    if found is None:
        return None
    record, person = found
    return (record, person) if person.active and is_live(record, settings) else None


def is_live(record: SessionRecord, settings: Settings) -> bool:
    """Whether a session still opens anything: not ended, used lately, not too old."""
    now = utcnow()
    return (
        record.ended_at is None
        and now - record.last_seen_at < dt.timedelta(seconds=settings.session_idle_s)
        and now - record.created_at < dt.timedelta(seconds=settings.session_max_s)
    )


def live_sessions(session: Session, person_id: int, settings: Settings) -> list[SessionRecord]:
    """A person's live sessions, last seen first, at most `SHOWN`."""
    now = utcnow()
    rows: Sequence[SessionRecord] = session.scalars(
        select(SessionRecord)
        .where(
            SessionRecord.person_id == person_id,
            SessionRecord.ended_at.is_(None),
            SessionRecord.last_seen_at > now - dt.timedelta(seconds=settings.session_idle_s),
            SessionRecord.created_at > now - dt.timedelta(seconds=settings.session_max_s),
        )
        .order_by(SessionRecord.last_seen_at.desc(), SessionRecord.id.desc())
        .limit(SHOWN)
    ).all()
    return list(rows)


def end_session(session: Session, record_id: int, person_id: int) -> SessionRecord:
    """End one session of a person; a second call changes nothing.

    Raises:
        NotFound: they have no such session.
    """
    row = session.get(SessionRecord, record_id)
    if row is None or row.person_id != person_id:
        raise NotFound(gettext("you have no session %(record_id)s", record_id=record_id))
    row.ended_at = row.ended_at or utcnow()
    session.flush()
    return row


def end_sessions(session: Session, person_id: int, but: int | None = None) -> int:
    """End all sessions of a person, or all but one.

    Returns:
        How many were ended.
    """
    ending = update(SessionRecord).where(SessionRecord.person_id == person_id, SessionRecord.ended_at.is_(None))
    if but is not None:
        ending = ending.where(SessionRecord.id != but)
    return cast("CursorResult[tuple[()]]", session.execute(ending.values(ended_at=utcnow()))).rowcount


def note_seen(session: Session, record_id: int) -> None:
    """Write down that a session was used just now, unless that was done within the last minute."""
    now = utcnow()
    session.execute(
        update(SessionRecord)
        .where(SessionRecord.id == record_id, SessionRecord.last_seen_at <= now - SEEN_EVERY)
        .values(last_seen_at=now)
    )


def browser_of(user_agent: str) -> str:
    """A browser and its system in two words, as far as it says what it is: "Firefox, Linux"."""
    found = [next((name for mark, name in marks if mark in user_agent), "") for marks in (BROWSERS, SYSTEMS)]
    return ", ".join(name for name in found if name) or user_agent[:40] or "?"


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # 256 random bits: a plain hash is enough
