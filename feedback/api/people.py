"""`/api/v1/people`: who there is, what role they have, whether they may come in, and how they stand as annotators.

Reading, pausing and letting go on want the scope `manage`, as handing out tasks does. Whatever gives or takes access wants
`people`. Who may change whom is decided in `access.roster`, as for the pages: nobody changes themselves, a lead looks after
annotators and reviewers, and the last admin stays one. Nobody is made here: people come by invitation.
"""

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import select
from sqlalchemy.orm import Session

from access import roster
from access.callers import calling_manager, managers_body
from access.models import Person
from access.sessions import live_sessions
from core.body import parse_query
from core.openapi import operation
from core.web import runtime
from feedback.api.person_schemas import EndedAnswer, PersonBody, PersonDetail, PersonPage, StandingBody
from feedback.api.schemas import Page
from feedback.assignment.annotators import pause, resume
from feedback.models import Annotator

blueprint = Blueprint("api_people", __name__, url_prefix="/api/v1")

WORK, ACCESS = "manage", "people"
COLUMNS = ("id", "login", "role", "scripted", "active")


@blueprint.get("/people")
@operation("People", PersonPage, query=Page, scope=WORK)
def list_people() -> Response:
    """People by id, a page at a time, with how they stand as annotators."""
    query = parse_query(Page)
    wanted = select(Person, Annotator.standing).outerjoin(Annotator, Annotator.person_id == Person.id)
    with runtime().db.read() as session:
        calling_manager(session, WORK)
        found = session.execute(wanted.where(Person.id > query.after).order_by(Person.id).limit(query.limit + 1)).all()
    rows = [(row.Person, row.standing) for row in found[: query.limit]]
    after = rows[-1][0].id if len(found) > len(rows) else None
    return jsonify(data=[_row(person, standing) for person, standing in rows], next_after=after)


@blueprint.get("/people/<int:person_id>")
@operation("People", PersonDetail, scope=WORK)
def show(person_id: int) -> Response:
    """One person."""
    with runtime().db.read() as session:
        return jsonify(_detail(session, calling_manager(session, WORK), person_id))


@blueprint.patch("/people/<int:person_id>")
@operation("People", PersonDetail, body=PersonBody, scope=ACCESS, errors=(409,))
def change(person_id: int) -> Response:
    """Give a person another role, shut them out, or let them in again; all that is said, or nothing of it.

    Whoever is shut out is signed out at once, and their keys stop.
    """
    body = managers_body(PersonBody, ACCESS)
    with runtime().db.session() as session:
        actor = calling_manager(session, ACCESS)
        if body.role is not None:
            roster.change_role(session, actor, person_id, body.role)
        if body.active is not None:
            roster.set_active(session, actor, person_id, body.active)
        return jsonify(_detail(session, actor, person_id))


@blueprint.post("/people/<int:person_id>/sessions/end")
@operation("People", EndedAnswer, scope=ACCESS)
def end_sessions(person_id: int) -> Response:
    """Sign a person out of every browser. Their keys go on."""
    with runtime().db.session() as session:
        return jsonify(ended=roster.end_all_sessions(session, calling_manager(session, ACCESS), person_id))


@blueprint.post("/people/<int:person_id>/pause")
@operation("People", PersonDetail, body=StandingBody, scope=WORK)
def pause_annotator(person_id: int) -> Response:
    """Give an annotator no more tasks; of one who is paused already nothing changes."""
    return _set_standing(person_id, pause)


@blueprint.post("/people/<int:person_id>/resume")
@operation("People", PersonDetail, body=StandingBody, scope=WORK)
def resume_annotator(person_id: int) -> Response:
    """Let a warned or paused annotator go on; known answers that they missed do not count any more."""
    return _set_standing(person_id, resume)


def _set_standing(person_id: int, act: Callable[[Session, int, str, str], bool]) -> Response:
    body = managers_body(StandingBody, WORK)
    with runtime().db.session() as session:
        actor = calling_manager(session, WORK)
        act(session, person_id, actor.login, body.reason)
        return jsonify(_detail(session, actor, person_id))


def _row(person: Person, standing: str | None) -> dict[str, Any]:
    told = {name: getattr(person, name) for name in COLUMNS}
    return told | {"standing": standing or "good", "created_at": person.created_at.isoformat()}


def _detail(session: Session, actor: Person, person_id: int) -> dict[str, Any]:
    person = roster.find_person(session, person_id)
    annotator = session.get(Annotator, person_id)
    return _row(person, annotator.standing if annotator else None) | {
        "standing_why": annotator.standing_why if annotator else None,
        "sessions": len(live_sessions(session, person_id, runtime().settings)),
        "why_not": roster.why_not(actor, person),
    }
