"""`/api/v1`: annotation by programs, with real keys."""

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import create_key
from access.models import Person
from core.db import Database
from core.messages import user
from core.settings import AssignmentSettings, GoldSettings
from core.web import Runtime
from feedback.assignment.leases import claim_task
from feedback.judgments import submit_judgment
from feedback.kinds.correction import CorrectionForm
from feedback.kinds.frame import RuleVerdict
from feedback.models import Assignment, Judgment, Task
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_gold
from tests.factories import make_completion, make_pairwise_task, make_person, make_prompt, make_task


@pytest.fixture
def tasks(database: Database) -> list[int]:
    with database.session() as session:
        return [
            make_pairwise_task(session, make_prompt(session, f"question {n}"), f"text a {n}", f"text b {n}", rank=-n).id
            for n in range(3)
        ]


def headers(database: Database, person: Person, scopes: str = "annotate") -> dict[str, str]:
    with database.session() as session:
        return {"Authorization": f"Bearer {create_key(session, person, 'a program', scopes)[1]}"}


@pytest.fixture
def bearer(database: Database, people: dict[str, Person]) -> dict[str, str]:
    """Headers of the annotator's program."""
    return headers(database, people["annotator"])


def stored(database: Database, kind: Any) -> list[Any]:
    with database.read() as session:
        return list(session.scalars(select(kind).order_by(kind.id)))


def judge(client: FlaskClient, bearer: dict[str, str], token: str, **body: Any) -> Any:
    return client.post(f"/api/v1/assignments/{token}/judgment", json=body, headers=bearer)


def test_a_program_judges_until_nothing_is_left(
    client: FlaskClient, database: Database, bearer: dict[str, str], tasks: list[int]
) -> None:
    found = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]
    seen = []
    while found is not None:
        assert set(found) == {"token", "expires_at", "kind", "why", "messages", "completions"}
        seen.append(found["messages"])
        shown = found["completions"]
        side = ("left", "right")[0 if shown[0].startswith("text a") else 1]
        answer = judge(
            client,
            bearer,
            found["token"],
            judgment={"kind": "pairwise", "choice": side, "strength": 3},
            latency_s=2.5,
            next={},
        )
        assert answer.status_code == 201
        assert answer.json["surplus"] is False
        found = answer.json["assignment"]
    assert seen == [user(f"question {n}") for n in range(3)]
    assert {(j.choice, j.strength, j.latency_s) for j in stored(database, Judgment)} == {("a", 3, 2.5)}
    assert [(t.taken, t.done, t.state) for t in stored(database, Task)] == [(1, 1, "done")] * 3


def test_more_work_is_fetched_beside_what_is_at_hand(
    client: FlaskClient, bearer: dict[str, str], tasks: list[int]
) -> None:
    first = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]
    again = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]
    assert again == first
    second = client.post("/api/v1/assignments", json={"beside": [first["token"]]}, headers=bearer).json["assignment"]
    assert second["token"] != first["token"]
    third = judge(
        client,
        bearer,
        first["token"],
        judgment={"kind": "pairwise", "choice": "tie"},
        next={"beside": [second["token"]]},
    ).json["assignment"]
    assert third["token"] not in (first["token"], second["token"])


def test_the_same_act_again_is_one_judgment(
    client: FlaskClient, database: Database, bearer: dict[str, str], tasks: list[int]
) -> None:
    token = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]["token"]
    body = {"judgment": {"kind": "pairwise", "choice": "both_bad"}, "idempotency_key": "one"}
    ids = [judge(client, bearer, token, **body).json["judgment_id"] for _ in range(2)]
    assert ids == [j.id for j in stored(database, Judgment)] * 2
    assert judge(client, bearer, token, judgment={"kind": "pairwise", "choice": "tie"}).status_code == 409


@pytest.mark.parametrize(
    "changed",
    [{"choice": "tie"}, {"note": "on second thoughts"}, {"strength": 2}, {"corrections": {"0": "Otherwise."}}],
)
def test_the_same_key_for_another_act_is_refused_and_the_first_is_kept(
    client: FlaskClient, database: Database, bearer: dict[str, str], tasks: list[int], changed: dict[str, Any]
) -> None:
    token = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]["token"]
    said = {
        "kind": "pairwise", "choice": "left", "strength": 3, "note": "because", "corrections": {"0": "Better."},
    }  # fmt: skip
    first = judge(client, bearer, token, judgment=said, idempotency_key="one", latency_s=3)
    assert first.status_code == 201
    again = judge(client, bearer, token, judgment=said, idempotency_key="one", latency_s=4)
    assert (again.status_code, again.json) == (201, first.json)
    if changed.get("choice"):
        said = {name: value for name, value in said.items() if name != "strength"}
    other = judge(client, bearer, token, judgment=said | changed, idempotency_key="one")
    assert (other.status_code, other.json["type"]) == (409, "urn:dunnock:idempotency_key_reused")
    (kept,) = stored(database, Judgment)
    assert (kept.choice, kept.strength, kept.note) == (kept.choice, 3, "because")


def test_two_programs_may_name_their_acts_alike(
    client: FlaskClient, database: Database, people: dict[str, Person], bearer: dict[str, str], tasks: list[int]
) -> None:
    for given in (bearer, headers(database, people["reviewer"])):
        token = client.post("/api/v1/assignments", json={}, headers=given).json["assignment"]["token"]
        body = {"judgment": {"kind": "pairwise", "choice": "tie"}, "idempotency_key": "1"}
        assert judge(client, given, token, **body).status_code == 201
    assert len(stored(database, Judgment)) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"judgment": {"kind": "pairwise", "choice": "middle"}}, "judgment.choice"),
        ({"judgment": {"kind": "pairwise", "choice": "left", "strength": 9}}, "judgment.strength"),
        ({"judgment": {"kind": "pairwise", "choice": "left"}, "colour": "red"}, "colour"),
        ({"judgment": {"kind": "pairwise", "choice": "left"}, "latency_s": -1}, "latency_s"),
        (
            {"judgment": {"kind": "pairwise", "choice": "tie", "rule_verdicts": [{"rule_version_id": 99, "item": 0}]}},
            "rule versions",
        ),
        ({}, "judgment"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_stored(
    client: FlaskClient, database: Database, bearer: dict[str, str], tasks: list[int], body: dict[str, Any], said: str
) -> None:
    token = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]["token"]
    answer = judge(client, bearer, token, **body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert said in answer.json["detail"]
    assert stored(database, Judgment) == []
    assert [a.state for a in stored(database, Assignment)] == ["live"]


def test_who_may_not(
    client: FlaskClient, database: Database, people: dict[str, Person], bearer: dict[str, str], tasks: list[int]
) -> None:
    token = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]["token"]
    other = headers(database, people["reviewer"])
    assert judge(client, other, token, judgment={"kind": "pairwise", "choice": "tie"}).status_code == 404
    chat = headers(database, people["annotator"], "chat")
    for given, status in ((chat, 403), ({}, 401), ({"Authorization": "Bearer dk-nonsense"}, 401)):
        answer = client.post("/api/v1/assignments", json={}, headers=given)
        assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")


def test_what_was_judged_is_stored_also_when_no_next_task_can_be_given(
    app: Flask, client: FlaskClient, database: Database, people: dict[str, Person], bearer: dict[str, str]
) -> None:
    """A wrong answer to a known task after the warning pauses the annotator: their judgment stays, and they are told why there is no more."""
    strict = app.extensions["dunnock"].settings.model_copy(
        update={
            "gold": GoldSettings(window=1, least=1, warn_below=1, pause_below=1, after_warning=1),
            "assignment": AssignmentSettings(gold=1, informative=0, uniform=0, flagged=0, repeat=0),
        }
    )
    app.extensions["dunnock"] = Runtime(strict, database)
    with database.session() as session:
        prompt = make_prompt(session)
        for n in range(3):
            ids = [make_completion(session, prompt).id for _ in range(2)]
            create_gold(session, "pairwise", prompt.id, ids, {"choice": ["both_bad"]}, source=f"gold:{n}")
    token = client.post("/api/v1/assignments", json={}, headers=bearer).json["assignment"]["token"]
    warned = judge(client, bearer, token, judgment={"kind": "pairwise", "choice": "tie"}, next={}).json
    answer = judge(
        client, bearer, warned["assignment"]["token"], judgment={"kind": "pairwise", "choice": "tie"}, next={}
    )
    assert answer.status_code == 201
    assert answer.json["assignment"] is None
    assert "paused" in answer.json["why_none"]
    assert [j.id for j in stored(database, Judgment)] == [warned["judgment_id"], answer.json["judgment_id"]]
    assert client.post("/api/v1/assignments", json={}, headers=bearer).status_code == 403


def test_a_reviewer_is_shown_what_contradicts_itself(
    client: FlaskClient, database: Database, people: dict[str, Person]
) -> None:
    """Also where a hidden name is all that was changed."""
    with database.session() as session:
        ensure_rules(session)
        rule = active_rules(session)[0].id
        task = make_task(session, "correction", None, ["I am ChatGPT."], required_n=2)
        for form in (
            CorrectionForm(fine=True, note="fine"),
            CorrectionForm(
                corrections={0: "I am Claude."},
                rule_verdicts=[RuleVerdict(rule_version_id=rule, item=0, verdict="kept")],
            ),
        ):
            who = make_person(session)
            mine = claim_task(session, task.id, who.id, 60)
            submit_judgment(
                session, token=mine.lease_token, annotator_id=who.id, form=form, latency_s=1, adjudicate=True
            )
    given = headers(database, people["reviewer"])
    found = client.post("/api/v1/assignments", json={}, headers=given).json["assignment"]
    first, second = found["judgments"]
    assert (first["choice"], first["note"]) == ("fine", "fine")
    assert second["corrections"] == {"0": "I am [name hidden]."}
    assert [(v["item"], v["verdict"]) for v in second["rule_verdicts"]] == [(0, "kept")]
