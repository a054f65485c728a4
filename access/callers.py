"""Who calls an API: a program that shows a key, or a signed-in browser that sends its CSRF token as `X-CSRFToken`."""

from flask import current_app, request
from flask_login import current_user
from flask_wtf.csrf import validate_csrf
from sqlalchemy.orm import Session

from access.keys import authenticate
from access.people import LockedPerson, lock_person
from core.errors import Forbidden, Unauthenticated
from core.web import runtime


def caller_id(scope: str) -> int | None:
    """The id of the person who asks; None for nobody, where the settings allow that.

    Args:
        scope: what the key must be good for.

    Raises:
        Unauthenticated: no good key and nobody signed in.
        Forbidden: a key without this scope, or a browser session without its CSRF token.
    """
    if bearer := _bearer():
        with runtime().db.read() as session:
            return authenticate(session, bearer, scope).person_id
    return _browser_id()


def lock_caller(scope: str, session: Session) -> LockedPerson:
    """The person who asks, found and locked in this transaction; see `access.people.lock_person`.

    Raises:
        Unauthenticated: as `caller_id`, and also where the settings let nobody in.
        Forbidden: as `caller_id`.
    """
    if bearer := _bearer():
        found = authenticate(session, bearer, scope, lock=True)
        return LockedPerson(found.person_id, found.login, found.role, found.scripted)
    person_id = _browser_id()
    if person_id is None:
        raise Unauthenticated(
            "this needs to know who you are: sign in, or send an API key as `Authorization: Bearer …`"
        )
    return lock_person(session, person_id)


def _bearer() -> str:
    """The key that is shown; empty where none is, or none is asked for."""
    return request.headers.get("Authorization", "") if runtime().settings.api_auth == "required" else ""


def _browser_id() -> int | None:
    if current_user.is_authenticated:
        _check_csrf()
        return int(current_user.id)
    if runtime().settings.api_auth == "open":
        return None
    raise Unauthenticated("send an API key as `Authorization: Bearer …`; make one with `make key LOGIN=…`")


def _check_csrf() -> None:
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(request.headers.get("X-CSRFToken"))
    except ValueError as error:  # WTForms' ValidationError is one
        raise Forbidden(f"X-CSRFToken: {error}; reload the page", code="csrf_failed") from error
