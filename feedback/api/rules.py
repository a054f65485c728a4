"""`/api/v1/rules`: reading, making, editing, retiring and comparing rules.

Rules are read with the scope `annotate`, since judgments name their versions; leads and admins write them with `manage`. What
may be written is what `feedback.rules` takes from the page too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy.orm import Session

from access.callers import calling_manager, calling_person_id, managers_body
from access.tenants import tenant_keys
from core.body import parse_query
from core.openapi import operation
from core.web import runtime
from feedback.api.rule_schemas import (
    RuleAnswer,
    RuleBody,
    RuleConflict,
    RuleDiff,
    RuleDiffQuery,
    RuleEditBody,
    RuleList,
    RuleQuery,
    RuleSwitchBody,
    RuleVersionAnswer,
)
from feedback.models import RuleVersion
from feedback.rules import store
from feedback.rules.words import Change, as_json, diff

blueprint = Blueprint("api_rules", __name__, url_prefix="/api/v1")

READ, WRITE = "annotate", "manage"
COLUMNS = (
    "id", "version", "title", "category", "text", "refusal_text", "severity", "active", "kept_examples",
    "broken_examples", "note",
)  # fmt: skip
STATES = {None: "", True: "active", False: "retired"}


@blueprint.get("/rules")
@operation("Rules", RuleList, query=RuleQuery, scope=READ)
def list_rules() -> Response:
    """All rules in their newest version."""
    query = parse_query(RuleQuery)
    with runtime().db.read() as session:
        calling_person_id(READ, session)
        found = store.list_rules(session, state=STATES[query.active], whole=True)
        return jsonify(data=_all_told(session, found.versions))


@blueprint.get("/rules/<slug>")
@operation("Rules", RuleAnswer, scope=READ, errors=(400, 404))
def show_rule(slug: str) -> Response:
    """One rule in all its versions, the newest first."""
    with runtime().db.read() as session:
        calling_person_id(READ, session)
        return jsonify(slug=slug, versions=_all_told(session, store.all_versions(session, slug)))


@blueprint.get("/rules/<slug>/diff")
@operation("Rules", RuleDiff, query=RuleDiffQuery, scope=READ, errors=(404,))
def show_diff(slug: str) -> Response:
    """What differs between two versions of a rule, field by field and word by word."""
    with runtime().db.read() as session:
        calling_person_id(READ, session)
        query = parse_query(RuleDiffQuery)
        changes = diff(*(store.find_version(session, slug, number) for number in (query.first, query.second)))
    told = [
        {
            "name": change.name, "before": as_json(change.before), "after": as_json(change.after),
            "diffs": [[{"kind": kind, "text": text} for kind, text in runs] for runs in change.diffs],
        }
        for change in changes
    ]  # fmt: skip
    return jsonify({"slug": slug, "from": query.first, "to": query.second, "changes": told})


@blueprint.post("/rules")
@operation("Rules", {201: RuleVersionAnswer}, body=RuleBody, scope=WRITE, errors=(409,))
def create() -> tuple[Response, int]:
    """Make a rule, which is active at once. Its slug is made of its title and stays for good.

    The same call again by the same person answers as the first did.
    """
    body = managers_body(RuleBody)
    return _written(body.note, lambda session, change: store.create_rule(session, body.words(), change, body.tenant))


@blueprint.post("/rules/<slug>/versions")
@operation(
    "Rules", {201: RuleVersionAnswer}, body=RuleEditBody, scope=WRITE, errors=(404,), problems={409: RuleConflict}
)
def edit(slug: str) -> tuple[Response, int]:
    """Edit a rule: a new version, made from `base`, which must be the newest one. What is left out stays as it is there.

    The same call again by the same person answers as the first did.
    """
    body = managers_body(RuleEditBody)
    return _written(
        body.note, lambda session, change: store.edit_rule(session, slug, body, base=body.base, change=change)
    )


@blueprint.post("/rules/<slug>/retire")
@operation(
    "Rules", {201: RuleVersionAnswer}, body=RuleSwitchBody, scope=WRITE, errors=(404,), problems={409: RuleConflict}
)
def retire(slug: str) -> tuple[Response, int]:
    """Retire a rule: a new version with the same words, by which nobody is asked to judge."""
    body = managers_body(RuleSwitchBody)
    return _written(body.note, lambda session, change: store.retire_rule(session, slug, base=body.base, change=change))


@blueprint.post("/rules/<slug>/restore")
@operation(
    "Rules", {201: RuleVersionAnswer}, body=RuleSwitchBody, scope=WRITE, errors=(404,), problems={409: RuleConflict}
)
def restore(slug: str) -> tuple[Response, int]:
    """Restore a retired rule: a new version with the same words, which is active."""
    body = managers_body(RuleSwitchBody)
    return _written(body.note, lambda session, change: store.restore_rule(session, slug, base=body.base, change=change))


def _written(note: str, act: Callable[[Session, Change], RuleVersion]) -> tuple[Response, int]:
    """What an act of the caller makes, in one transaction with the question whether they may."""
    with runtime().db.session() as session:
        who = calling_manager(session, WRITE)
        made = act(session, Change(author_id=who.id, login=who.login, note=note))
        return jsonify(_all_told(session, [made])[0]), 201


def _all_told(session: Session, versions: Sequence[RuleVersion]) -> list[dict[str, Any]]:
    tenants = tenant_keys(session, (version.rule.tenant_id for version in versions))
    return [_told(version, tenants) for version in versions]


def _told(version: RuleVersion, tenants: Mapping[int, str]) -> dict[str, Any]:
    return {name: getattr(version, name) for name in COLUMNS} | {
        "slug": version.rule.slug,
        "tenant": tenants.get(version.rule.tenant_id or 0),
        "author": version.author.login if version.author else None,
        "created_at": version.created_at.isoformat(),
    }
