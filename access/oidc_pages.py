"""Signing in through an OpenID Connect provider: to it, back from it, and what to say when that fails.

One flow at a time is kept in a browser's session cookie: state, nonce, PKCE verifier, and what it is for: to sign in,
to accept an invitation, or to link an account. Linking begins with a form, so that no other site can begin it.
"""

from typing import Any, cast

from flask import Blueprint, Flask, current_app, flash, redirect, render_template, request, session, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access.identities import accept_invitation, link, sign_in
from access.invitations import find_open, role_of
from access.linked import unlink
from access.models import Person
from access.oidc import Claims, Provider
from access.views import current_person, require_role, start_session
from core.errors import DunnockError, NotFound, Unauthenticated
from core.language import gettext as _
from core.web import local_path, public_url, runtime

FLOW = "oidc_flow"

blueprint = Blueprint("oidc", __name__)


def install(app: Flask) -> None:
    """Make the provider of the settings known to an app, and to its templates as `oidc_label`; None where there is none."""
    settings = app.extensions["dunnock"].settings.oidc
    app.extensions["dunnock_oidc"] = Provider(settings) if settings.issuer else None
    label = settings.label if settings.issuer else None
    app.context_processor(lambda: {"oidc_label": label})


@blueprint.get("/sign-in/oidc")
def start() -> Response | tuple[str, int]:
    """To the provider; `next` is a path of this site to go on to."""
    return _begin({"next": local_path(request.args.get("next"))})


@blueprint.get("/invitation/<token>/oidc")
def start_from_invitation(token: str) -> Response | tuple[str, int]:
    """To the provider, to accept an invitation with the identity there."""
    _provider()
    with runtime().db.read() as db:
        row = find_open(db, token)
        role_of(row)
    return _begin({"next": "/", "invitation": row.id})


@blueprint.post("/account/identities")
@require_role()
def start_linking() -> str | tuple[str, int]:
    """A page with the way to the provider, whose identity is then linked to the account."""
    try:
        url, flow = _provider().start(_redirect_uri())
    except DunnockError as error:
        return _failed(error)
    session[FLOW] = flow | {"next": url_for("account.show"), "link_to": current_person().id}
    return render_template("access/oidc_continue.html", url=url)


@blueprint.post("/account/identities/<int:identity_id>/unlink")
@require_role()
def remove(identity_id: int) -> Response:
    with runtime().db.session() as db:
        unlink(db, identity_id, current_person().id)
    flash(_("The identity is no longer linked."))
    return redirect(url_for("account.show"), 303)


@blueprint.get("/sign-in/oidc/callback")
def callback() -> Response | tuple[str, int]:
    """Where the provider sends people back to."""
    flow: dict[str, Any] | None = session.pop(FLOW, None)  # used up, whatever comes of it
    try:
        claims = _provider().finish(flow, request.args, _redirect_uri())
        with runtime().db.session() as db:
            _let_in(db, claims, cast("dict[str, Any]", flow))
    except NotFound:
        raise
    except DunnockError as error:
        return _failed(error)
    return redirect(local_path(cast("dict[str, Any]", flow)["next"]))


def _let_in(db: Session, claims: Claims, flow: dict[str, Any]) -> None:
    settings = runtime().settings.oidc
    if "link_to" in flow:
        if not current_user.is_authenticated or current_person().id != flow["link_to"]:
            raise Unauthenticated(_("you were signed out meanwhile; sign in and link again"), code="not_signed_in")
        row = link(db, claims, settings, flow["link_to"])
        flash(_("Linked. You can sign in as %(email)s at the provider from now on.", email=row.email or row.subject))
        return
    person: Person
    if "invitation" in flow:
        person = accept_invitation(db, claims, settings, flow["invitation"])
    else:
        person = sign_in(db, claims, settings)
    start_session(db, person, "oidc")


def _begin(purpose: dict[str, Any]) -> Response | tuple[str, int]:
    try:
        url, flow = _provider().start(_redirect_uri())
    except NotFound:
        raise
    except DunnockError as error:
        return _failed(error)
    session[FLOW] = flow | purpose
    return redirect(url)


def _failed(error: DunnockError) -> tuple[str, int]:
    return render_template("access/oidc_failed.html", message=error.message, code=error.code), error.status


def _provider() -> Provider:
    provider: Provider | None = current_app.extensions["dunnock_oidc"]
    if provider is None:
        raise NotFound(_("no sign-in provider is set up here (DUNNOCK_OIDC__ISSUER)"))
    return provider


def _redirect_uri() -> str:
    return public_url("oidc.callback")
