"""The one place where parts meet: `create_app()` builds the web process (pages and `/v1`).

    uvicorn --factory app:create_gateway        the web process
    uvicorn --factory app:create_edge_gateway   that of an edge bundle: `/v1` and health alone
    python -m flask --app app …        its commands (see docs/commands.md)

Errors raised by the parts become HTTP here and nowhere else: the OpenAI error shape under `/v1`, RFC 9457
problem details for other programs, and a plain page for people.
"""

import asyncio
import gc
import logging
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from flask import Flask, Response, current_app, jsonify, render_template, request
from flask_wtf.csrf import CSRFError, CSRFProtect
from sqlalchemy.exc import DataError
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter, Map

import access.account_pages
import access.audit_pages
import access.oidc_pages
import access.people_pages
import access.views
import commands.cli
import console.quality_views
import console.reward_views
import console.rule_guard
import console.system_prompts
import console.tenant_api
import console.tenants
import console.views
import feedback.api.annotation
import feedback.api.docs
import feedback.api.invitations
import feedback.api.judgments
import feedback.api.people
import feedback.api.rules
import feedback.api.tasks
import feedback.rules.pages
import feedback.views
import feedback.webhooks.views
import serving.api
import serving.health
import serving.metrics
import serving.views
from core import language, logs
from core.db import MAX_ID, Database
from core.errors import DunnockError, RateLimited, openai_error
from core.language import N_, gettext
from core.settings import Settings, get_settings
from core.web import Runtime, runtime
from serving import observing
from serving.chat import close_chat
from serving.deferred import Gateway

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PERMISSIONS_POLICY = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer", "autoplay", "browsing-topics", "camera", "display-capture",
        "geolocation", "gyroscope", "hid", "magnetometer", "microphone", "midi", "payment", "serial", "usb",
    )
)  # fmt: skip
HSTS = f"max-age={365 * 24 * 3600}"
STALE_FORM = N_(
    "This form is no longer good: its CSRF token is missing or old. Go back, reload the page, send it again."
)
WRONG_HOST = N_("Dunnock is not at this host name (DUNNOCK_PUBLIC_URL). Use the address that you were given.")
HTTP_WORDS = {
    404: N_("There is no page at this address. The link may be old, or what it led to was removed."),
    405: N_("This address does not take what was sent to it. Go back and use the page's own buttons."),
    413: N_("What was sent is too large. Send less at a time."),
}
"""What pages say of errors that no part of ours raised; programs get the framework's words."""

log = logging.getLogger("dunnock")


def create_app(settings: Settings | None = None, db: Database | None = None, *, pages: bool = True) -> Flask:
    """Build the web app. It loads no model and starts in about a second.

    Args:
        pages: whether people are to use it; otherwise it has `/v1` and the probes of its health, and nothing else.
    """
    settings = settings or get_settings()
    app = Flask(__name__, template_folder="pages", static_folder="pages/static" if pages else None)
    production, n = settings.env == "production", settings.trusted_proxies
    if n:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=n, x_proto=n, x_host=n)  # type: ignore[method-assign]
    app.config.update(
        SECRET_KEY=settings.session_secret(),
        # Browsers take a name with this prefix from this very host only, over HTTPS, for all paths.
        SESSION_COOKIE_NAME="__Host-dunnock" if production else "dunnock",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=production,
        TRUSTED_HOSTS=settings.trusted_hosts,
        MAX_CONTENT_LENGTH=4 * 1024 * 1024,
        WTF_CSRF_TIME_LIMIT=None,
        PAGES=pages,
    )
    log.setLevel(settings.log_level)
    app.extensions["dunnock"] = Runtime(settings, db or Database(settings.db_url))

    app.url_map.converters["int"] = _Id
    observing.install(app, settings)
    csrf = CSRFProtect(app)
    language.install(app, pages=pages)
    access.views.install(app)
    app.register_blueprint(serving.health.blueprint)
    app.register_blueprint(serving.api.blueprint)
    csrf.exempt(serving.api.blueprint)
    if pages:
        _install_pages(app, csrf)
    commands.cli.install(app)

    app.register_error_handler(DunnockError, _domain_error)
    app.register_error_handler(CSRFError, _http_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(RecursionError, _nested_too_deep)
    app.register_error_handler(DataError, _beyond_the_database)
    app.register_error_handler(Exception, _unexpected_error)
    app.after_request(_security_headers)
    return app


def _install_pages(app: Flask, csrf: CSRFProtect) -> None:
    """All that people use, and the programs that manage it."""
    access.oidc_pages.install(app)
    app.register_blueprint(access.views.blueprint)
    app.register_blueprint(access.oidc_pages.blueprint)
    app.register_blueprint(access.people_pages.blueprint)
    app.register_blueprint(access.account_pages.blueprint)
    app.register_blueprint(access.audit_pages.blueprint)
    app.register_blueprint(feedback.views.blueprint)
    app.register_blueprint(feedback.rules.pages.blueprint)
    app.register_blueprint(console.views.blueprint)
    app.register_blueprint(console.quality_views.blueprint)
    app.register_blueprint(console.reward_views.blueprint)
    app.register_blueprint(console.tenants.blueprint)
    app.register_blueprint(console.system_prompts.blueprint)
    app.register_blueprint(console.rule_guard.blueprint)
    app.register_blueprint(serving.views.blueprint)
    app.register_blueprint(serving.metrics.blueprint)
    app.register_blueprint(feedback.api.docs.blueprint)
    app.register_blueprint(feedback.webhooks.views.blueprint)
    apis = (
        feedback.api.annotation, feedback.api.tasks, feedback.api.judgments, feedback.api.rules, feedback.api.people,
        feedback.api.invitations, console.tenant_api,
    )  # fmt: skip
    for api in apis:
        app.register_blueprint(api.blueprint)
        csrf.exempt(api.blueprint)  # programs bring a key; browser sessions are checked by the API itself


def create_edge_gateway() -> Gateway:
    """Build the web process of an edge bundle."""
    return create_gateway(pages=False)


def create_gateway(settings: Settings | None = None, db: Database | None = None, *, pages: bool = True) -> Gateway:
    """Build the web process as an ASGI app, in which open chat streams cost no threads."""
    settings = settings or get_settings()
    logs.configure(settings)
    app = create_app(settings, db, pages=pages)
    gc.collect()
    gc.freeze()  # looking through all that was imported, again and again, would stop every stream for a tenth of a second
    closing = [partial(close_chat, app), partial(asyncio.to_thread, observing.close, app)]
    return Gateway(app, settings.web_threads, closing)


class _Id(IntegerConverter):
    """A number in a URL, no larger than a database takes; beyond that nothing is found."""

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=MAX_ID)


def _nested_too_deep(_: RecursionError) -> tuple[Response | str, int]:
    return _answer(400, "invalid_request", gettext("What was sent is nested too deep to be read."), None)


def _beyond_the_database(_: DataError) -> tuple[Response | str, int]:
    """PostgreSQL refuses what SQLite takes: NUL in a text, a number that is larger than its column."""
    message = gettext("A text or a number in this request is none that can be stored.")
    return _answer(400, "invalid_request", message, None)


def _domain_error(error: DunnockError) -> tuple[Response | str, int, dict[str, str]]:
    if error.status >= 500:
        log.error("%s: %s", type(error).__name__, error.message)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, RateLimited) else {}
    return *_answer(error.status, error.code, error.message, error.param, error.members), headers


def _http_error(error: HTTPException) -> tuple[Response | str, int] | Response:
    if error.code is None or error.response is not None or error.code < 400:
        return error.get_response()  # type: ignore[return-value]  # a redirect, or a response made by the raiser
    if isinstance(error, SecurityError):  # no page can be drawn: its links would lead to that host
        said = gettext(WRONG_HOST)
        return _answer(400, "wrong_host", said, None) if _for_program() else Response(said, 400, mimetype="text/plain")
    known = STALE_FORM if isinstance(error, CSRFError) else HTTP_WORDS.get(error.code)
    said = gettext(known) if known and not _for_program() else error.description or error.name
    return _answer(error.code, error.name.lower().replace(" ", "_"), said, None)


def _unexpected_error(error: Exception) -> tuple[Response | str, int]:
    log.exception("unexpected error on %s %s", request.method, request.path)
    message = gettext("Something failed on our side; nothing was changed. It has been logged.")
    return _answer(500, "internal_error", message, None)


def _answer(
    status: int, code: str, message: str, param: str | None, members: Mapping[str, int | str] = MappingProxyType({})
) -> tuple[Response | str, int]:
    if request.path.startswith("/v1/"):
        error = DunnockError(message, code=code, param=param)
        error.status = status
        return jsonify(openai_error(error)[1]), status
    if _for_program():
        told = {"type": f"urn:dunnock:{code}", "title": code.replace("_", " "), "status": status, "detail": message}
        body = jsonify({**members, **told})
        body.mimetype = "application/problem+json"
        return body, status
    try:
        return render_template("error.html", status=status, message=message), status
    except Exception:
        log.exception("the error page failed too")
        return Response(f"{status}: {message}", status, mimetype="text/plain"), status


def _for_program() -> bool:
    """Whether the answer is read by a program, and not by a person in a page."""
    if request.path.startswith(("/v1/", "/api/")) or not current_app.config["PAGES"]:
        return True
    return request.accept_mimetypes.best_match(["text/html", "application/json"]) == "application/json"


def _security_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    response.headers.setdefault("Permissions-Policy", PERMISSIONS_POLICY)
    if request.is_secure and runtime().settings.env == "production":
        response.headers.setdefault("Strict-Transport-Security", HSTS)
    response.headers.setdefault("Cache-Control", "no-store" if request.endpoint != "static" else "public, max-age=3600")
    return response
