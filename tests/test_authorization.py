"""Who may call what: every route × method, as nobody, as each role, and with a key of each scope of each role.

`LEAST` says what each endpoint wants. A route that is not in it fails, and so does a line without a route. Its values:

    "nobody"            anybody
    "annotator", …      a signed-in browser of that role or a higher one; keys open nothing
    "key:SCOPE"         a key with that scope, or a signed-in browser of any role
    "key:SCOPE ROLE"    the same, where the person has that role or a higher one
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update
from werkzeug.routing import AnyConverter, BaseConverter, Rule
from werkzeug.test import TestResponse

from access.keys import SCOPES, create_key
from access.models import ROLES, Person, SessionRecord
from core.db import Database
from tests.conftest import SignedIn
from tests.factories import PASSWORD

LEAST = {
    "access.sign_in": "nobody",
    "access.sign_in_form": "nobody",
    "access.sign_out": "nobody",
    "account.all_keys": "admin",
    "account.change_password": "annotator",
    "account.end_one": "annotator",
    "account.end_others": "annotator",
    "account.make_key": "annotator",
    "account.revoke_any_key": "admin",
    "account.revoke_own_key": "annotator",
    "account.show": "annotator",
    "annotation.judge": "key:annotate",
    "annotation.next_assignment": "key:annotate",
    "api.chat_completions": "key:chat",
    "api.completions": "key:chat",
    "api.erase": "key:chat",
    "api.feedback": "key:feedback",
    "api.models": "key:chat",
    "api.moderations": "key:chat",
    "api.one_model": "key:chat",
    "api_docs.docs": "nobody",
    "api_docs.openapi": "nobody",
    "api_invitations.invite": "key:people lead",
    "api_invitations.list_invitations": "key:people lead",
    "api_invitations.revoke": "key:people lead",
    "api_judgments.export": "key:manage lead",
    "api_judgments.export_judgments": "key:manage lead",
    "api_judgments.list_judgments": "key:manage lead",
    "api_judgments.list_of_task": "key:manage lead",
    "api_people.change": "key:people lead",
    "api_people.end_sessions": "key:people lead",
    "api_people.list_people": "key:manage lead",
    "api_people.pause_annotator": "key:manage lead",
    "api_people.resume_annotator": "key:manage lead",
    "api_people.show": "key:manage lead",
    "api_rules.create": "key:manage lead",
    "api_rules.edit": "key:manage lead",
    "api_rules.list_rules": "key:annotate",
    "api_rules.restore": "key:manage lead",
    "api_rules.retire": "key:manage lead",
    "api_rules.show_diff": "key:annotate",
    "api_rules.show_rule": "key:annotate",
    "api_tasks.cancel": "key:manage lead",
    "api_tasks.create": "key:manage lead",
    "api_tasks.list_tasks": "key:manage lead",
    "api_tasks.set_priority": "key:manage lead",
    "api_tasks.show": "key:manage lead",
    "api_tenants.change": "key:people lead",
    "api_tenants.create": "key:people lead",
    "api_tenants.list_keys": "key:manage lead",
    "api_tenants.list_tenants": "key:manage lead",
    "api_tenants.make_key": "key:people lead",
    "api_tenants.revoke_key": "key:people lead",
    "api_tenants.show": "key:manage lead",
    "api_tenants.usage": "key:manage lead",
    "audit.as_csv": "lead",
    "audit.as_json": "lead",
    "audit.index": "lead",
    "console.ask_compare": "lead",
    "console.ask_promote": "lead",
    "console.ask_rollback": "lead",
    "console.cancel": "lead",
    "console.cycle_json": "reviewer",
    "console.demo_report": "reviewer",
    "console.do_compare": "lead",
    "console.do_promote": "lead",
    "console.do_rollback": "lead",
    "console.list_cycles": "reviewer",
    "console.list_policies": "reviewer",
    "console.show_cycle": "reviewer",
    "console.show_policy": "reviewer",
    "console.show_steps": "reviewer",
    "console.start_cycle": "lead",
    "console.static": "nobody",
    "console.steps_file": "reviewer",
    "feedback.care": "annotator",
    "feedback.flag": "annotator",
    "feedback.home": "annotator",
    "feedback.judge": "annotator",
    "feedback.last_task": "annotator",
    "feedback.next_task": "annotator",
    "feedback.probe_turn": "annotator",
    "feedback.put_draft": "annotator",
    "feedback.renew": "annotator",
    "feedback.set_care": "annotator",
    "feedback.skip": "annotator",
    "feedback.static": "nobody",
    "health.healthz": "nobody",
    "health.readyz": "nobody",
    "language.set_language": "nobody",
    "metrics.metrics": "nobody",
    "oidc.callback": "nobody",
    "oidc.remove": "annotator",
    "oidc.start": "nobody",
    "oidc.start_from_invitation": "nobody",
    "oidc.start_linking": "annotator",
    "people.accept": "nobody",
    "people.activate": "lead",
    "people.change_role": "lead",
    "people.deactivate": "lead",
    "people.end_sessions": "lead",
    "people.index": "lead",
    "people.invite": "lead",
    "people.list_invitations": "lead",
    "people.open_invitation": "nobody",
    "people.reset": "lead",
    "people.revoke": "lead",
    "people.show": "lead",
    "people.static": "nobody",
    "quality.annotators": "reviewer",
    "quality.ask_standing": "lead",
    "quality.flags": "reviewer",
    "quality.gold": "reviewer",
    "quality.library": "nobody",
    "quality.overview": "reviewer",
    "quality.set_standing": "lead",
    "quality.settled": "reviewer",
    "quality.table": "reviewer",
    "rewards.show": "reviewer",
    "rewards.table": "reviewer",
    "rule_guard.change": "lead",
    "rule_guard.show": "reviewer",
    "rules.ask_switch": "lead",
    "rules.create": "lead",
    "rules.edit": "lead",
    "rules.edit_form": "lead",
    "rules.list_rules": "annotator",
    "rules.new_rule": "lead",
    "rules.show_rule": "annotator",
    "rules.show_version": "annotator",
    "rules.switch": "lead",
    "rules.try_form": "lead",
    "rules.try_text": "lead",
    "serving.chat": "annotator",
    "serving.compare": "lead",
    "serving.static": "nobody",
    "static": "nobody",
    "system_prompts.bring_back": "lead",
    "system_prompts.create": "lead",
    "system_prompts.edit": "lead",
    "system_prompts.index": "reviewer",
    "system_prompts.set_shares": "lead",
    "system_prompts.show": "reviewer",
    "system_prompts.table": "reviewer",
    "tenants.add": "lead",
    "tenants.change": "lead",
    "tenants.index": "lead",
    "tenants.make_key": "lead",
    "tenants.revoke_key": "lead",
    "tenants.show": "lead",
    "tenants.switch": "lead",
    "webhooks.add": "lead",
    "webhooks.again": "lead",
    "webhooks.index": "lead",
    "webhooks.remove": "lead",
    "webhooks.show": "lead",
    "webhooks.switch": "lead",
    "webhooks.test": "lead",
}

JSON: dict[str, Any] = {  # bodies that are good enough to get as far as the question who asks
    "annotation.judge": {"judgment": {"kind": "pairwise", "choice": "tie"}},
    "annotation.next_assignment": {},
    "feedback.put_draft": {},
}
FORMS = {"access.sign_in": {"login": "annotator", "password": PASSWORD}, "people.invite": {"role": "annotator"}}
UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}


@dataclass(frozen=True)
class Caller:
    """Who asks: a browser of a role, a program with a key, or nobody."""

    role: str | None = None
    scope: str | None = None

    def __str__(self) -> str:
        return f"{self.role or 'nobody'}{f' with a key for {self.scope}' if self.scope else ''}"


CALLERS = [Caller(), *(Caller(role, scope) for role in ROLES for scope in (None, *SCOPES))]


def allowed(caller: Caller, least: str) -> bool:
    """What the table says."""
    what, _, role = least.partition(" ")
    if what == "nobody":
        return True
    if caller.role is None:
        return False
    if what.startswith("key:"):
        fits = caller.scope is None or caller.scope == what.removeprefix("key:")
        return fits and ROLES.index(caller.role) >= ROLES.index(role or "annotator")
    return caller.scope is None and ROLES.index(caller.role) >= ROLES.index(what)


def refused(answer: TestResponse, endpoint: str) -> bool:
    """Whether an answer turns the caller away, rather than saying anything about what was asked for."""
    if endpoint == "access.sign_out":  # leads to where those are sent who are turned away
        return answer.location != "/sign-in"
    to_sign_in = answer.status_code == 302 and answer.location.partition("?")[0] == "/sign-in"
    return answer.status_code in (401, 403) or to_sign_in


def _fits(converter: BaseConverter) -> Any:
    """A value for a part of a path; an id is nobody's."""
    if isinstance(converter, AnyConverter):
        return sorted(converter.items)[0]
    return 999_999 if "Id" in type(converter).__name__ else "none"


def routes(app: Flask) -> Iterator[tuple[Rule, str, str]]:
    """Every rule with each of its methods and a path that fits it; ids in it are nobody's."""
    for rule in app.url_map.iter_rules():
        values = {name: _fits(converter) for name, converter in rule._converters.items()}
        if "filename" in values:
            values["filename"] = "theme.js"
        with app.test_request_context():
            path = app.url_map.bind("localhost").build(rule.endpoint, values, method=None)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield rule, method, path


def test_the_table_has_every_route_and_no_other(app: Flask) -> None:
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    assert endpoints - set(LEAST) == set(), "say in LEAST who may call these"
    assert set(LEAST) - endpoints == set()
    assert list(LEAST) == sorted(LEAST)


@pytest.fixture
def call(
    app: Flask, people: dict[str, Person], database: Database, sign_in: Callable[[Person], SignedIn]
) -> Callable[[Caller, Rule, str, str], TestResponse]:
    """A function that really calls a route as a caller; whatever a call does to sessions is undone."""
    name = app.config["SESSION_COOKIE_NAME"]
    cookies = {}
    for role, person in people.items():
        cookie = sign_in(person).client.get_cookie(name)
        assert cookie is not None
        cookies[role] = cookie.value
    with database.session() as session:
        keys = {(r, s): create_key(session, people[r], f"{r} {s}", s)[1] for r in ROLES for s in SCOPES}

    def call(caller: Caller, rule: Rule, method: str, path: str) -> TestResponse:
        client = app.test_client()
        headers = {}
        if caller.role and caller.scope:
            headers["Authorization"] = f"Bearer {keys[caller.role, caller.scope]}"
        elif caller.role:
            client.set_cookie(name, cookies[caller.role])
        sent = {"json": JSON[rule.endpoint]} if rule.endpoint in JSON else {"data": FORMS.get(rule.endpoint)}
        answer = client.open(path, method=method, headers=headers, **sent)
        answer.get_data()
        answer.close()
        with database.session() as session:
            session.execute(update(SessionRecord).values(ended_at=None))
        return answer

    return call


@pytest.mark.timeout(300)
def test_every_route_opens_to_whom_it_should_and_to_nobody_else(
    app: Flask, call: Callable[[Caller, Rule, str, str], TestResponse]
) -> None:
    wrong, n = [], 0
    for rule, method, path in routes(app):
        for caller in CALLERS:
            answer = call(caller, rule, method, path)
            n += 1
            assert answer.status_code != 500, f"{method} {path} as {caller}: {answer.text}"
            if refused(answer, rule.endpoint) is allowed(caller, LEAST[rule.endpoint]):
                wrong.append(f"{method} {path} as {caller}: {answer.status_code}")
    assert wrong == []
    assert n >= len(LEAST) * len(CALLERS)


def test_every_form_wants_its_token(app: Flask, call: Callable[[Caller, Rule, str, str], TestResponse]) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    asked = [(rule, method, path) for rule, method, path in routes(app) if method in UNSAFE]
    assert len(asked) > 20
    for rule, method, path in asked:
        answer = call(Caller("admin"), rule, method, path)
        assert answer.status_code in (400, 403), f"{method} {path}: {answer.status_code}"
        assert "CSRF" in answer.text, f"{method} {path}: {answer.text}"
