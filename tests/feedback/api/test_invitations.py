"""`/api/v1/invitations`: links for new people by programs, with real keys."""

from typing import Any
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from access.invitations import make_reset
from access.models import ApiKey, Invitation, Person
from core.db import Database
from tests.feedback.api.conftest import ALL, audited

NEW = "nine quiet grey herons"


def accept(client: FlaskClient, link: str, login: str = "wren") -> int:
    form = {"login": login, "password": NEW, "again": NEW}
    return client.post(urlsplit(link).path, data=form).status_code


def audit(database: Database) -> list[tuple[str, str]]:
    return [(entry.actor, entry.action) for entry in audited(database)]


def test_from_a_call_to_somebody_at_work(call: Any, client: FlaskClient, database: Database) -> None:
    answer = call("POST", "/invitations", json={"role": "reviewer", "note": " for Wren\0 "})
    assert answer.status_code == 201
    made = answer.json
    assert made["link"].endswith(f"/invitation/{made['token']}")
    assert (made["role"], made["note"], made["state"], made["made_by"], made["person_id"]) == (
        "reviewer", "for Wren", "open", "lead", None,
    )  # fmt: skip
    listed = call("GET", "/invitations")
    assert made["token"] not in listed.text  # shown once
    assert listed.json["data"] == [{name: made[name] for name in made if name not in ("token", "link")}]
    assert client.get(urlsplit(made["link"]).path).status_code == 200
    assert accept(client, made["link"]) == 303
    assert client.get("/annotate").status_code == 200
    with database.read() as session:
        wren = session.scalars(select(Person).where(Person.login == "wren")).one()
        assert (wren.role, session.scalars(select(Invitation)).one().used_by_id) == ("reviewer", wren.id)
    (row,) = call("GET", "/invitations").json["data"]
    assert (row["state"], row["used_by_id"], row["used_at"] is None) == ("used", wren.id, False)
    with database.read() as session:
        key_id = session.scalars(select(ApiKey.id)).first()
    assert [entry.via for entry in audited(database)][:3] == [f"api_key:{key_id}", "browser", "browser"]
    assert audit(database)[:3] == [("lead", "invitation.make"), ("wren", "person.add"), ("wren", "invitation.accept")]


def test_a_call_that_is_sent_again_makes_another_link(call: Any) -> None:
    first, second = (call("POST", "/invitations", json={"role": "annotator"}).json for _ in range(2))
    assert first["id"] != second["id"]
    assert first["token"] != second["token"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"role": "lead"}, 403),
        ({"role": "admin"}, 403),
        ({"role": "king"}, 400),
        ({}, 400),
        ({"role": "annotator", "note": "x" * 201}, 400),
        ({"role": "annotator", "login": "wren"}, 400),
        ([], 400),
    ],
)
def test_links_that_a_lead_cannot_make(call: Any, database: Database, body: Any, status: int) -> None:
    answer = call("POST", "/invitations", json=body)
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")
    assert audit(database) == []
    if status == 403:
        assert call("POST", "/invitations", role="admin", json=body).status_code == 201


def test_a_link_is_revoked(call: Any, client: FlaskClient, database: Database) -> None:
    made = call("POST", "/invitations", json={"role": "annotator"}).json
    path = f"/invitations/{made['id']}/revoke"
    first, second = (call("POST", path) for _ in range(2))
    assert (first.status_code, first.json["state"], first.json["made_by"]) == (200, "revoked", "lead")
    assert second.json == first.json
    assert accept(client, made["link"]) == 404
    assert audit(database) == [("lead", "invitation.make"), ("lead", "invitation.revoke")]
    above = call("POST", "/invitations", role="admin", json={"role": "lead"}).json
    assert call("POST", f"/invitations/{above['id']}/revoke").status_code == 403
    assert call("POST", f"/invitations/{above['id']}/revoke", role="admin").status_code == 200
    assert call("POST", "/invitations/999/revoke").status_code == 404


@pytest.mark.parametrize("change", [{"role": "annotator"}, {"active": False}])
def test_a_link_is_void_when_its_maker_could_not_make_it_any_more(
    call: Any, client: FlaskClient, people: dict[str, Person], change: dict[str, Any]
) -> None:
    made = call("POST", "/invitations", json={"role": "annotator"}).json
    assert client.get(urlsplit(made["link"]).path).status_code == 200
    assert call("PATCH", f"/people/{people['lead'].id}", role="admin", json=change).status_code == 200
    assert client.get(urlsplit(made["link"]).path).status_code == 404
    assert accept(client, made["link"]) == 404


def test_links_come_page_by_page_and_never_open_anything(
    call: Any, client: FlaskClient, database: Database, people: dict[str, Person]
) -> None:
    made = [call("POST", "/invitations", json={"role": "annotator", "note": str(n)}).json for n in range(3)]
    with database.session() as session:
        reset, token = make_reset(session, people["lead"], people["reviewer"].id, 60)
    seen, after, text = [], 0, ""
    while after is not None:
        page = call("GET", f"/invitations?limit=2&after={after}")
        seen += page.json["data"]
        after, text = page.json["next_after"], text + page.text
    assert [row["id"] for row in seen] == [*(one["id"] for one in made), reset.id]
    assert (seen[-1]["person_id"], seen[-1]["role"]) == (people["reviewer"].id, None)
    assert not any(secret in text for secret in (token, reset.token_sha256, *(one["token"] for one in made)))
    assert call("GET", "/invitations?limit=0").status_code == 400
    assert call("GET", "/invitations?colour=red").status_code == 400


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/invitations"), ("POST", "/invitations"), ("POST", "/invitations/1/revoke")]
)
@pytest.mark.parametrize("who", ["nobody", "annotator", "reviewer", "wrong scope", "demoted", "deactivated"])
def test_who_may_not(
    client: FlaskClient, key: Any, database: Database, people: dict[str, Person], who: str, method: str, path: str
) -> None:
    headers = key("lead", "manage annotate chat feedback" if who == "wrong scope" else ALL)
    if who == "nobody":
        headers = {}
    elif who in people:
        headers = key(who, ALL)
    with database.session() as session:
        lead = session.get_one(Person, people["lead"].id)
        lead.role, lead.active = ("reviewer" if who == "demoted" else "lead"), who != "deactivated"
    sent = {"role": "annotator"} if path == "/invitations" and method == "POST" else None
    answer = client.open(f"/api/v1{path}", method=method, json=sent, headers=headers)
    assert answer.status_code == (401 if who in ("nobody", "deactivated") else 403)
    assert answer.mimetype == "application/problem+json"
    assert audit(database) == []
