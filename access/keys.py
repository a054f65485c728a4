"""API keys for programs: shown once when made, kept as a sha256, checked on every call."""

import datetime as dt
import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from access.audit import record
from access.limits import Terms
from access.models import ApiKey, Person, Tenant
from core.db import table_of, utcnow
from core.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from core.language import gettext

SCOPES = ("chat", "feedback", "annotate", "manage", "people")
TENANT_SCOPES = ("chat", "feedback")
"""All that a tenant's key can be good for."""
PAGE = 50


def create_key(
    session: Session,
    person: Person,
    name: str,
    scopes: str = "chat feedback",
    expires_at: dt.datetime | None = None,
    *,
    requests_per_minute: int | None = None,
    secret: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key for a person. A key of a tenant's account is the tenant's.

    Args:
        secret: one that was made elsewhere, at random; None for a new one.
        requests_per_minute: a limit of this key's own; None for none.

    Returns:
        The row and the secret, which is not stored and cannot be shown again.

    Raises:
        InvalidInput: no name, or a scope that does not exist or is none for tenants.
    """
    wanted, choices = scopes.split(), SCOPES if person.tenant_id is None else TENANT_SCOPES
    unknown = sorted(set(wanted) - set(choices))
    if unknown or not wanted:
        raise InvalidInput(
            gettext("scopes %(scopes)r: use one or more of %(choices)s", scopes=scopes, choices=", ".join(choices)),
            param="scopes",
        )
    if not 1 <= len(name) <= 120:
        raise InvalidInput(gettext("a key needs a name of 1 to 120 characters"), param="name")
    secret = secret or "dk-" + secrets.token_urlsafe(32)
    key = ApiKey(
        name=name,
        person_id=person.id,
        tenant_id=person.tenant_id,
        requests_per_minute=requests_per_minute,
        prefix=secret[:8],
        key_sha256=_sha256(secret),
        scopes=" ".join(wanted),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


@dataclass(frozen=True)
class Caller:
    """Who shows a good key.

    Attributes:
        requests_per_minute: the key's own limit; None for none.
        terms: of the tenant whose key it is; None for the house's own.
    """

    key_id: int
    person_id: int
    login: str
    role: str
    scripted: bool
    requests_per_minute: int | None = None
    terms: Terms | None = None


_KNOWN = (
    select(
        ApiKey.id, ApiKey.person_id, ApiKey.prefix, ApiKey.scopes, ApiKey.expires_at, ApiKey.revoked_at,
        ApiKey.requests_per_minute, ApiKey.tenant_id, Person.login, Person.role, Person.scripted, Person.active,
        Tenant.active.label("tenant_active"), Tenant.key.label("tenant_key"), Tenant.tokens_per_day,
        Tenant.requests_per_minute.label("tenant_requests_per_minute"), Tenant.policy_version, Tenant.consent,
    )
    .join(Person, Person.id == ApiKey.person_id)
    .outerjoin(Tenant, Tenant.id == ApiKey.tenant_id)
    .where(ApiKey.key_sha256 == bindparam("digest"))
)  # fmt: skip
_KNOWN_LOCKED = _KNOWN.with_for_update(key_share=True, of=table_of(Person))


def is_key(session: Session, secret: str) -> bool:
    """Whether a key with this secret was made, be it good still or not."""
    return session.scalar(select(ApiKey.id).where(ApiKey.key_sha256 == _sha256(secret))) is not None


def has_keys(session: Session, person: Person) -> bool:
    """Whether a key was ever made for this person."""
    return session.scalar(select(ApiKey.id).where(ApiKey.person_id == person.id).limit(1)) is not None


def authenticate(session: Session, bearer: str, scope: str, *, lock: bool = False) -> Caller:
    """Whose key `bearer` (with or without the word "Bearer") is, if it may be used for `scope`.

    Args:
        lock: hold the person's row as `access.people.lock_person` does.

    Raises:
        Unauthenticated: unknown, expired or revoked, or its person is no longer active.
        Forbidden: the key is good, but not for this scope, or its tenant is paused.
    """
    secret = bearer.strip().removeprefix("Bearer ").strip()
    statement = _KNOWN_LOCKED if lock else _KNOWN
    key = session.connection().execute(statement, {"digest": _sha256(secret)}).one_or_none()
    if key is None or key.revoked_at is not None or not key.active:
        raise Unauthenticated(
            gettext("this API key is not valid; make one with `key-add` and send it as a Bearer token")
        )
    if key.expires_at is not None and key.expires_at <= utcnow():
        raise Unauthenticated(
            gettext(
                "the API key %(prefix)s… expired on %(expires_at)s; make a new one",
                prefix=key.prefix,
                expires_at=f"{key.expires_at:%Y-%m-%d}",
            )
        )
    if scope not in key.scopes.split():
        raise Forbidden(
            gettext(
                "the API key %(prefix)s… has the scopes %(scopes)r; this call needs %(scope)r",
                prefix=key.prefix,
                scopes=key.scopes,
                scope=scope,
            )
        )
    terms = None
    if key.tenant_id is not None:
        if not key.tenant_active:
            raise Forbidden(gettext("this tenant is paused; ask who runs this service"), code="tenant_paused")
        limits = key.tenant_requests_per_minute, key.tokens_per_day
        terms = Terms(key.tenant_id, key.tenant_key, *limits, key.policy_version, key.consent)
    return Caller(key.id, key.person_id, key.login, key.role, key.scripted, key.requests_per_minute, terms)


def scopes_of(role: str) -> tuple[str, ...]:
    """The scopes that somebody with this role may give to their own keys. A new scope is for admins until it says here
    who else may have it."""
    return SCOPES if role in ("lead", "admin") else tuple(s for s in SCOPES if s in ("chat", "feedback", "annotate"))


def keys_of(session: Session, person_id: int, before: int | None = None) -> tuple[list[ApiKey], int | None]:
    """A page of a person's keys, newest first, the ended ones too, and the id that the next page goes on before, or None."""
    query = select(ApiKey).where(ApiKey.person_id == person_id).order_by(ApiKey.id.desc()).limit(PAGE + 1)
    if before is not None:
        query = query.where(ApiKey.id < before)
    rows = list(session.scalars(query).all())
    return rows[:PAGE], rows[PAGE - 1].id if len(rows) > PAGE else None


def list_keys(session: Session, before: int | None = None) -> tuple[list[tuple[ApiKey, Person]], int | None]:
    """A page of everybody's keys, newest first, and the id that the next page goes on before, or None."""
    query = select(ApiKey, Person).join(Person, Person.id == ApiKey.person_id)
    if before is not None:
        query = query.where(ApiKey.id < before)
    rows = [(key, person) for key, person in session.execute(query.order_by(ApiKey.id.desc()).limit(PAGE + 1))]
    return rows[:PAGE], rows[PAGE - 1][0].id if len(rows) > PAGE else None


def find_key(session: Session, key_id: int) -> ApiKey:
    """The key of this id.

    Raises:
        NotFound: there is none.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound(gettext("there is no API key %(key_id)s", key_id=key_id))
    return key


def revoke_key(session: Session, key_id: int) -> ApiKey:
    """End a key now; a second call changes nothing.

    Raises:
        NotFound: no such key.
    """
    key = find_key(session, key_id)
    key.revoked_at = key.revoked_at or utcnow()
    session.flush()
    return key


def revoke_keys(session: Session, actor: str, person_id: int) -> int:
    """End all keys of a person, each with an entry in the audit log.

    Returns:
        How many were ended.
    """
    rows = session.scalars(select(ApiKey).where(ApiKey.person_id == person_id, ApiKey.revoked_at.is_(None))).all()
    for key in rows:
        key.revoked_at = utcnow()
        record(session, actor, "key.revoke", f"api_key:{key.id}", after={"name": key.name, "why": "new password"})
    session.flush()
    return len(rows)


def _sha256(secret: str) -> str:
    # The secret has 256 random bits, so a plain hash is enough and keeps the check to one index look-up.
    return hashlib.sha256(secret.encode()).hexdigest()
