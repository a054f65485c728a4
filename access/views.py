"""Signing in and out, and who may see a page. In: login and password. Out: a session and its signed cookie.

`install(app)` once per app; then `@require_role("lead", "admin")` on a view, or `@require_role()` for anybody who
is signed in. `current_person()` is the one who asks. Admins may do whatever a role may.
"""

import hashlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from flask import (
    Blueprint,
    Flask,
    after_this_request,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access import last_use
from access.audit import record
from access.models import Person, SessionRecord
from access.names import SESSION_CHECK
from access.people import check_password
from access.sessions import MAX_ADDRESS, MAX_USER_AGENT, SEEN_EVERY, browser_of, end_session, find_session, open_session
from access.throttle import DEVICE_LIFE, admit, device_cookie, forgive
from core.db import utcnow
from core.errors import Forbidden, TooManyRequests, Unauthenticated
from core.language import gettext
from core.web import local_path, runtime

P = ParamSpec("P")
R = TypeVar("R")

blueprint = Blueprint("access", __name__, template_folder="pages")


class SignedInPerson(UserMixin):  # type: ignore[misc]  # Flask-Login has no types
    """The person behind a request, read from the database for it."""

    def __init__(self, person: Person, record: SessionRecord, token: str) -> None:
        self.id = person.id
        self.login = person.login
        self.role = person.role
        self.scripted = person.scripted
        self.session_record_id = record.id
        # A new password ends every session that was opened with the old one.
        self._session_id = f"{token}:{hashlib.sha256((person.password_hash or '').encode()).hexdigest()[:16]}"

    def get_id(self) -> str:
        """What the session cookie holds."""
        return self._session_id

    def may(self, *roles: str) -> bool:
        """Whether one of the roles is theirs; an admin has them all."""
        return not roles or self.role in roles or self.role == "admin"


def install(app: Flask) -> None:
    """Put sign-in into an app."""
    login_manager = LoginManager()
    login_manager.session_protection = None  # `_load_person` compares the browser with the row
    login_manager.user_loader(_load_person)
    login_manager.unauthorized_handler(_ask_to_sign_in)
    login_manager.init_app(app)
    last_use.install(app)


def current_person() -> SignedInPerson:
    """The signed-in person of this request.

    Raises:
        Unauthenticated: nobody is signed in.
    """
    if not current_user.is_authenticated:
        raise Unauthenticated(gettext("sign in first"), code="not_signed_in")
    return cast(SignedInPerson, current_user)


def require_role(*roles: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of views: let in people of these roles and admins; without roles, everybody who is signed in."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if not current_user.is_authenticated:
                return cast(R, _ask_to_sign_in())
            if not current_person().may(*roles):
                raise Forbidden(
                    gettext("this is for people with the role %(roles)s; ask an admin for it", roles=" / ".join(roles))
                )
            return view(*args, **kwargs)

        return guarded

    return decorate


@blueprint.app_context_processor
def _for_templates() -> dict[str, object]:
    return {"now": utcnow, "browser_of": browser_of}


@blueprint.get("/sign-in")
def sign_in_form() -> Response | str:
    if current_user.is_authenticated:
        return redirect(local_path(request.args.get("next")))
    return render_template("access/sign_in.html", next=local_path(request.args.get("next")), login="")


@blueprint.post("/sign-in")
def sign_in() -> Response | tuple[str, int]:
    target, db = local_path(request.form.get("next")), runtime().db
    try:
        person = check_throttled(_login(), request.form.get("password", ""))
    except (Unauthenticated, TooManyRequests) as error:
        flash(error.message, "error")
        return render_template("access/sign_in.html", next=target, login=_login()), error.status
    with db.session() as connection:
        start_session(connection, person, "password")
    return redirect(target)


@blueprint.post("/sign-out")
def sign_out() -> Response:
    if current_user.is_authenticated:
        with runtime().db.session() as db:
            end_session(db, current_person().session_record_id, current_person().id)
    logout_user()
    session.clear()
    return redirect(url_for("access.sign_in_form"))


def check_throttled(login: str, password: str) -> Person:
    """The person whose login and password these are; failures are counted as `access.throttle` says.

    Raises:
        Unauthenticated: always with the same words, whatever was wrong.
        TooManyRequests: too many failures lately.
    """
    db = runtime().db
    device = request.cookies.get(_device_cookie_name(), "")
    attempt = admit(db, current_app.config["SECRET_KEY"], login, request.remote_addr or "", device)
    with db.read() as connection:  # hashing takes a while; no write lock is held meanwhile
        person = check_password(connection, login, password)
    forgive(db, attempt)
    return person


def start_session(db: Session, person: Person, method: str) -> None:
    """Sign this browser in as a person. Nothing of the visitor's session, its CSRF token included, lives on.

    Args:
        db: the transaction that also carries whatever let them in.
        method: "password", "oidc" or "invitation".
    """
    address, user_agent = _from_where()
    row, token = open_session(db, person, method, address=address, user_agent=user_agent)
    record(db, person.login, "session.sign_in", f"person:{person.id}", after={"method": method, "session": row.id})
    session.clear()
    login_user(SignedInPerson(person, row, token))
    _remember_device(person.login)


def _remember_device(login: str) -> None:
    """Give the browser the mark by which it has tries of its own, whoever else guesses at this login."""
    name, config = _device_cookie_name(), current_app.config
    value = device_cookie(config["SECRET_KEY"], login, request.cookies.get(name, ""))

    @after_this_request
    def _mark(response: Response) -> Response:
        response.set_cookie(
            name, value, max_age=DEVICE_LIFE, secure=config["SESSION_COOKIE_SECURE"], httponly=True, samesite="Lax"
        )
        return response


def _device_cookie_name() -> str:
    return f"{current_app.config['SESSION_COOKIE_NAME']}-device"


def _login() -> str:
    return request.form.get("login", "").strip()[:120]


def _load_person(session_id: str) -> SignedInPerson | None:
    token, _, _ = session_id.partition(":")
    with runtime().db.read() as db:
        found = find_session(db, token, runtime().settings)
    if found is None:
        return None
    row, person = found
    signed_in = SignedInPerson(person, row, token)
    if signed_in.get_id() != session_id:
        return None
    if row.user_agent != _from_where()[1]:  # the address changes as people move between networks
        _end_moved(row, person)
        return None
    if utcnow() - row.last_seen_at >= SEEN_EVERY:
        last_use.session_seen(row.id)
    return signed_in


def _from_where() -> tuple[str, str]:
    """Address and browser of a request, as a session's row has them."""
    return (request.remote_addr or "")[:MAX_ADDRESS], request.headers.get("User-Agent", "")[:MAX_USER_AGENT]


def _end_moved(row: SessionRecord, person: Person) -> None:
    """End a session whose cookie came from another browser: it may be stolen, and who has it must not try again."""
    with runtime().db.session() as db:
        end_session(db, row.id, person.id)
        record(db, SESSION_CHECK, "session.end", f"person:{person.id}", after={"session": row.id, "why": "moved"})


def _ask_to_sign_in() -> Response:
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        raise Unauthenticated(gettext("you are signed out; sign in again in another tab"), code="not_signed_in")
    target = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("access.sign_in_form", next=target))
