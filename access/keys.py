"""API keys for programs: shown once when made, kept as a sha256, checked on every call."""

import datetime as dt
import hashlib
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import ApiKey, Person
from core.db import utcnow
from core.errors import Forbidden, InvalidInput, NotFound, Unauthenticated

SCOPES = ("chat", "feedback", "annotate", "manage")


def create_key(
    session: Session,
    person: Person,
    name: str,
    scopes: str = "chat feedback",
    expires_at: dt.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key for a person.

    Returns:
        The row and the secret, which is not stored and cannot be shown again.

    Raises:
        InvalidInput: no name, or a scope that does not exist.
    """
    wanted = scopes.split()
    unknown = sorted(set(wanted) - set(SCOPES))
    if unknown or not wanted:
        raise InvalidInput(f"scopes {scopes!r}: use one or more of {', '.join(SCOPES)}", param="scopes")
    if not 1 <= len(name) <= 120:
        raise InvalidInput("a key needs a name of 1 to 120 characters", param="name")
    secret = "dk-" + secrets.token_urlsafe(32)
    key = ApiKey(
        name=name,
        person_id=person.id,
        prefix=secret[:8],
        key_sha256=_sha256(secret),
        scopes=" ".join(wanted),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def authenticate(session: Session, bearer: str, scope: str) -> ApiKey:
    """The key that `bearer` (with or without the word "Bearer") is, if it may be used for `scope`.

    Raises:
        Unauthenticated: unknown, expired or revoked, or its person is no longer active.
        Forbidden: the key is good, but not for this scope.
    """
    secret = bearer.strip().removeprefix("Bearer ").strip()
    row = session.execute(
        select(ApiKey, Person.active)
        .join(Person, Person.id == ApiKey.person_id)
        .where(ApiKey.key_sha256 == _sha256(secret))
    ).one_or_none()
    if row is None or row.ApiKey.revoked_at is not None or not row.active:
        raise Unauthenticated("this API key is not valid; make one with `key-add` and send it as a Bearer token")
    key: ApiKey = row.ApiKey
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise Unauthenticated(f"the API key {key.prefix}… expired on {key.expires_at:%Y-%m-%d}; make a new one")
    if scope not in key.scopes.split():
        raise Forbidden(f"the API key {key.prefix}… has the scopes {key.scopes!r}; this call needs {scope!r}")
    return key


def revoke_key(session: Session, key_id: int) -> ApiKey:
    """End a key now; a second call changes nothing.

    Raises:
        NotFound: no such key.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound(f"there is no API key {key_id}")
    key.revoked_at = key.revoked_at or utcnow()
    session.flush()
    return key


def _sha256(secret: str) -> str:
    # The secret has 256 random bits, so a plain hash is enough and keeps the check to one index look-up.
    return hashlib.sha256(secret.encode()).hexdigest()
