"""Tenants: customers whose programs call the chat API, each with limits, a policy version and keys of its own.

A tenant has a lasting name, its key, and an account that its keys act as ("tenant:KEY"), which nobody signs in with: what
its users say is the account's, so all that is asked by person is apart from other tenants too. Whoever changes something
gives their login; every change is in the audit log. A tenant is paused, never removed.
"""

import datetime as dt
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, get_args

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.audit import record
from access.keys import PAGE, TENANT_SCOPES, create_key, find_key, keys_of, revoke_key
from access.limits import Terms
from access.models import ApiKey, Person, Tenant, TenantUsage
from access.names import TENANT
from core.db import utcnow
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext
from core.settings.serving import Consent

MAX_NAME, MAX_KEY, MAX_VERSION = 120, 60, 60
MAX_REQUESTS, MAX_TOKENS = 1_000_000, 10**15
USAGE_DAYS = 31
MAX_DAYS = 36_500
CONSENTS = get_args(Consent)


@dataclass(frozen=True)
class Agreed:
    """What a tenant is called and may take; None is no limit, and no pin.

    Attributes:
        policy_version: the name of the version that answers it. Whether there is one is for the caller to know.
        consent: what holds for calls that do not say what their words may be used for; None: as the settings have it.
        retention_days: how long texts are kept that nobody judged, 0 for ever; None: as the settings have it.
    """

    name: str
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    policy_version: str | None = None
    consent: str | None = None
    retention_days: int | None = None

    def checked(self) -> "Agreed":
        """The same with its name as it is stored.

        Raises:
            InvalidInput: the name is empty, too long or not printable, or a limit is out of range.
        """
        name = " ".join(unicodedata.normalize("NFC", self.name).split())
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise InvalidInput(
                gettext("a tenant has a name of 1 to %(most)s printable characters", most=MAX_NAME), param="name"
            )
        for field, most in (("requests_per_minute", MAX_REQUESTS), ("tokens_per_day", MAX_TOKENS)):
            _check_limit(field, getattr(self, field), most)
        if self.consent and self.consent not in CONSENTS:
            raise InvalidInput(
                gettext(
                    "the consent %(word)r is not known; it is one of %(choices)s",
                    word=self.consent[:40],
                    choices=", ".join(CONSENTS),
                ),
                param="consent",
            )
        if self.retention_days is not None and not 0 <= self.retention_days <= MAX_DAYS:
            raise InvalidInput(
                gettext("texts are kept for 0 (for ever) to %(most)s days", most=MAX_DAYS), param="retention_days"
            )
        return replace(self, name=name, policy_version=self.policy_version or None, consent=self.consent or None)

    @classmethod
    def of(cls, tenant: Tenant) -> "Agreed":
        """What holds for a tenant now."""
        return cls(**{field: getattr(tenant, field) for field in cls.__dataclass_fields__})


def create_tenant(session: Session, actor: str, agreed: Agreed, key: str = "") -> Tenant:
    """Make a tenant and the account of its keys.

    Args:
        actor: the login of who does it.
        key: its lasting name; made of its first name where it is left out.

    Raises:
        InvalidInput: see `Agreed.checked`; or the key has other characters than letters, digits and hyphens.
        Conflict: the key is taken.
    """
    agreed = agreed.checked()
    key = key.strip().casefold() or key_of(agreed.name)
    if not key or key != key_of(key):
        raise InvalidInput(
            gettext("the key %(key)r: use up to %(most)s letters, digits and hyphens", key=key, most=MAX_KEY),
            param="key",
        )
    tenant = Tenant(key=key, active=True, **vars(agreed))
    taken = Conflict(gettext("there is a tenant %(key)r already; choose another key", key=key), param="key")
    if session.scalar(select(Tenant.id).where(Tenant.key == key)) is not None:
        raise taken
    session.add(tenant)
    try:
        session.flush()
        session.add(Person(login=f"{TENANT}{key}", password_hash=None, role="annotator", tenant_id=tenant.id))
        session.flush()
    except IntegrityError as error:  # somebody else took it just now; the caller's transaction ends with it
        raise taken from error
    record(session, actor, "tenant.add", f"tenant:{tenant.id}", after={"key": key, **vars(agreed)})
    return tenant


def change_tenant(session: Session, actor: str, tenant_id: int, agreed: Agreed) -> Tenant:
    """Give a tenant another name, other limits or another pin; they hold from its next request on.

    Raises:
        NotFound: there is none.
        InvalidInput: see `Agreed.checked`.
    """
    tenant, agreed = find_tenant(session, tenant_id, lock=True), agreed.checked()
    before = vars(Agreed.of(tenant))
    changed = {field: value for field, value in vars(agreed).items() if value != before[field]}
    for field, value in changed.items():
        setattr(tenant, field, value)
    if changed:
        record(session, actor, "tenant.change", f"tenant:{tenant_id}", {f: before[f] for f in changed}, changed)
    session.flush()
    return tenant


def set_active(session: Session, actor: str, tenant_id: int, active: bool) -> Tenant:
    """Pause a tenant, whose keys then open nothing, or let it go on; the same again changes nothing.

    Raises:
        NotFound: there is none.
    """
    tenant = find_tenant(session, tenant_id, lock=True)
    if tenant.active != active:
        action = "tenant.resume" if active else "tenant.pause"
        record(session, actor, action, f"tenant:{tenant_id}", {"active": tenant.active}, {"active": active})
        tenant.active = active
        session.flush()
    return tenant


def find_tenant(session: Session, tenant_id: int, *, lock: bool = False) -> Tenant:
    """The tenant of this id.

    Raises:
        NotFound: there is none.
    """
    tenant = session.get(Tenant, tenant_id, with_for_update=lock, populate_existing=lock)
    if tenant is None:
        raise NotFound(gettext("there is no tenant %(tenant_id)s", tenant_id=tenant_id))
    return tenant


def terms_of(session: Session, tenant_id: int) -> Terms:
    """What holds for a tenant now.

    Raises:
        NotFound: there is none.
    """
    tenant = find_tenant(session, tenant_id)
    return Terms(
        tenant.id, tenant.key, tenant.requests_per_minute, tenant.tokens_per_day, tenant.policy_version, tenant.consent
    )


def tenant_id_of(session: Session, key: str | None) -> int | None:
    """The id of the tenant with this key; None for None, the house.

    Raises:
        InvalidInput: there is none.
    """
    if key is None:
        return None
    found = session.scalar(select(Tenant.id).where(Tenant.key == key))
    if found is None:
        raise InvalidInput(gettext("there is no tenant %(key)r here; make it first", key=key), param="tenant")
    return found


def list_tenants(session: Session, before: int | None = None) -> tuple[list[Tenant], int | None]:
    """A page of tenants, newest first, and the id that the next page goes on before, or None."""
    query = select(Tenant).order_by(Tenant.id.desc()).limit(PAGE + 1)
    if before is not None:
        query = query.where(Tenant.id < before)
    rows = list(session.scalars(query))
    return rows[:PAGE], rows[PAGE - 1].id if len(rows) > PAGE else None


def tenant_keys(session: Session, ids: Iterable[int | None]) -> dict[int, str]:
    """The keys of these tenants, by id; None, the house, has none. Where there is no other, nothing is asked."""
    wanted = {number for number in ids if number is not None}
    if not wanted:
        return {}
    return {row.id: row.key for row in session.execute(select(Tenant.id, Tenant.key).where(Tenant.id.in_(wanted)))}


def are_any(session: Session) -> bool:
    """Whether there are tenants at all."""
    return session.scalar(select(Tenant.id).limit(1)) is not None


# Keys of theirs -------------------------------------------------------------------------------------------------------


def make_key(
    session: Session,
    actor: str,
    tenant_id: int,
    name: str,
    scopes: str = " ".join(TENANT_SCOPES),
    expires_at: dt.datetime | None = None,
    requests_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key of a tenant, and its secret, which cannot be shown again.

    Raises:
        NotFound: there is no such tenant.
        InvalidInput: no name, a scope that is none for tenants, or a limit out of range.
    """
    _check_limit("requests_per_minute", requests_per_minute, MAX_REQUESTS)
    account = _account(session, tenant_id)
    key, secret = create_key(session, account, name, scopes, expires_at, requests_per_minute=requests_per_minute)
    after: dict[str, Any] = {"name": name, "scopes": key.scopes, "requests_per_minute": requests_per_minute}
    after |= {"tenant": find_tenant(session, tenant_id).key, "expires_at": expires_at and expires_at.isoformat()}
    record(session, actor, "key.add", f"api_key:{key.id}", after=after)
    return key, secret


def keys_of_tenant(session: Session, tenant_id: int, before: int | None = None) -> tuple[list[ApiKey], int | None]:
    """A page of a tenant's keys, as `access.keys.keys_of` has them.

    Raises:
        NotFound: there is no such tenant.
    """
    return keys_of(session, _account(session, tenant_id).id, before)


def revoke(session: Session, actor: str, tenant_id: int, key_id: int) -> ApiKey:
    """End a key of a tenant now; a second call changes nothing.

    Raises:
        NotFound: the tenant has no such key.
    """
    key = find_key(session, key_id)
    if key.tenant_id != tenant_id:
        raise NotFound(gettext("this tenant has no API key %(key_id)s", key_id=key_id))
    if key.revoked_at is None:
        record(session, actor, "key.revoke", f"api_key:{key.id}", after={"name": key.name})
    return revoke_key(session, key_id)


# What they take -------------------------------------------------------------------------------------------------------


def usage_of(session: Session, tenant_id: int, days: int = USAGE_DAYS) -> list[TenantUsage]:
    """What a tenant took on each of the last days on which it took anything, the newest first."""
    since = utcnow().date() - dt.timedelta(days=days - 1)
    query = select(TenantUsage).where(TenantUsage.tenant_id == tenant_id, TenantUsage.day >= since)
    return list(session.scalars(query.order_by(TenantUsage.day.desc())))


def usage_today(session: Session, tenant_ids: list[int]) -> dict[int, TenantUsage]:
    """What each of these tenants took today; who took nothing is left out."""
    query = select(TenantUsage).where(TenantUsage.tenant_id.in_(tenant_ids), TenantUsage.day == utcnow().date())
    return {row.tenant_id: row for row in session.scalars(query)}


def pinned(terms: Terms | None, model: str, public: str) -> str:
    """The model that a caller gets under the name that they ask for.

    Args:
        public: the name under which the active version is asked for, which is the pinned one for who has a pin.

    Raises:
        NotFound: the caller is pinned to a version, and asks for another by name.
    """
    pin = terms.policy_version if terms else None
    if pin is None or model == pin:
        return model
    if model != public:
        raise NotFound(
            gettext("the model %(model)r does not exist", model=model), code="model_not_found", param="model"
        )
    return pin


def key_of(name: str) -> str:
    """A lasting name made of a name: its letters and digits, words joined by hyphens."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "-", plain).strip("-")[:MAX_KEY].strip("-")


def _account(session: Session, tenant_id: int) -> Person:
    person = session.scalar(select(Person).where(Person.tenant_id == tenant_id))
    if person is None:
        raise NotFound(gettext("there is no tenant %(tenant_id)s", tenant_id=tenant_id))
    return person


def _check_limit(field: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise InvalidInput(
            gettext(
                "%(field)s is %(value)s; it is 1 to %(most)s, or empty for no limit",
                field=field,
                value=value,
                most=most,
            ),
            param=field,
        )
