"""When sessions and API keys were last used, written after the answer is made and at most once a minute for each.

The look-up that lets a caller in writes nothing. A session's row says itself when it was seen last; of keys each
process remembers which it has noted lately, and the UPDATE's own condition holds the minute over all processes.
"""

import hashlib
import logging
import threading
import time

from flask import Flask, Response, g, request
from sqlalchemy import or_, update
from sqlalchemy.exc import SQLAlchemyError

from access.models import ApiKey
from access.sessions import SEEN_EVERY, note_seen
from core.db import utcnow
from core.web import runtime

PROGRAM_PATHS = ("/v1/", "/api/")
REMEMBERED = 10_000  # keys; beyond that all are forgotten and noted anew

log = logging.getLogger("dunnock")


class KeyUse:
    """Which keys this process has noted, and when, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()

    def due(self, key_sha256: str) -> bool:
        """Whether a key's use is to be written now; says so once a minute."""
        now = time.monotonic()
        with self._lock:
            last = self._noted.get(key_sha256)
            if last is not None and now - last < SEEN_EVERY.total_seconds():
                return False
            if len(self._noted) >= REMEMBERED:
                self._noted.clear()
            self._noted[key_sha256] = now
        return True


def install(app: Flask) -> None:
    """Note last uses of this app's callers."""
    use = KeyUse()

    def note(response: Response) -> Response:
        try:
            _note_session()
            _note_key(response, use)
        except SQLAlchemyError:
            log.warning("could not write when a caller was last seen", exc_info=True)
        return response

    app.after_request(note)


def session_seen(record_id: int) -> None:
    """Have a session's last use written once this request is answered."""
    g.session_to_note = record_id


def _note_session() -> None:
    record_id = g.pop("session_to_note", None)
    if record_id is not None:
        with runtime().db.session() as session:
            note_seen(session, record_id)


def _note_key(response: Response, use: KeyUse) -> None:
    bearer = request.headers.get("Authorization")
    if not bearer or response.status_code >= 400 or not request.path.startswith(PROGRAM_PATHS):
        return  # an answer below 400 means that the key was good
    secret = bearer.strip().removeprefix("Bearer ").strip()
    key_sha256 = hashlib.sha256(secret.encode()).hexdigest()
    if not use.due(key_sha256):
        return
    now = utcnow()
    unnoted = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - SEEN_EVERY)
    with runtime().db.session() as session:
        session.execute(update(ApiKey).where(ApiKey.key_sha256 == key_sha256, unnoted).values(last_used_at=now))
