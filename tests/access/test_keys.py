"""API keys."""

import datetime as dt

import pytest
from sqlalchemy.orm import Session

from access.keys import PAGE, authenticate, create_key, keys_of, revoke_key
from core.db import utcnow
from core.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from tests.factories import make_person


def test_a_key_opens_its_scopes_and_its_secret_is_not_stored(session: Session) -> None:
    key, secret = create_key(session, make_person(session), "app")
    assert secret.startswith("dk-")
    assert len(secret) >= 43
    assert secret not in {str(value) for value in vars(key).values()}
    assert key.prefix == secret[:8]
    assert authenticate(session, secret, "chat").key_id == key.id
    assert authenticate(session, f"Bearer {secret}", "feedback").key_id == key.id


def test_unknown_expired_revoked_and_inactive_are_refused(session: Session) -> None:
    person = make_person(session)
    _, expired = create_key(session, person, "old", expires_at=utcnow() - dt.timedelta(seconds=1))
    revoked_key, revoked = create_key(session, person, "revoked")
    revoke_key(session, revoked_key.id)
    for bearer in ("", "dk-unknown", "Bearer ", expired, revoked, revoked_key.key_sha256):
        with pytest.raises(Unauthenticated):
            authenticate(session, bearer, "chat")
    _, secret = create_key(session, person, "good", expires_at=utcnow() + dt.timedelta(hours=1))
    authenticate(session, secret, "chat")
    person.active = False
    session.flush()
    with pytest.raises(Unauthenticated):
        authenticate(session, secret, "chat")


def test_a_missing_scope_is_forbidden(session: Session) -> None:
    _, secret = create_key(session, make_person(session), "reader", scopes="chat")
    with pytest.raises(Forbidden, match="feedback"):
        authenticate(session, secret, "feedback")
    for scopes in ("", "chat root"):
        with pytest.raises(InvalidInput, match="scopes"):
            create_key(session, make_person(session), "bad", scopes=scopes)


def test_revoking_twice_keeps_the_first_time(session: Session) -> None:
    key, _ = create_key(session, make_person(session), "app")
    at = revoke_key(session, key.id).revoked_at
    assert at is not None
    assert revoke_key(session, key.id).revoked_at == at
    with pytest.raises(NotFound):
        revoke_key(session, 999)


def test_a_persons_keys_come_in_pages(session: Session) -> None:
    person, other = make_person(session), make_person(session)
    made = [create_key(session, person, f"key {n}")[0].id for n in range(PAGE + 3)]
    create_key(session, other, "another's")
    first, before = keys_of(session, person.id)
    rest, end = keys_of(session, person.id, before)
    assert [key.id for key in first + rest] == made[::-1]
    assert (len(first), end) == (PAGE, None)
