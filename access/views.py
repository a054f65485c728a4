"""Signing in and out, and who may see a page. In: login and password. Out: a signed session cookie.

`install(app)` once per app; then `@require_role("lead", "admin")` on a view, or `@require_role()` for anybody who
is signed in. `current_person()` is the one who asks. Admins may do whatever a role may.
"""

import hashlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from flask import Blueprint, Flask, flash, redirect, render_template, request, session, url_for
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from werkzeug.wrappers import Response

from access.audit import record
from access.models import Person
from access.people import check_password
from core.errors import Forbidden, Unauthenticated
from core.web import runtime

P = ParamSpec("P")
R = TypeVar("R")

SLOW_DOWN = "Too many attempts to sign in. Wait a minute, then try again."

blueprint = Blueprint("access", __name__, template_folder="pages")
_limiter = Limiter(get_remote_address, storage_uri="memory://")


class SignedInPerson(UserMixin):  # type: ignore[misc]  # Flask-Login has no types
    """The person behind a request, read from the database for it."""

    def __init__(self, person: Person) -> None:
        self.id = person.id
        self.login = person.login
        self.role = person.role
        self.scripted = person.scripted
        # A new password ends every session that was opened with the old one.
        self._session_id = f"{person.id}:{hashlib.sha256((person.password_hash or '').encode()).hexdigest()[:16]}"

    def get_id(self) -> str:
        """What the session cookie holds."""
        return self._session_id

    def may(self, *roles: str) -> bool:
        """Whether one of the roles is theirs; an admin has them all."""
        return not roles or self.role in roles or self.role == "admin"


def install(app: Flask) -> None:
    """Put sign-in into an app. A session that moves to another address or browser is ended."""
    login_manager = LoginManager()
    login_manager.session_protection = "strong"
    login_manager.user_loader(_load_person)
    login_manager.unauthorized_handler(_ask_to_sign_in)
    login_manager.init_app(app)
    _limiter.init_app(app)


def current_person() -> SignedInPerson:
    """The signed-in person of this request.

    Raises:
        Unauthenticated: nobody is signed in.
    """
    if not current_user.is_authenticated:
        raise Unauthenticated("sign in first", code="not_signed_in")
    return cast(SignedInPerson, current_user)


def require_role(*roles: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of views: let in people of these roles and admins; without roles, everybody who is signed in."""

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if not current_user.is_authenticated:
                return cast(R, _ask_to_sign_in())
            if not current_person().may(*roles):
                raise Forbidden(f"this is for people with the role {' or '.join(roles)}; ask an admin for it")
            return view(*args, **kwargs)

        return guarded

    return decorate


@blueprint.get("/sign-in")
def sign_in_form() -> Response | str:
    if current_user.is_authenticated:
        return redirect(_local_path(request.args.get("next")))
    return render_template("access/sign_in.html", next=_local_path(request.args.get("next")), login="")


@blueprint.post("/sign-in")
@_limiter.limit("60/minute", error_message=SLOW_DOWN)
@_limiter.limit("10/minute", key_func=lambda: f"{_login()}|{get_remote_address()}", error_message=SLOW_DOWN)
def sign_in() -> Response | tuple[str, int]:
    target = _local_path(request.form.get("next"))
    try:
        with runtime().db.read() as db:  # hashing takes a while; no write lock is held meanwhile
            person = check_password(db, _login(), request.form.get("password", ""))
    except Unauthenticated as error:
        flash(error.message, "error")
        return render_template("access/sign_in.html", next=target, login=_login()), 401
    with runtime().db.session() as db:
        record(db, person.login, "session.sign_in", f"person:{person.id}")
    session.clear()  # nothing of the visitor's session, its CSRF token included, lives on
    login_user(SignedInPerson(person))
    return redirect(target)


@blueprint.post("/sign-out")
def sign_out() -> Response:
    logout_user()
    session.clear()
    return redirect(url_for("access.sign_in_form"))


def _login() -> str:
    return request.form.get("login", "").strip()[:120]


def _load_person(session_id: str) -> SignedInPerson | None:
    number, _, _ = session_id.partition(":")
    if not number.isdecimal():
        return None
    with runtime().db.read() as db:
        person = db.get(Person, int(number))
    if person is None or not person.active:
        return None
    signed_in = SignedInPerson(person)
    return signed_in if signed_in.get_id() == session_id else None


def _ask_to_sign_in() -> Response:
    if request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json":
        raise Unauthenticated("you are signed out; sign in again in another tab", code="not_signed_in")
    target = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("access.sign_in_form", next=target))


def _local_path(target: str | None) -> str:
    """`target` if it is a path of this site, else "/": a link must not send people elsewhere after sign-in."""
    if not target or not target.startswith("/") or target[1:2] in ("/", "\\") or not target.isprintable():
        return "/"
    parts = urlsplit(target)
    return "/" if parts.scheme or parts.netloc or "\\" in target else target
