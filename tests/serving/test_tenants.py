"""Tenants in the chat API: nothing crosses between them, limits hold, a pin holds, rules hold for whom they are made."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from werkzeug.test import TestResponse

from access.models import Person, TenantUsage
from access.tenants import Agreed, change_tenant, create_tenant, make_key
from core.db import Database
from core.messages import user
from core.settings import Settings
from feedback.models import Completion, Prompt
from feedback.rules.store import create_rule
from feedback.rules.words import RuleWords
from tests import factories
from tests.serving.test_guarding import Installed


class Tenants(Installed):
    """Two tenants with a key each, beside the house."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database)
        self.ids, self.keys = {}, {"house": self.key}
        with database.session() as session:
            for name in ("acme", "beta"):
                tenant = create_tenant(session, "lead", Agreed(name.title()))
                secret = make_key(session, "lead", tenant.id, name, "chat feedback")[1]
                self.ids[name], self.keys[name] = tenant.id, {"Authorization": f"Bearer {secret}"}

    def agree(self, name: str, **terms: Any) -> None:
        with self.database.session() as session:
            change_tenant(session, "lead", self.ids[name], Agreed(name.title(), **terms))

    def call(self, name: str, **more: Any) -> TestResponse:
        body = {"model": "dunnock", "messages": user("Hi"), **more}
        answer = self.client.post("/v1/chat/completions", json=body, headers=self.keys[name])
        assert answer.text  # a stream is read to its end
        return answer


@pytest.fixture
def tenants(settings: Settings, database: Database) -> Iterator[Tenants]:
    found = Tenants(settings, database)
    yield found
    found.stop()


def test_nothing_of_one_is_there_for_another(tenants: Tenants) -> None:
    ids = {name: tenants.call(name).json["id"] for name in tenants.keys}
    with tenants.database.read() as session:
        rows = {row.id: (row.tenant_id, row.prompt.tenant_id) for row in session.scalars(select(Completion))}
        assert len(list(session.scalars(select(Prompt)))) == 3
    assert rows == {ids[name]: (tenants.ids.get(name),) * 2 for name in ids}
    for reader in ("acme", "beta"):
        for owner, completion_id in ids.items():
            expected = reader == owner
            named = [*user("Hi"), {"role": "assistant", "content": "", "completion_id": completion_id}, *user("And?")]
            assert tenants.call(reader, messages=named).status_code == (200 if expected else 404)
            said = {"completion_id": completion_id, "thumbs": "down"}
            answer = tenants.client.post("/v1/feedback", json=said, headers=tenants.keys[reader])
            assert answer.status_code == (201 if expected else 404)


@pytest.mark.parametrize("stream", [False, True])
def test_requests_beyond_the_limit_are_refused_and_not_stored(tenants: Tenants, stream: bool) -> None:
    tenants.agree("acme", requests_per_minute=2)
    answers = [tenants.call("acme", stream=stream) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 60
    assert tenants.call("beta").status_code == 200
    assert len(tenants.engine.asked) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_all_replies_are_counted_and_end_with_the_quota(tenants: Tenants, stream: bool) -> None:
    tenants.agree("acme", tokens_per_day=9)
    tenants.engine.pieces = ["a ", "b ", "c"]  # the engine says 3 and 3
    assert [tenants.call("acme", stream=stream).status_code for _ in range(3)] == [200, 200, 429]
    refused = tenants.call("acme", stream=stream)
    assert refused.json["error"]["code"] == "insufficient_quota"
    with tenants.database.read() as session:
        (used,) = session.scalars(select(TenantUsage))
    assert (used.tenant_id, used.requests, used.prompt_tokens, used.completion_tokens) == (tenants.ids["acme"], 2, 6, 6)
    if not stream:
        assert tenants.call("beta", n=3).status_code == 200
        with tenants.database.read() as session:
            used = session.scalars(select(TenantUsage).where(TenantUsage.tenant_id == tenants.ids["beta"])).one()
        assert (used.requests, used.prompt_tokens, used.completion_tokens) == (1, 3, 9)


def test_a_pinned_tenant_stays_at_its_version(tenants: Tenants) -> None:
    with tenants.database.session() as session:
        factories.make_policy_version(session, "v0", "retired")
    tenants.agree("acme", policy_version="v0")
    assert tenants.call("acme").json["model"] == "v0"
    assert tenants.call("acme", model="v0").json["model"] == "v0"
    assert tenants.call("acme", model="v1").status_code == 404
    assert tenants.call("beta").json["model"] == "v1"

    def names(name: str) -> list[str]:
        return [model["id"] for model in tenants.client.get("/v1/models", headers=tenants.keys[name]).json["data"]]

    assert names("acme") == ["dunnock", "v0"]
    assert names("beta") == ["dunnock", "v0", "v1"]
    assert tenants.client.get("/v1/models/v1", headers=tenants.keys["acme"]).status_code == 404


def test_a_tenant_s_rule_holds_for_it_alone(tenants: Tenants) -> None:
    with tenants.database.session() as session:
        words = RuleWords(title="No wren", text="Never name the wren", refusal_text="No wren here.")
        create_rule(session, words, tenants.change, "acme")
    tenants.with_model().engine.pieces = ["a wren"]
    said = {name: tenants.call(name).json["choices"][0]["message"]["content"] for name in tenants.keys}
    assert said == {"acme": "No wren here.", "beta": "a wren", "house": "a wren"}


def test_a_paused_tenant_is_refused(tenants: Tenants) -> None:
    from access.tenants import set_active

    with tenants.database.session() as session:
        set_active(session, "lead", tenants.ids["acme"], False)
    answer = tenants.call("acme")
    assert (answer.status_code, answer.json["error"]["code"]) == (403, "tenant_paused")
    with tenants.database.read() as session:
        assert not list(session.scalars(select(Completion)))
        assert list(session.scalars(select(Person)))
