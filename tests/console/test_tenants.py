"""Pages and API of tenants: what leads do there, that it holds at once, and that nothing of it crosses."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, jsonify
from flask.testing import FlaskClient
from sqlalchemy import select

from access.callers import Asking, asking
from access.keys import create_key
from access.limits import Limit, admit, spend
from access.models import ApiKey, Person
from access.tenants import Agreed, create_tenant, make_key
from core.db import Database
from core.settings import Settings
from core.web import runtime
from feedback.prompts import add_completion, add_prompt
from policy.models import PolicyVersion
from tests.conftest import SignedIn
from tests.factories import make_policy_version


@pytest.fixture
def asked(app: Flask) -> Flask:
    """The app with a call that asks who calls, and lets them in as the chat API does."""

    @app.get("/v1/asking")
    def view() -> Any:
        found = asking("chat")
        admit(runtime().db, found.limits, found.terms, runtime().settings.limits)
        app.config["ASKING"] = found
        return jsonify(tenant=found.tenant_id)

    return app


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_lead_makes_a_tenant_with_limits_and_a_key_that_is_let_in(
    asked: Flask, lead: SignedIn, database: Database
) -> None:
    with database.session() as session:
        make_policy_version(session, "v1")
        make_policy_version(session, "v2", "candidate")
    made = lead.client.post("/tenants", data={"name": "Acme GmbH", "key": ""})
    assert made.location == "/tenants/1"
    limits = {"name": "Acme GmbH", "requests_per_minute": "3", "tokens_per_day": "10", "policy_version": "v1"}
    assert lead.client.post("/tenants/1", data=limits).status_code == 303
    for wrong in ({"policy_version": "v2"}, {"policy_version": "nowhere"}, {"tokens_per_day": "-1"}, {"name": " "}):
        answer = lead.client.post("/tenants/1", data=limits | wrong)
        assert answer.status_code == 400
        assert 'value="3"' in answer.text
    page = lead.client.post(
        "/tenants/1/keys",
        data={"name": "app", "scopes": ["chat", "feedback"], "days": "30", "requests_per_minute": "2"},
    )
    secret = page.text.split('id="key" tabindex="0">')[1].split("<")[0]
    client = asked.test_client()
    assert client.get("/v1/asking", headers=bearer(secret)).json == {"tenant": 1}
    found: Asking = asked.config["ASKING"]
    with database.read() as session:
        key = session.scalars(select(ApiKey)).one()
    assert found.limits == (Limit(f"key:{key.id}", 2), Limit("tenant:1", 3))
    assert found.terms is not None
    assert (found.terms.tokens_per_day, found.terms.policy_version) == (10, "v1")
    with database.session() as session:
        spend(session, 1, 4, 6)
    refused = client.get("/v1/asking", headers=bearer(secret))
    assert refused.status_code == 429
    assert refused.json is not None
    assert refused.json["error"]["code"] == "insufficient_quota"
    assert 1 <= int(refused.headers["Retry-After"]) <= 24 * 3600
    shown = lead.client.get("/tenants/1").text
    assert [number in shown for number in ("app", '<td data-label="Prompt" class="number">4</td>')] == [True, True]
    assert "10 / 10" in lead.client.get("/tenants").text


def test_over_the_limit_the_answer_says_when(asked: Flask, database: Database) -> None:
    with database.session() as session:
        tenant = create_tenant(session, "lead", Agreed("Acme", 2))
        _, secret = make_key(session, "lead", tenant.id, "app")
        _, other = make_key(session, "lead", tenant.id, "other")
    client = asked.test_client()
    answers = [client.get("/v1/asking", headers=bearer(secret)) for secret in (secret, other, secret)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json is not None
    assert answers[2].json["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[2].headers["Retry-After"]) == 30
    assert "Retry-After" not in answers[0].headers


def test_people_of_the_house_have_the_limit_of_the_settings(
    settings: Settings, database: Database, people: dict[str, Person]
) -> None:
    from app import create_app

    changed = settings.model_copy(update={"limits": settings.limits.model_copy(update={"requests_per_minute": 1})})
    app = create_app(changed, database)

    @app.get("/v1/asking")
    def view() -> Any:
        admit(runtime().db, (found := asking("chat")).limits, found.terms, runtime().settings.limits)
        return jsonify(tenant=found.tenant_id)

    with database.session() as session:
        secrets = [create_key(session, people[role], str(n))[1] for n, role in enumerate(("lead", "lead", "admin"))]
    found = [app.test_client().get("/v1/asking", headers=bearer(secret)) for secret in secrets]
    assert [answer.status_code for answer in found] == [200, 429, 200]
    assert found[0].json == {"tenant": None}


def test_pausing_holds_from_the_next_call_on(asked: Flask, lead: SignedIn, database: Database) -> None:
    with database.session() as session:
        tenant = create_tenant(session, "lead", Agreed("Acme"))
        _, secret = make_key(session, "lead", tenant.id, "app")
    client = asked.test_client()
    for act, status in (("pause", 403), ("resume", 200)):
        assert lead.client.post(f"/tenants/{tenant.id}/{act}").status_code == 303
        assert client.get("/v1/asking", headers=bearer(secret)).status_code == status


@pytest.fixture
def by_key(client: FlaskClient, database: Database, people: dict[str, Person]) -> Callable[..., Any]:
    """A function that calls `/api/v1/tenants` with a lead's key."""
    with database.session() as session:
        _, secret = create_key(session, people["lead"], "program", "manage people")

    def call(method: str, path: str = "", status: int = 200, **json: Any) -> Any:
        answer = client.open(
            f"/api/v1/tenants{path}", method=method, json=json if method != "GET" else None, headers=bearer(secret)
        )
        assert answer.status_code == status, answer.text
        return answer.json

    return call


def test_the_api_makes_changes_and_tells(asked: Flask, by_key: Callable[..., Any], database: Database) -> None:
    with database.session() as session:
        make_policy_version(session, "v1")
    made = by_key("POST", status=201, name="Acme", requests_per_minute=5, policy_version="v1")
    assert (made["key"], made["active"], made["tokens_per_day"]) == ("acme", True, None)
    by_key("POST", status=409, name="acme")
    by_key("POST", status=400, name="Beta", policy_version="v9")
    by_key("PATCH", "/1", status=400)
    by_key("PATCH", "/1", status=400, requests_per_minute=0)
    changed = by_key("PATCH", "/1", requests_per_minute=None, tokens_per_day=100)
    assert (changed["requests_per_minute"], changed["tokens_per_day"], changed["policy_version"]) == (None, 100, "v1")
    assert by_key("PATCH", "/1", active=False)["active"] is False
    assert by_key("PATCH", "/1", active=True, policy_version=None)["policy_version"] is None
    key = by_key("POST", "/1/keys", status=201, name="app", days=3)
    assert key["scopes"] == ["chat", "feedback"]
    by_key("POST", "/1/keys", status=400, name="app", scopes=["manage"])
    assert asked.test_client().get("/v1/asking", headers=bearer(key["secret"])).status_code == 200
    listed = by_key("GET", "/1/keys")["data"]
    assert listed[0].pop("last_used_at") is not None
    assert [{**row, "secret": key["secret"], "last_used_at": None} for row in listed] == [key]
    with database.session() as session:
        spend(session, 1, 2, 3)
    (day,) = by_key("GET", "/1/usage")["data"]
    assert (day["requests"], day["prompt_tokens"], day["completion_tokens"]) == (1, 2, 3)
    by_key("POST", f"/1/keys/{key['id']}/revoke")
    assert asked.test_client().get("/v1/asking", headers=bearer(key["secret"])).status_code == 401
    assert [row["id"] for row in by_key("GET")["data"]] == [1]
    for path in ("/2", "/2/usage", "/2/keys"):
        by_key("GET", path, status=404)
    by_key("POST", f"/2/keys/{key['id']}/revoke", status=404)


def test_tasks_are_listed_by_tenant(client: FlaskClient, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        acme = create_tenant(session, "lead", Agreed("Acme"))
        _, secret = create_key(session, people["lead"], "program", "manage")
        _, own = make_key(session, "lead", acme.id, "app")
        for tenant_id in (None, acme.id):
            prompt = add_prompt(session, [{"role": "user", "content": "?"}], "served", tenant_id=tenant_id)
            add_completion(session, prompt, "!", "served")
    for words, tenant in (("house", None), ("theirs", "acme")):
        body = {"kind": "rating", "messages": [{"role": "user", "content": "?"}], "completions": [words]}
        made = client.post("/api/v1/tasks", json=body | ({"tenant": tenant} if tenant else {}), headers=bearer(secret))
        assert made.status_code == 201, made.text
        assert made.json is not None
        assert made.json["tenant"] == tenant
    listed = {
        query: client.get(f"/api/v1/tasks{query}", headers=bearer(secret))
        for query in ("", "?tenant=acme", "?tenant=x")
    }
    assert [len(listed[query].json["data"]) for query in ("", "?tenant=acme")] == [2, 1]  # type: ignore[index]
    assert listed["?tenant=x"].status_code == 400
    for path in ("/api/v1/tasks", "/api/v1/rules", "/api/v1/tenants"):
        assert client.get(path, headers=bearer(own)).status_code == 403


def test_a_version_that_was_never_active_is_no_pin(lead: SignedIn, database: Database) -> None:
    with database.session() as session:
        tenant = create_tenant(session, "lead", Agreed("Acme"))
        names = [make_policy_version(session, state, state).name for state in ("candidate", "retired", "refused")]
    found = [lead.client.post(f"/tenants/{tenant.id}", data={"name": "Acme", "policy_version": n}) for n in names]
    assert [answer.status_code for answer in found] == [400, 303, 400]
    with database.read() as session:
        assert session.scalar(select(PolicyVersion.id).where(PolicyVersion.name == "retired"))
