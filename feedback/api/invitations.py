"""`/api/v1/invitations`: links that let somebody new in, with the scope `people`.

For which roles, and by whom they are revoked, is decided in `access.invitations`, as for the pages. Links for a new password are
listed and revoked here and made in the page only: a key that makes them could take an account over.
"""

from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy.orm import Session

from access import invitations
from access.callers import calling_manager, managers_body
from access.models import Invitation, Person
from core.body import parse_query
from core.openapi import operation
from core.web import public_url, runtime
from feedback.api.person_schemas import InvitationAnswer, InvitationBody, InvitationMade, InvitationPage
from feedback.api.schemas import Page

blueprint = Blueprint("api_invitations", __name__, url_prefix="/api/v1")

SCOPE = "people"
COLUMNS = ("id", "role", "person_id", "note", "used_by_id")
TIMES = ("created_at", "expires_at", "used_at", "revoked_at")


@blueprint.get("/invitations")
@operation("Invitations", InvitationPage, query=Page, scope=SCOPE)
def list_invitations() -> Response:
    """Links by id, a page at a time, those that are over too; never the links themselves."""
    query = parse_query(Page)
    with runtime().db.read() as session:
        calling_manager(session, SCOPE)
        rows, after = invitations.invitations_after(session, query.after, query.limit)
    return jsonify(data=[_told(row, maker) for row, maker in rows], next_after=after)


@blueprint.post("/invitations")
@operation("Invitations", {201: InvitationMade}, body=InvitationBody, scope=SCOPE)
def invite() -> tuple[Response, int]:
    """Make a link for somebody new, with a role that the caller may give. A call that is sent again makes another link."""
    body = managers_body(InvitationBody, SCOPE)
    with runtime().db.session() as session:
        actor = calling_manager(session, SCOPE)
        row, token = invitations.invite(session, actor, body.role, body.note, runtime().settings.invitation_s)
        link = public_url("people.open_invitation", token=token)
        return jsonify(_told(row, actor.login) | {"token": token, "link": link}), 201


@blueprint.post("/invitations/<int:invitation_id>/revoke")
@operation("Invitations", InvitationAnswer, scope=SCOPE)
def revoke(invitation_id: int) -> Response:
    """Make a link void; one that is over already stays as it is."""
    with runtime().db.session() as session:
        row = invitations.revoke(session, calling_manager(session, SCOPE), invitation_id)
        return jsonify(_told(row, _maker(session, row)))


def _maker(session: Session, row: Invitation) -> str:
    return session.get_one(Person, row.made_by_id).login


def _told(row: Invitation, made_by: str) -> dict[str, Any]:
    times = {name: getattr(row, name) for name in TIMES}
    return (
        {name: getattr(row, name) for name in COLUMNS}
        | {name: time and time.isoformat() for name, time in times.items()}
        | {"state": invitations.state_of(row), "made_by": made_by}
    )
