"""`/api/v1` for leads' programs: tasks, judgments, exports, with real keys."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import create_key
from access.models import AuditLog, Person
from app import create_app
from core.db import Database
from core.settings import Settings
from feedback.assignment.leases import claim_task
from feedback.judgments import record_feedback, submit_judgment
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Judgment, Task
from tests import factories
from tests.conftest import SignedIn

TASK: dict[str, Any] = {
    "kind": "pairwise", "messages": [{"role": "user", "content": "Where does it nest?"}],
    "completions": ["In a hedge.", "On a cliff."],
}  # fmt: skip
MANAGED = (
    ("GET", "/api/v1/tasks"), ("POST", "/api/v1/tasks"), ("GET", "/api/v1/tasks/1"), ("PATCH", "/api/v1/tasks/1"),
    ("POST", "/api/v1/tasks/1/cancel"), ("GET", "/api/v1/tasks/1/judgments"), ("GET", "/api/v1/judgments"),
    ("GET", "/api/v1/judgments/export"), ("GET", "/api/v1/export/tasks"),
)  # fmt: skip
BODIES = {"POST": TASK, "PATCH": {"priority": 1}}


def judged(database: Database, people: dict[str, Person], n: int = 1) -> int:
    """A pairwise task with judgments of the annotator, and of a script."""
    with database.session() as session:
        task = factories.make_pairwise_task(session, required_n=n + 1)
        bot = factories.make_person(session, scripted=True)
        for person in (people["annotator"], bot):
            token = claim_task(session, task.id, person.id, 60).lease_token
            form = PairwiseForm(choice="left", strength=2, corrections={0: "Edited."}, note="n")
            submit_judgment(session, token=token, annotator_id=person.id, form=form, latency_s=3)
        return task.id


@pytest.mark.parametrize(("method", "path"), MANAGED)
@pytest.mark.parametrize(
    ("role", "scopes", "status"),
    [
        (None, "", 401),
        ("annotator", "manage", 403),
        ("reviewer", "manage", 403),
        ("lead", "annotate chat feedback", 403),
    ],
)
def test_only_leads_and_admins_with_the_scope_manage(
    client: FlaskClient, key: Any, method: str, path: str, role: str | None, scopes: str, status: int
) -> None:
    headers = key(role, scopes) if role else {}
    answer = client.open(path, method=method, json=BODIES.get(method), headers=headers)
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"


def test_the_role_counts_as_it_is_at_the_time_of_the_call(
    client: FlaskClient, database: Database, people: dict[str, Person], key: Any
) -> None:
    headers = key("lead")
    assert client.get("/api/v1/tasks", headers=headers).status_code == 200
    with database.session() as session:
        session.get_one(Person, people["lead"].id).role = "annotator"
    assert client.get("/api/v1/tasks", headers=headers).status_code == 403
    assert client.get("/api/v1/tasks", headers=key("admin")).status_code == 200


def test_a_leads_browser_may_call_it_with_its_csrf_token(app: Any, lead: SignedIn, annotator: SignedIn) -> None:
    assert lead.client.get("/api/v1/tasks").status_code == 200
    assert annotator.client.get("/api/v1/tasks").status_code == 403
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.get("/api/v1/tasks").status_code == 403


# Tasks ----------------------------------------------------------------------------------------------------------------


def test_a_task_is_made_once_and_noted(call: Any, database: Database) -> None:
    body = TASK | {"required_n": 3, "priority": 4, "pool": "informative", "why": "from the shop", "source": "shop:7"}
    first = call("POST", "/api/v1/tasks", json=body)
    assert first.status_code == 201
    assert (first.json["kind"], first.json["state"], first.json["required_n"], first.json["why"]) == (
        "pairwise", "live", 3, "from the shop",
    )  # fmt: skip
    assert [completion["text"] for completion in first.json["completions"]] == TASK["completions"]
    again = call("POST", "/api/v1/tasks", json=body)
    assert (again.status_code, again.json) == (200, first.json)
    with database.read() as session:
        entries = session.execute(select(AuditLog.actor, AuditLog.action, AuditLog.subject)).all()
    assert [tuple(entry) for entry in entries] == [("lead", "task.create", f"task:{first.json['id']}")]


def test_a_task_with_a_known_answer(call: Any) -> None:
    made = call("POST", "/api/v1/tasks", json=TASK | {"gold": {"choice": ["a"]}, "explanation": "low"}).json
    assert (made["pool"], made["gold"]) == ("gold", {"expected": {"choice": ["a"]}, "explanation": "low"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "pairwise"}, "0 completions"),
        (TASK | {"gold": {"best": [0]}}, "cannot be the known answer"),
        (TASK | {"gold": {"choice": [{}]}}, "cannot be the known answer"),
        (TASK | {"gold": {"choice": [["a"]]}}, "cannot be the known answer"),
        (TASK | {"gold": {"choice": ["\ud800"]}}, "cannot be the known answer"),
        (TASK | {"gold": {"\ud800": ["a"]}}, "cannot be the known answer"),
        (TASK | {"pool": "repeat"}, "made by themselves"),
        (TASK | {"judgments": []}, "judgments"),
        (TASK | {"kind": "rule_check", "completions": ["x"], "rule": "none such"}, "there is no rule"),
        ([], "not a JSON object"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(call: Any, database: Database, body: Any, words: str) -> None:
    answer = call("POST", "/api/v1/tasks", json=body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert words in answer.json["detail"]
    with database.read() as session:
        assert session.scalars(select(Task)).all() == []


def test_tasks_are_listed_by_pages_and_filtered(call: Any, database: Database) -> None:
    with database.session() as session:
        ids = [factories.make_pairwise_task(session, pool=("uniform", "flagged")[n % 2]).id for n in range(5)]
        ids += [factories.make_task(session, "rating", texts=(None,)).id]
    seen, after = [], 0
    while after is not None:
        page = call("GET", f"/api/v1/tasks?limit=2&after={after}").json
        seen += [task["id"] for task in page["data"]]
        after = page["next_after"]
    assert seen == ids
    assert [t["id"] for t in call("GET", "/api/v1/tasks?pool=flagged&state=live").json["data"]] == [ids[1], ids[3]]
    assert [t["id"] for t in call("GET", "/api/v1/tasks?kind=rating").json["data"]] == [ids[5]]
    assert call("GET", "/api/v1/tasks?state=done").json == {"data": [], "next_after": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "after=-1", "kind=guess", "state=odd", "colour=red"]
)
def test_a_query_that_cannot_be_read_is_refused(call: Any, query: str) -> None:
    answer = call("GET", f"/api/v1/tasks?{query}")
    assert answer.status_code == 400
    assert answer.json["detail"].startswith(query.partition("=")[0])


def test_a_task_is_cancelled_once_and_a_done_one_is_not(
    call: Any, database: Database, people: dict[str, Person]
) -> None:
    with database.session() as session:
        task_id = factories.make_pairwise_task(session).id
    assert [call("POST", f"/api/v1/tasks/{task_id}/cancel").json["state"] for _ in range(2)] == ["cancelled"] * 2
    done = judged(database, people)
    answer = call("POST", f"/api/v1/tasks/{done}/cancel")
    assert (answer.status_code, answer.json["type"]) == (409, "urn:dunnock:conflict")
    assert call("POST", "/api/v1/tasks/999/cancel").status_code == 404
    with database.read() as session:
        assert [entry.before for entry in session.scalars(select(AuditLog))] == [{"state": "live"}]


def test_a_cancelled_task_is_given_to_nobody(call: Any, key: Any, client: FlaskClient, database: Database) -> None:
    with database.session() as session:
        task_id = factories.make_pairwise_task(session).id
    call("POST", f"/api/v1/tasks/{task_id}/cancel")
    answer = client.post("/api/v1/assignments", json={}, headers=key("annotator", "annotate"))
    assert answer.json == {"assignment": None}


def test_a_priority_is_raised_and_counts(call: Any, key: Any, client: FlaskClient, database: Database) -> None:
    with database.session() as session:
        tasks = [factories.make_pairwise_task(session, rank=-n, a=f"a {n}").id for n in range(3)]
    answer = call("PATCH", f"/api/v1/tasks/{tasks[2]}", json={"priority": 9})
    assert answer.json["priority"] == 9
    shown = client.post("/api/v1/assignments", json={}, headers=key("annotator", "annotate")).json["assignment"]
    assert "a 2" in shown["completions"]
    assert call("PATCH", f"/api/v1/tasks/{tasks[2]}", json={"priority": "high"}).status_code == 400
    with database.read() as session:
        entry = session.scalars(select(AuditLog)).one()
        assert (entry.action, entry.before, entry.after) == ("task.priority", {"priority": 0}, {"priority": 9})


# Judgments and exports ------------------------------------------------------------------------------------------------


def test_judgments_of_a_task(call: Any, database: Database, people: dict[str, Person]) -> None:
    task_id = judged(database, people)
    (one,) = call("GET", f"/api/v1/tasks/{task_id}/judgments").json["data"]
    assert (one["annotator"], one["strength"], one["note"], one["latency_s"], one["imported"]) == (
        "annotator", 2, "n", 3.0, False,
    )  # fmt: skip
    first = one["shown_order"][0]
    assert one["choice"] == "ab"[first]
    assert [edit["text"] for edit in one["corrections"]] == ["Edited."]
    both = call("GET", f"/api/v1/tasks/{task_id}/judgments?simulated=true").json["data"]
    assert [row["simulated"] for row in both] == [False, True]
    assert call("GET", "/api/v1/tasks/999/judgments").status_code == 404


def test_judgments_by_kind_and_person(call: Any, database: Database, people: dict[str, Person]) -> None:
    judged(database, people)
    with database.session() as session:
        completion = factories.make_completion(session)
        record_feedback(session, completion_id=completion.id, annotator_id=None, thumbs=1)
        record_feedback(session, completion_id=completion.id, annotator_id=people["lead"].id, rating=2)

    def found(query: str) -> list[Any]:
        return [(row["kind"], row["annotator"]) for row in call("GET", f"/api/v1/judgments?{query}").json["data"]]

    assert found("") == [("pairwise", "annotator"), ("thumbs", None), ("rating", "lead")]
    assert found("kind=thumbs") == [("thumbs", None)]
    assert found("annotator=lead") == [("rating", "lead")]
    page = call("GET", "/api/v1/judgments?limit=1").json
    assert len(page["data"]) == 1
    assert call("GET", f"/api/v1/judgments?limit=5&after={page['next_after']}").json["next_after"] is None


def test_all_judgments_come_as_lines(
    call: Any, database: Database, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedback.api.judgments.ROWS_AT_A_TIME", 2)
    for _ in range(3):
        judged(database, people)
    answer = call("GET", "/api/v1/judgments/export?simulated=1")
    assert answer.mimetype == "application/jsonl"
    rows = [json.loads(line) for line in answer.text.splitlines()]
    with database.read() as session:
        assert [row["id"] for row in rows] == session.scalars(select(Judgment.id).order_by(Judgment.id)).all()
    assert rows[0] == call("GET", "/api/v1/judgments?limit=1").json["data"][0]
    assert len(call("GET", "/api/v1/judgments/export").text.splitlines()) == 3


@pytest.mark.parametrize(
    ("form", "n"), [("preference", 1), ("hh-rlhf", 1), ("unpaired", 0), ("tasks", 1), ("label-studio", 1)]
)
def test_each_form_is_exported(call: Any, database: Database, people: dict[str, Person], form: str, n: int) -> None:
    judged(database, people)
    answer = call("GET", f"/api/v1/export/{form}")
    assert answer.status_code == 200
    assert len([json.loads(line) for line in answer.text.splitlines()]) == n
    assert call("GET", "/api/v1/export/xml").status_code == 404


# PostgreSQL is stricter than SQLite -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("tasks/2147483647", 404), ("tasks/2147483648", 404), ("tasks/9223372036854775808", 404),
        ("tasks?after=2147483647", 200), ("tasks?after=2147483648", 400), ("tasks/2147483647/judgments", 404),
        ("judgments?annotator=a%00b", 400), ("people?after=9223372036854775807", 400), ("rules/a%00b", 400),
    ],
)  # fmt: skip
def test_numbers_and_texts_that_postgresql_does_not_take(
    settings: Settings, postgres_database: Database, path: str, status: int
) -> None:
    with postgres_database.session() as session:
        lead = factories.make_person(session, role="lead")
        secret = create_key(session, lead, "a program", "manage annotate")[1]
    client = create_app(settings, postgres_database).test_client()
    answer = client.get(f"/api/v1/{path}", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == status, answer.text


def test_one_task_out_of_many_calls_at_once(settings: Settings, postgres_database: Database) -> None:
    with postgres_database.session() as session:
        lead = factories.make_person(session, role="lead")
        secret = create_key(session, lead, "a program", "manage")[1]
    app = create_app(settings, postgres_database)

    def make(_: int) -> tuple[int, int]:
        answer = app.test_client().post("/api/v1/tasks", json=TASK, headers={"Authorization": f"Bearer {secret}"})
        return answer.status_code, answer.json["id"]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(make, range(12)))
    assert len({number for _, number in answers}) == 1
    assert set(dict.fromkeys(status for status, _ in answers)) <= {200, 201}
    with postgres_database.read() as session:
        assert len(session.scalars(select(Task)).all()) == 1
