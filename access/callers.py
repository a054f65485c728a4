"""Who calls an API: a program that shows a key, or a signed-in browser that sends its CSRF token as `X-CSRFToken`."""

from contextlib import nullcontext
from dataclasses import dataclass

from flask import current_app, request
from flask_login import current_user
from flask_wtf.csrf import validate_csrf
from sqlalchemy.orm import Session

from access.audit import came_by_key
from access.keys import Caller, authenticate
from access.limits import Limit, Terms
from access.models import Person
from access.people import LockedPerson, lock_person
from core.body import Body, parse_body
from core.errors import Forbidden, Unauthenticated
from core.language import gettext
from core.web import runtime

MANAGERS = ("lead", "admin")


@dataclass(frozen=True)
class Asking:
    """Who asks the chat API, and under which terms.

    Attributes:
        person_id: the person, or the account of the tenant; None for nobody, where the settings allow that.
        terms: of the tenant whose key it is; None for the house: its people's keys and browsers.
        limits: of requests, those of the key and of its tenant.
    """

    person_id: int | None
    terms: Terms | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def tenant_id(self) -> int | None:
        """Whose conversations these are; None for the house."""
        return self.terms.tenant_id if self.terms else None


def asking(scope: str, session: Session | None = None) -> Asking:
    """Who asks, by one look-up in the database.

    Args:
        scope: what the key must be good for.
        session: of who has more to read; else one of its own is opened.

    Raises:
        Unauthenticated: no good key and nobody signed in.
        Forbidden: a key without this scope or of a paused tenant, or a browser session without its CSRF token.
    """
    per_person = runtime().settings.limits.requests_per_minute
    if bearer := _bearer():
        with nullcontext(session) if session is not None else runtime().db.read() as reading:
            caller = _known(authenticate(reading, bearer, scope))
        found = [Limit(f"key:{caller.key_id}", caller.requests_per_minute)]
        found += [caller.terms.pace if caller.terms else Limit(f"person:{caller.person_id}", per_person)]
        return Asking(caller.person_id, caller.terms, tuple(limit for limit in found if limit.requests_per_minute))
    person_id = _browser_id()
    own = Limit(f"person:{person_id}", per_person)
    return Asking(person_id, None, (own,) if own.requests_per_minute and person_id is not None else ())


def caller_id(scope: str) -> int | None:
    """The id of the person who asks; None for nobody, where the settings allow that.

    Raises:
        Unauthenticated, Forbidden: as `asking`.
    """
    return asking(scope).person_id


def lock_caller(scope: str, session: Session) -> LockedPerson:
    """The person who asks, found and locked in this transaction; see `access.people.lock_person`.

    Raises:
        Unauthenticated: as `caller_id`, and also where the settings let nobody in.
        Forbidden: as `caller_id`.
    """
    if bearer := _bearer():
        found = _known(authenticate(session, bearer, scope, lock=True))
        return LockedPerson(found.person_id, found.login, found.role, found.scripted)
    return lock_person(session, _named(_browser_id()))


def _known(caller: Caller) -> Caller:
    came_by_key(caller.key_id)
    return caller


def _bearer() -> str:
    """The key that is shown; empty where none is, or none is asked for."""
    return request.headers.get("Authorization", "") if runtime().settings.api_auth == "required" else ""


def _browser_id() -> int | None:
    if current_user.is_authenticated:
        _check_csrf()
        return int(current_user.id)
    if runtime().settings.api_auth == "open":
        return None
    raise Unauthenticated(gettext("send an API key as `Authorization: Bearer …`; make one with `make key LOGIN=…`"))


def calling_person_id(scope: str, session: Session) -> int:
    """The id of the person who asks, looked up in this transaction.

    Raises:
        Unauthenticated: as `caller_id`, and also where the settings let nobody in.
        Forbidden: as `caller_id`.
    """
    if bearer := _bearer():
        return _known(authenticate(session, bearer, scope)).person_id
    return _named(_browser_id())


def calling_manager(session: Session, scope: str = "manage") -> Person:
    """The lead or admin who asks, by a key with the scope or a session; their role counts as it is now. Whoever changes
    something asks in the transaction that changes it.

    Raises:
        Unauthenticated: nobody who can be named.
        Forbidden: a key without the scope, or a person who is neither.
    """
    person = session.get_one(Person, calling_person_id(scope, session))
    if person.role not in MANAGERS:
        raise Forbidden(
            gettext(
                "this is for people with the role %(roles)s; %(login)s is %(role)s",
                roles=" / ".join(MANAGERS),
                login=person.login,
                role=person.role,
            )
        )
    return person


def managers_body(kind: type[Body], scope: str = "manage") -> Body:
    """The request's body, which is not looked at before it is known that a lead or an admin sends it.

    Raises:
        Unauthenticated, Forbidden: as `calling_manager`.
        InvalidInput: as `parse_body`.
    """
    with runtime().db.read() as session:
        calling_manager(session, scope)
    return parse_body(kind)


def _named(person_id: int | None) -> int:
    if person_id is None:
        raise Unauthenticated(
            gettext("this needs to know who you are: sign in, or send an API key as `Authorization: Bearer …`")
        )
    return person_id


def _check_csrf() -> None:
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(request.headers.get("X-CSRFToken"))
    except ValueError as error:  # WTForms' ValidationError is one
        raise Forbidden(
            gettext("this page is no longer good; reload it (X-CSRFToken: %(error)s)", error=error), code="csrf_failed"
        ) from error
