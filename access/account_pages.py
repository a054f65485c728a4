"""One's own account: password, sessions, linked identities, API keys. And everybody's keys, for admins."""

import datetime as dt

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from access.audit import record
from access.keys import create_key, find_key, keys_of, list_keys, revoke_key, revoke_keys, scopes_of
from access.linked import identities_of
from access.models import Person
from access.paging import before_id
from access.people import set_password
from access.sessions import end_session, end_sessions, live_sessions
from access.views import check_throttled, current_person, require_role, start_session
from core.db import utcnow
from core.errors import InvalidInput, NotFound, TooManyRequests, Unauthenticated
from core.language import gettext as _
from core.web import runtime

KEY_DAYS = (30, 90, 365, 0)  # 0: no expiry

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
@require_role()
def show() -> str:
    me = current_person()
    with runtime().db.read() as db:
        keys, older_keys = keys_of(db, me.id, before_id())
        return render_template(
            "access/account.html",
            person=db.get_one(Person, me.id),
            sessions=live_sessions(db, me.id, runtime().settings),
            here=me.session_record_id,
            identities=identities_of(db, me.id),
            keys=keys,
            older_keys=older_keys,
            scopes=scopes_of(me.role),
            key_days=KEY_DAYS,
        )


@blueprint.post("/account/password")
@require_role()
def change_password() -> Response:
    """The old password is asked for; every other session ends, and this one goes on under a new token. Keys end if that is
    ticked."""
    me, new = current_person(), request.form.get("new", "")
    try:
        if new != request.form.get("again", ""):
            raise InvalidInput(_("The two passwords are not the same."), param="again")
        check_throttled(me.login, request.form.get("old", ""))
        with runtime().db.session() as db:
            person = db.get_one(Person, me.id)
            set_password(person, new)
            ended = end_sessions(db, me.id)
            keys = revoke_keys(db, me.login, me.id) if request.form.get("keys") else 0
            record(db, me.login, "person.password", f"person:{me.id}", after={"ended": ended, "keys": keys})
            start_session(db, person, "password")
    except Unauthenticated:
        flash(_("The old password is not right. Nothing was changed."), "error")
    except (InvalidInput, TooManyRequests) as error:
        flash(error.message, "error")
    else:
        flash(_("Your password is changed. Other browsers are signed out."))
    return _back()


@blueprint.post("/account/sessions/<int:session_id>/end")
@require_role()
def end_one(session_id: int) -> Response:
    me = current_person()
    with runtime().db.session() as db:
        row = end_session(db, session_id, me.id)
        record(db, me.login, "session.end", f"person:{me.id}", after={"session": row.id})
    flash(_("That browser is signed out."))
    return _back()


@blueprint.post("/account/sessions/end")
@require_role()
def end_others() -> Response:
    me = current_person()
    with runtime().db.session() as db:
        n = end_sessions(db, me.id, but=me.session_record_id)
        record(db, me.login, "session.end", f"person:{me.id}", after={"ended": n})
    flash(_("All other browsers are signed out (%(n)s).", n=n))
    return _back()


@blueprint.post("/account/keys")
@require_role()
def make_key() -> Response | str:
    me, scopes = current_person(), request.form.getlist("scopes")
    try:
        if not set(scopes) <= set(scopes_of(me.role)):
            raise InvalidInput(_("Not all of these scopes are yours to give."), param="scopes")
        with runtime().db.session() as db:
            person = db.get_one(Person, me.id)
            name = request.form.get("name", "").strip()
            key, secret = create_key(db, person, name, " ".join(scopes), _expiry())
            after = {"name": name, "scopes": key.scopes, "expires_at": key.expires_at and key.expires_at.isoformat()}
            record(db, me.login, "key.add", f"api_key:{key.id}", after=after)
    except InvalidInput as error:
        flash(error.message, "error")
        return _back()
    return render_template("access/key.html", key=key, secret=secret)


@blueprint.post("/account/keys/<int:key_id>/revoke")
@require_role()
def revoke_own_key(key_id: int) -> Response:
    with runtime().db.read() as db:
        if find_key(db, key_id).person_id != current_person().id:
            raise NotFound(_("you have no API key %(key_id)s", key_id=key_id))
    _revoke(key_id)
    flash(_("The key no longer works."))
    return _back()


@blueprint.get("/keys")
@require_role("admin")
def all_keys() -> str:
    with runtime().db.read() as db:
        rows, older = list_keys(db, before_id())
    return render_template("access/keys.html", rows=rows, older=older)


@blueprint.post("/keys/<int:key_id>/revoke")
@require_role("admin")
def revoke_any_key(key_id: int) -> Response:
    _revoke(key_id)
    flash(_("The key no longer works."))
    return redirect(url_for("account.all_keys"), 303)


def _revoke(key_id: int) -> None:
    with runtime().db.session() as db:
        key = find_key(db, key_id)
        if key.revoked_at is None:
            record(db, current_person().login, "key.revoke", f"api_key:{key.id}", after={"name": key.name})
        revoke_key(db, key_id)


def _expiry() -> dt.datetime | None:
    days = request.form.get("days", type=int)
    if days not in KEY_DAYS:
        raise InvalidInput(_("Choose how long the key is good for."), param="days")
    return utcnow() + dt.timedelta(days=days) if days else None


def _back() -> Response:
    return redirect(url_for("account.show"), 303)
