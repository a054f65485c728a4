"""The programming interface keeps to its document: schemathesis makes calls out of it, good and bad, and looks at each answer.

Examples are the same in every run. Half of the ids, names and numbers of versions in a call are put to ones that exist.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from access.invitations import invite
from access.keys import SCOPES, create_key
from core.db import Database
from core.openapi import PREFIXES
from feedback.assignment.leases import next_assignment
from feedback.judgments import submit_judgment
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Assignment
from feedback.rules.store import active_rules, ensure_rules, find_rule
from feedback.tasks import create_gold
from tests import factories
from tests.serving.conftest import Served

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def known(app: Flask, database: Database, served: Served) -> dict[str, Any]:
    """Rows of all sorts; the headers of a lead's key, and names of what exists, by the parameter that takes them."""
    with database.session() as session:
        ensure_rules(session)
        rule = active_rules(session)[0]
        for kind, n in (("pairwise", 2), ("ranking", 3), ("rating", 1), ("correction", 1)):
            factories.make_task(session, kind, texts=(None,) * n, required_n=2)
        factories.make_task(session, "rule_check", texts=(None,), rule_version_id=rule.id)
        prompt = factories.make_prompt(session)
        pair = [factories.make_completion(session, prompt).id for _ in range(2)]
        gold = create_gold(session, "pairwise", prompt.id, pair, {"choice": ["a"]}, source="gold:1")
        ana = factories.make_person(session, "ana")
        while (found := next_assignment(session, ana.id, 60)) is not None and found.task.kind != "pairwise":
            found.state = "skipped"
            session.flush()
        submit_judgment(
            session, token=found.lease_token, annotator_id=ana.id, form=PairwiseForm(choice="left"), latency_s=1
        )
        token = session.get_one(Assignment, found.id).lease_token
        secret = create_key(session, served.person, "all", " ".join(SCOPES))[1]
        invitation, _ = invite(session, served.person, "annotator", "", 3600)
        return {
            "headers": {"Authorization": f"Bearer {secret}"}, "task_id": gold.id, "token": token, "slug": rule.rule.slug,
            "form": "tasks", "person_id": ana.id, "invitation_id": invitation.id,
        }  # fmt: skip


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
def test_no_call_breaks_it_and_every_answer_is_as_told(
    app: Flask, database: Database, known: dict[str, Any], mode: GenerationMode
) -> None:
    def newest() -> int:
        with database.read() as session:
            return find_rule(session, known["slug"]).version

    schema = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    called = sum(_exercised(found.ok(), mode, known, newest) for found in schema.get_all_operations())
    assert called > 100


def _exercised(call: Any, mode: GenerationMode, known: dict[str, Any], newest: Callable[[], int]) -> int:
    """Make calls of one sort; returns how many."""
    called = 0

    @settings(
        max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None,
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(case=call.as_strategy(generation_mode=mode))
    def keeps_to_it(case: Any) -> None:
        nonlocal called
        called += 1
        for name in case.path_parameters:
            if name in known and called % 2:
                case.path_parameters[name] = known[name]
        if called % 2 and isinstance(case.body, dict) and "base" in case.body:
            case.body["base"] = newest() if called % 4 == 1 else 1
        for name in {"from", "to"} & {*(case.query if called % 2 and isinstance(case.query, dict) else ())}:
            case.query[name] = 1
        case.call_and_validate(headers=known["headers"], checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # a call without anything to get wrong
        keeps_to_it()
    return called


def test_the_document_is_openapi_and_tells_of_every_call(app: Flask) -> None:
    told = app.test_client().get("/api/v1/openapi.json").json
    assert told["openapi"].startswith("3.1")
    validate(told)
    there = {
        (method.lower(), rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(PREFIXES) and not rule.rule.endswith("openapi.json")
    }
    described = {(method, path) for path, methods in told["paths"].items() for method in methods}
    assert {(method, _braces(path)) for method, path in there} == described


def _braces(path: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
