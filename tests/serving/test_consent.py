"""Consent and erasure over the chat API: what a call says is kept with its reply, and its texts can be taken away."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from access.keys import create_key
from core.db import Database
from core.messages import user
from core.settings import SamplingSettings, Settings
from core.settings.serving import PrivacySettings
from feedback.models import Completion, Task
from tests.factories import make_person
from tests.serving.test_tenants import Tenants


@pytest.fixture
def tenants(settings: Settings, database: Database) -> Iterator[Tenants]:
    found = Tenants(settings.model_copy(update={"sampling": SamplingSettings(rate=1.0)}), database)
    yield found
    found.stop()


def call(tenants: Tenants, name: str, header: str | None = None, **more: Any) -> Completion:
    body = {"model": "dunnock", "messages": user("Hi"), **more}
    headers = {**tenants.keys[name], **({"X-Dunnock-Consent": header} if header else {})}
    answer = tenants.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.text  # a stream is read to its end
    assert answer.status_code == 200
    with tenants.database.read() as session:
        return session.scalars(select(Completion).order_by(Completion.created_at.desc())).first()  # type: ignore[return-value]


def tasks(tenants: Tenants) -> int:
    with tenants.database.read() as session:
        return len(session.scalars(select(Task)).all())


@pytest.mark.parametrize(
    ("header", "more", "stored"),
    [
        (None, {}, "training"),
        ("training", {}, "training"),
        ("service", {}, "service"),
        (None, {"consent": "service"}, "service"),
        ("service", {"consent": "none"}, "none"),
        ("none", {"consent": "training"}, "none"),
        ("training", {"store": False}, "none"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_call_says_holds(
    tenants: Tenants, header: str | None, more: dict[str, Any], stored: str, stream: bool
) -> None:
    reply = call(tenants, "acme", header, stream=stream, **more)
    assert reply.consent == stored
    assert bool(reply.text) == (stored != "none")
    assert tasks(tenants) == (1 if stored == "training" else 0)
    assert reply.completion_tokens


def test_an_unknown_word_is_refused_before_anything_is_asked(tenants: Tenants) -> None:
    headers = {**tenants.keys["acme"], "X-Dunnock-Consent": "maybe"}
    body = {"model": "dunnock", "messages": user("Hi")}
    assert tenants.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 400
    assert tenants.engine.asked == []


def test_a_tenants_own_default_holds_where_a_call_says_nothing(settings: Settings, database: Database) -> None:
    settings = settings.model_copy(update={"privacy": PrivacySettings(consent="service")})
    tenants = Tenants(settings, database)
    try:
        tenants.agree("acme", consent="none")
        tenants.agree("beta", consent="training")
        found = {name: call(tenants, name).consent for name in ("acme", "beta", "house")}
        assert found == {"acme": "none", "beta": "training", "house": "service"}
        assert call(tenants, "acme", "training").consent == "training"
    finally:
        tenants.stop()


def test_a_tenant_erases_its_own_user_alone(tenants: Tenants) -> None:
    for name in ("acme", "beta"):
        for who in ("ana", "ben"):
            call(tenants, name, user=who, messages=user(f"{who} of {name}"))
    before = tasks(tenants)
    erased = tenants.client.post("/v1/erasures", json={"user": "ana"}, headers=tenants.keys["acme"])
    assert erased.json == {
        "object": "erasure", "completions": 1, "prompts": 1, "tasks_cancelled": 1, "frozen_snapshots": 0,
    }  # fmt: skip
    with tenants.database.read() as session:
        left = {c.prompt.messages[0]["content"]: c.text for c in session.scalars(select(Completion))}
        states = [task.state for task in session.scalars(select(Task))]
    assert set(left) == {"", "ben of acme", "ana of beta", "ben of beta"}
    assert left[""] == ""
    assert all(text for words, text in left.items() if words)
    assert (len(states), states.count("cancelled")) == (before, 1)
    again = tenants.client.post("/v1/erasures", json={"user": "ana"}, headers=tenants.keys["acme"])
    assert (again.status_code, again.json["completions"]) == (200, 0)


def test_the_house_has_a_lead_do_it(tenants: Tenants) -> None:
    call(tenants, "house", user="ana")
    with tenants.database.session() as session:
        secret = create_key(session, make_person(session), "k", "chat")[1]
    headers = {"Authorization": f"Bearer {secret}"}
    assert tenants.client.post("/v1/erasures", json={"user": "ana"}, headers=headers).status_code == 403
    assert tenants.client.post("/v1/erasures", json={"user": "ana"}, headers=tenants.key).json["completions"] == 1


def test_commands(tenants: Tenants) -> None:
    call(tenants, "acme", user="ana")

    def run(*words: str) -> str:
        with tenants.app.app_context():
            result = tenants.app.test_cli_runner().invoke(args=words)
        assert result.exit_code == 0, result.output
        return result.output

    assert run("erase-user", "ana", "--tenant", "acme", "--dry-run") == "dry run: 1 completions would be emptied\n"
    assert "0 completions" in run("erase-user", "ana")  # the house has no such user
    said = run("erase-user", "ana", "--tenant", "acme")
    assert said == "1 completions and 1 prompts emptied, 1 tasks cancelled\n"
    assert run("retention", "--days", "1", "--dry-run") == "dry run: 0 completions would be emptied\n"
    assert run("retention") == "0 completions and 0 prompts emptied, 0 tasks cancelled\n"
