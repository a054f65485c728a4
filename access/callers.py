"""Who calls an API: a program that shows a key, or a signed-in browser that sends its CSRF token as `X-CSRFToken`."""

from flask import current_app, request
from flask_login import current_user
from flask_wtf.csrf import validate_csrf
from sqlalchemy.orm import Session

from access.keys import authenticate
from access.models import Person
from core.errors import Forbidden, Unauthenticated
from core.web import runtime

MANAGERS = ("lead", "admin")


def caller_id(scope: str, session: Session | None = None) -> int | None:
    """The id of the person who asks; None for nobody, where the settings allow that.

    Args:
        scope: what the key must be good for.
        session: a transaction to look the key up in; one of its own when left out.

    Raises:
        Unauthenticated: no good key and nobody signed in.
        Forbidden: a key without this scope, or a browser session without its CSRF token.
    """
    bearer = request.headers.get("Authorization", "")
    if runtime().settings.api_auth == "required" and bearer:
        if session is not None:
            return authenticate(session, bearer, scope).person_id
        with runtime().db.read() as own:
            return authenticate(own, bearer, scope).person_id
    if current_user.is_authenticated:
        _check_csrf()
        return int(current_user.id)
    if runtime().settings.api_auth == "open":
        return None
    raise Unauthenticated("send an API key as `Authorization: Bearer …`; make one with `make key LOGIN=…`")


def calling_person_id(scope: str, session: Session | None = None) -> int:
    """As `caller_id`, where somebody must be named.

    Raises:
        Unauthenticated: also where the settings let nobody in.
    """
    found = caller_id(scope, session)
    if found is None:
        raise Unauthenticated(
            "this needs to know who you are: sign in, or send an API key as `Authorization: Bearer …`"
        )
    return found


def calling_manager(session: Session) -> Person:
    """The lead or admin who asks, by a key with the scope "manage" or a session; their role counts as it is now.

    Raises:
        Unauthenticated: nobody who can be named.
        Forbidden: a key without the scope, or a person who is neither.
    """
    person = session.get_one(Person, calling_person_id("manage", session))
    if person.role not in MANAGERS:
        raise Forbidden(f"this is for people with the role {' or '.join(MANAGERS)}; {person.login} is {person.role}")
    return person


def _check_csrf() -> None:
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(request.headers.get("X-CSRFToken"))
    except ValueError as error:  # WTForms' ValidationError is one
        raise Forbidden(f"X-CSRFToken: {error}; reload the page", code="csrf_failed") from error
