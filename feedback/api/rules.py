"""`/api/v1/rules` and `/api/v1/people`: who judges, and by which rules.

Rules are read with the scope `annotate`, since judgments name their versions. Making and editing them belongs here too, as
`POST /rules` and `POST /rules/<slug>/versions`, once `feedback.rules` can.
"""

from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import func, select
from sqlalchemy.orm import contains_eager

from access.callers import calling_manager, calling_person_id
from access.models import Person
from core.body import parse_query
from core.errors import NotFound
from core.openapi import operation
from core.web import runtime
from feedback.api.schemas import Page, PersonPage, RuleAnswer, RuleList, RuleQuery
from feedback.models import Annotator, Rule, RuleVersion

blueprint = Blueprint("api_rules", __name__, url_prefix="/api/v1")

VERSIONS = select(RuleVersion).join(RuleVersion.rule).options(contains_eager(RuleVersion.rule))


@blueprint.get("/rules")
@operation("Rules", RuleList, query=RuleQuery, scope="annotate")
def list_rules() -> Response:
    """All rules in their newest version."""
    query = parse_query(RuleQuery)
    newest = select(func.max(RuleVersion.id)).group_by(RuleVersion.rule_id)
    wanted = VERSIONS.where(RuleVersion.id.in_(newest)).order_by(RuleVersion.rule_id)
    if query.active is not None:
        wanted = wanted.where(RuleVersion.active == query.active)
    with runtime().db.read() as session:
        calling_person_id("annotate", session)
        return jsonify(data=[_version(row) for row in session.scalars(wanted)])


@blueprint.get("/rules/<slug>")
@operation("Rules", RuleAnswer, scope="annotate", errors=(400, 404))
def show_rule(slug: str) -> Response:
    """One rule in all its versions, the newest first."""
    with runtime().db.read() as session:
        calling_person_id("annotate", session)
        versions = session.scalars(VERSIONS.where(Rule.slug == slug).order_by(RuleVersion.version.desc())).all()
    if not versions:
        raise NotFound(f"there is no rule {slug!r}")
    return jsonify(slug=slug, versions=[_version(row) for row in versions])


@blueprint.get("/people")
@operation("People", PersonPage, query=Page, scope="manage")
def list_people() -> Response:
    """People by id, a page at a time, with how they stand as annotators."""
    query = parse_query(Page)
    wanted = select(Person, Annotator.standing).outerjoin(Annotator, Annotator.person_id == Person.id)
    with runtime().db.read() as session:
        calling_manager(session)
        found = session.execute(wanted.where(Person.id > query.after).order_by(Person.id).limit(query.limit + 1)).all()
    rows = [(row.Person, row.standing or "good") for row in found[: query.limit]]
    after = rows[-1][0].id if len(found) > len(rows) else None
    return jsonify(data=[_person(person, standing) for person, standing in rows], next_after=after)


def _version(row: RuleVersion) -> dict[str, Any]:
    names = (
        "id", "version", "title", "category", "text", "refusal_text", "severity", "active", "kept_examples",
        "broken_examples",
    )  # fmt: skip
    told = {name: getattr(row, name) for name in names}
    return told | {"slug": row.rule.slug, "created_at": row.created_at.isoformat()}


def _person(person: Person, standing: str) -> dict[str, Any]:
    told = {name: getattr(person, name) for name in ("id", "login", "role", "scripted", "active")}
    return told | {"standing": standing, "created_at": person.created_at.isoformat()}
