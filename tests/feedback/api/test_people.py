"""`/api/v1/people`: roles, access, sessions and standing by programs, with real keys."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import SCOPES
from access.models import Person
from core.db import Database
from feedback.assignment.annotators import pause
from feedback.models import Annotator
from tests import factories
from tests.conftest import SignedIn
from tests.feedback.api.conftest import audited, bearer

CALLS: tuple[tuple[str, str, Any, str], ...] = (  # method, path below that of a person, body, scope
    ("GET", "", None, "manage"),
    ("PATCH", "", {"role": "reviewer"}, "people"),
    ("PATCH", "", {"active": False}, "people"),
    ("POST", "/sessions/end", None, "people"),
    ("POST", "/pause", {}, "manage"),
    ("POST", "/resume", {}, "manage"),
)


def audit(database: Database) -> list[tuple[str, str, str, Any, Any]]:
    return [(row.actor, row.action, row.subject, row.before, row.after) for row in audited(database)]


def stored(database: Database, person: Person) -> Person:
    with database.read() as session:
        return session.get_one(Person, person.id)


# Reading --------------------------------------------------------------------------------------------------------------


def test_people_are_listed_without_anything_secret(call: Any, people: dict[str, Person]) -> None:
    rows = call("GET", "/people?limit=2").json
    assert [row["login"] for row in rows["data"]] == ["annotator", "reviewer"]
    rest = call("GET", f"/people?after={rows['next_after']}").json
    assert [row["role"] for row in rest["data"]] == ["lead", "admin"]
    assert set(rows["data"][0]) == {"id", "login", "role", "scripted", "active", "standing", "created_at"}


def test_one_person(call: Any, database: Database, people: dict[str, Person], annotator: SignedIn) -> None:
    person = people["annotator"]
    row = call("GET", "/people?limit=1").json["data"][0]
    told = call("GET", f"/people/{person.id}").json
    assert told == row | {"standing_why": None, "sessions": 1, "why_not": None}
    with database.session() as session:
        pause(session, person.id, "lead", "let us talk")
    told = call("GET", f"/people/{person.id}").json
    assert (told["standing"], told["standing_why"]) == ("paused", "let us talk")
    assert "admins" in call("GET", f"/people/{people['admin'].id}").json["why_not"]
    assert "nobody changes their own" in call("GET", f"/people/{people['lead'].id}").json["why_not"]
    assert call("GET", "/people/999").status_code == 404


# Changing -------------------------------------------------------------------------------------------------------------


def test_a_role_is_given_as_on_the_page(
    call: Any, database: Database, people: dict[str, Person], lead: SignedIn
) -> None:
    person = people["annotator"]
    for _ in range(2):
        answer = call("PATCH", f"/people/{person.id}", json={"role": "reviewer"})
        assert (answer.status_code, answer.json["role"], answer.json["active"]) == (200, "reviewer", True)
    assert stored(database, person).role == "reviewer"
    assert 'value="reviewer" selected' in lead.client.get(f"/people/{person.id}").text
    subject = f"person:{person.id}"
    assert audit(database) == [("lead", "person.role", subject, {"role": "annotator"}, {"role": "reviewer"})]


def test_who_is_shut_out_is_out_at_once(
    call: Any, client: FlaskClient, database: Database, people: dict[str, Person], annotator: SignedIn
) -> None:
    headers = bearer(database, people["annotator"], "annotate")
    path = f"/people/{annotator.person.id}"
    told = call("PATCH", path, json={"active": False, "role": "reviewer"}).json
    assert (told["active"], told["role"], told["sessions"]) == (False, "reviewer", 0)
    assert annotator.client.get("/annotate").status_code == 302
    assert client.get("/api/v1/rules", headers=headers).status_code == 401
    told = call("PATCH", path, json={"active": True}).json
    assert (told["active"], told["sessions"]) == (True, 0)
    assert annotator.client.get("/annotate").status_code == 302  # old browsers do not come back
    assert client.get("/api/v1/rules", headers=headers).status_code == 200
    assert [entry[1] for entry in audit(database)] == ["person.role", "person.deactivate", "person.activate"]


def test_sessions_are_ended_and_keys_go_on(
    call: Any, client: FlaskClient, database: Database, people: dict[str, Person], annotator: SignedIn
) -> None:
    headers = bearer(database, people["annotator"], "annotate")
    path = f"/people/{annotator.person.id}/sessions/end"
    assert [call("POST", path).json for _ in range(2)] == [{"ended": 1}, {"ended": 0}]
    assert annotator.client.get("/annotate").status_code == 302
    assert client.get("/api/v1/rules", headers=headers).status_code == 200
    assert audit(database)[0] == ("lead", "session.end", f"person:{annotator.person.id}", None, {"ended": 1})


def test_a_lead_looks_after_annotators_and_reviewers(call: Any, database: Database, people: dict[str, Person]) -> None:
    def patch(who: str, body: Any, role: str = "lead") -> int:
        status: int = call("PATCH", f"/people/{people[who].id}", role=role, json=body).status_code
        return status

    with database.session() as session:
        people["other"] = factories.make_person(session, "other", "lead")
    for who in ("other", "admin"):
        assert patch(who, {"role": "annotator"}) == 403
        assert patch(who, {"active": False}) == 403
        assert call("POST", f"/people/{people[who].id}/sessions/end").status_code == 403
    for role in ("lead", "admin"):
        assert patch("annotator", {"role": role, "active": False}) == 403
    for body in ({"role": "admin"}, {"role": "annotator"}, {"active": True}, {"active": False}):
        assert patch("lead", body) == 403  # nobody lifts, or lowers, themselves
        assert patch("admin", body, role="admin") == 403
    assert call("POST", f"/people/{people['lead'].id}/sessions/end").status_code == 403
    assert audit(database) == []
    assert all(stored(database, person).role in (role, "lead") for role, person in people.items())
    assert all(stored(database, person).active for person in people.values())
    assert patch("other", {"role": "admin"}, role="admin") == 200


def test_the_last_admin_stays(call: Any, client: FlaskClient, database: Database, people: dict[str, Person]) -> None:
    """A script with the role of an admin can sign nobody in, so it does not count."""
    with database.session() as session:
        script = factories.make_person(session, "script", "admin", scripted=True)
    headers = bearer(database, script)
    path = f"/api/v1/people/{people['admin'].id}"
    for body in ({"role": "lead"}, {"active": False}):
        answer = client.patch(path, json=body, headers=headers)
        assert (answer.status_code, answer.json["type"]) == (409, "urn:dunnock:conflict")
    assert audit(database) == []
    call("PATCH", f"/people/{people['lead'].id}", role="admin", json={"role": "admin"})
    assert client.patch(path, json={"active": False}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"role": None}, {"role": "king"}, {"active": "perhaps"}, {"login": "x"}, {"role": "lead", "id": 1}, []]
)
def test_what_is_no_change_is_refused(call: Any, people: dict[str, Person], body: Any) -> None:
    answer = call("PATCH", f"/people/{people['annotator'].id}", json=body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")


@pytest.mark.parametrize(("method", "path", "body", "_"), CALLS)
def test_nobody_is_found_who_is_not_there(call: Any, method: str, path: str, body: Any, _: str) -> None:
    assert call(method, f"/people/999{path}", json=body).status_code == 404


def test_nobody_is_made_here(call: Any) -> None:
    assert call("POST", "/people", json={"login": "wren", "role": "admin"}).status_code == 405


# Standing -------------------------------------------------------------------------------------------------------------


def test_an_annotator_is_paused_and_goes_on(
    call: Any, client: FlaskClient, database: Database, people: dict[str, Person], lead: SignedIn
) -> None:
    person = people["annotator"]
    headers = bearer(database, person, "annotate")
    for _ in range(2):
        told = call("POST", f"/people/{person.id}/pause", json={"reason": " let us talk\0 "}).json
        assert (told["standing"], told["standing_why"], told["active"]) == ("paused", "let us talk", True)
    refused = client.post("/api/v1/assignments", json={}, headers=headers)
    assert (refused.status_code, refused.json["type"]) == (403, "urn:dunnock:annotator_paused")
    page = lead.client.post(f"/quality/annotators/{person.id}/pause", follow_redirects=True).text
    assert "paused already; nothing was changed" in page
    assert call("POST", f"/people/{person.id}/resume", json={}).json["standing"] == "good"
    assert client.post("/api/v1/assignments", json={}, headers=headers).json == {"assignment": None}
    assert call("POST", f"/people/{person.id}/resume", json={}).json["standing"] == "good"
    assert [entry[:3] for entry in audit(database)] == [
        ("lead", "annotator.paused", f"person:{person.id}"), ("lead", "annotator.good", f"person:{person.id}"),
    ]  # fmt: skip
    for body in ({"reason": "x" * 501}, {"why": "x"}, []):
        assert call("POST", f"/people/{person.id}/pause", json=body).status_code == 400


# Who ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", CALLS, ids=str)
@pytest.mark.parametrize("who", ["nobody", "annotator", "reviewer", "wrong scope", "demoted", "deactivated"])
def test_who_may_not(
    client: FlaskClient, key: Any, database: Database, people: dict[str, Person], who: str, asked: Any
) -> None:
    method, path, body, scope = asked
    scopes = {*SCOPES} - {scope} if who == "wrong scope" else SCOPES
    headers = {} if who == "nobody" else key(who if who in people else "lead", " ".join(scopes))
    with database.session() as session:
        lead = session.get_one(Person, people["lead"].id)
        lead.role, lead.active = ("annotator" if who == "demoted" else "lead"), who != "deactivated"
    answer = client.open(f"/api/v1/people/{people['annotator'].id}{path}", method=method, json=body, headers=headers)
    assert answer.status_code == (401 if who in ("nobody", "deactivated") else 403)
    assert answer.mimetype == "application/problem+json"
    assert audit(database) == []
    with database.read() as session:
        assert session.scalars(select(Annotator)).all() == []


def test_a_leads_browser_changes_people_with_its_csrf_token(
    app: Flask, lead: SignedIn, people: dict[str, Person]
) -> None:
    path = f"/api/v1/people/{people['annotator'].id}"
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.patch(path, json={"role": "reviewer"}).status_code == 403
    app.config["WTF_CSRF_ENABLED"] = False
    assert lead.client.patch(path, json={"role": "reviewer"}).status_code == 200


# At the same time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"role": "annotator"}, {"active": False}], ids=["demote", "deactivate"])
def test_of_two_admins_who_turn_on_each_other_one_is_left(
    either_app: Flask, either: Database, programs: Any, body: dict[str, Any]
) -> None:
    """There is a third, so it is not the rule of the last admin that decides."""
    for turn in range(3):
        with either.session() as session:
            for person in session.scalars(select(Person)):
                person.login = person.login_key = f"{turn}-{person.login}"
        keys = programs(3, "admin")
        with either.read() as session:
            ids = [session.scalars(select(Person.id).where(Person.login == f"admin-{n}")).one() for n in range(2)]
        barrier = Barrier(2)

        def turn_on(n: int, ids: list[int] = ids, keys: Any = keys, barrier: Barrier = barrier) -> int:
            barrier.wait()
            path = f"/api/v1/people/{ids[1 - n]}"
            return either_app.test_client().patch(path, json=body, headers=keys[n]).status_code

        with ThreadPoolExecutor(2) as pool:
            statuses = sorted(pool.map(turn_on, range(2)))
        assert statuses in ([200, 403], [200, 401])  # who comes second is no admin any more, or not let in
        with either.read() as session:
            left = session.scalars(select(Person).where(Person.id.in_(ids))).all()
        assert sum(person.role == "admin" and person.active for person in left) == 1


def test_leads_who_pause_one_annotator_at_once(either_app: Flask, either: Database, programs: Any) -> None:
    keys = programs(6)
    with either.session() as session:
        person = factories.make_person(session)
    barrier = Barrier(6)

    def stop(headers: dict[str, str]) -> Any:
        barrier.wait()
        return either_app.test_client().post(f"/api/v1/people/{person.id}/pause", json={}, headers=headers)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(stop, keys))
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert [entry[1] for entry in audit(either)] == ["annotator.paused"]
