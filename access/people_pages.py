"""People and invitations, for leads and admins; and the page that an invitation's link opens, for whoever has it.

Every change is a form; what may not be done is not offered, and refused all the same.
"""

from flask import Blueprint, flash, redirect, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from access import invitations, roster
from access.audit import Filters, entries
from access.keys import keys_of
from access.linked import identities_of
from access.models import ROLES, Invitation, Person
from access.paging import before_id
from access.roster import role_word
from access.sessions import live_sessions
from access.views import current_person, require_role, start_session
from core.errors import Conflict, InvalidInput
from core.language import gettext as _
from core.web import public_url, runtime

RECENT = 10

blueprint = Blueprint("people", __name__, static_folder="static", static_url_path="/static/access")


@blueprint.get("/people")
@require_role("lead")
def index() -> str:
    asked = {name: request.args.get(name, "").strip() for name in ("q", "role", "active")}
    if asked["role"] and asked["role"] not in ROLES:
        raise InvalidInput(
            _("role %(role)r is unknown; it is one of %(choices)s", role=asked["role"], choices=", ".join(ROLES)),
            param="role",
        )
    with runtime().db.read() as db:
        rows, after = roster.list_people(
            db,
            search=asked["q"],
            role=asked["role"],
            active={"yes": True, "no": False}.get(asked["active"]),
            after=request.args.get("after", ""),
        )
    return render_template(
        "access/people.html", rows=rows, after=after, asked=asked, roles=ROLES, me=current_person().id
    )


@blueprint.get("/people/<int:person_id>")
@require_role("lead")
def show(person_id: int) -> str:
    me, settings = current_person(), runtime().settings
    with runtime().db.read() as db:
        person = roster.find_person(db, person_id)
        return render_template(
            "access/person.html",
            person=person,
            why_not=roster.why_not(me, person),
            grantable=roster.grantable(me.role),
            sessions=live_sessions(db, person_id, settings),
            identities=identities_of(db, person_id),
            keys=keys_of(db, person_id)[0] if me.role == "admin" else None,
            entries=entries(db, Filters(subject=f"person:{person_id}"), limit=RECENT)[0],
        )


@blueprint.post("/people/<int:person_id>/role")
@require_role("lead")
def change_role(person_id: int) -> Response:
    with runtime().db.session() as db:
        person = roster.change_role(db, current_person(), person_id, request.form.get("role", ""))
    flash(_("%(login)s has the role %(role)s now.", login=person.login, role=role_word(person.role)))
    return _back(person_id)


@blueprint.post("/people/<int:person_id>/deactivate")
@require_role("lead")
def deactivate(person_id: int) -> Response:
    with runtime().db.session() as db:
        person = roster.set_active(db, current_person(), person_id, False)
    flash(_("%(login)s is signed out everywhere and cannot come in. What they did is kept.", login=person.login))
    return _back(person_id)


@blueprint.post("/people/<int:person_id>/activate")
@require_role("lead")
def activate(person_id: int) -> Response:
    with runtime().db.session() as db:
        person = roster.set_active(db, current_person(), person_id, True)
    flash(_("%(login)s can sign in again.", login=person.login))
    return _back(person_id)


@blueprint.post("/people/<int:person_id>/sessions/end")
@require_role("lead")
def end_sessions(person_id: int) -> Response:
    with runtime().db.session() as db:
        n = roster.end_all_sessions(db, current_person(), person_id)
    flash(_("%(n)s sessions were ended.", n=n))
    return _back(person_id)


@blueprint.post("/people/<int:person_id>/reset")
@require_role("lead")
def reset(person_id: int) -> str:
    with runtime().db.session() as db:
        row, token = invitations.make_reset(db, current_person(), person_id, runtime().settings.invitation_s)
        login = db.get_one(Person, person_id).login
    return _show_link(row, token, login)


@blueprint.get("/invitations")
@require_role("lead")
def list_invitations() -> str:
    me = current_person()
    with runtime().db.read() as db:
        rows, older = invitations.list_invitations(db, before_id())
        logins = _logins(db, [row for row, _maker in rows])
    return render_template(
        "access/invitations.html",
        rows=rows,
        older=older,
        logins=logins,
        state_of=invitations.state_of,
        grantable=roster.grantable(me.role),
        life_days=f"{runtime().settings.invitation_s / 86400:.3g}",
    )


@blueprint.post("/invitations")
@require_role("lead")
def invite() -> str:
    role, note = request.form.get("role", ""), request.form.get("note", "")
    with runtime().db.session() as db:
        row, token = invitations.invite(db, current_person(), role, note, runtime().settings.invitation_s)
    return _show_link(row, token, None)


@blueprint.post("/invitations/<int:invitation_id>/revoke")
@require_role("lead")
def revoke(invitation_id: int) -> Response:
    with runtime().db.session() as db:
        invitations.revoke(db, current_person(), invitation_id)
    flash(_("The link no longer works."))
    return redirect(url_for("people.list_invitations"), 303)


@blueprint.get("/invitation/<token>")
def open_invitation(token: str) -> str:
    """The form that a link opens; opening it does not use it up."""
    with runtime().db.read() as db:
        return _form(db, invitations.find_open(db, token), token, "")


@blueprint.post("/invitation/<token>")
def accept(token: str) -> Response | tuple[str, int]:
    login, password = request.form.get("login", "").strip(), request.form.get("password", "")
    try:
        with runtime().db.session() as db:
            row = invitations.find_open(db, token)
            if password != request.form.get("again", ""):
                raise InvalidInput(_("The two passwords are not the same."), param="again")
            person = invitations.accept(db, row, login, password)
            start_session(db, person, "invitation")
    except (InvalidInput, Conflict) as error:
        flash(error.message, "error")
        with runtime().db.read() as db:
            return _form(db, invitations.find_open(db, token), token, login), error.status
    return redirect("/", 303)


def _form(db: Session, row: Invitation, token: str, login: str) -> str:
    person = db.get(Person, row.person_id) if row.person_id else None
    return render_template("access/invitation.html", invitation=row, token=token, person=person, login=login)


def _show_link(row: Invitation, token: str, login: str | None) -> str:
    url = public_url("people.open_invitation", token=token)
    return render_template("access/link.html", invitation=row, url=url, login=login)


def _logins(db: Session, rows: list[Invitation]) -> dict[int, str]:
    """The logins of the people that links are for or were used by, by id."""
    ids = {i for row in rows for i in (row.person_id, row.used_by_id) if i is not None}
    return {i: person.login for i in ids if (person := db.get(Person, i)) is not None}


def _back(person_id: int) -> Response:
    return redirect(url_for("people.show", person_id=person_id), 303)
