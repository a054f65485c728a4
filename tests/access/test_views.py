"""Signing in and out, and who may see a page."""

import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access import throttle
from access.models import AuditLog, Person, SessionRecord
from access.people import hash_password
from access.views import require_role
from core.db import Database
from tests.conftest import SignedIn
from tests.factories import PASSWORD

SignIn = Callable[[Person], SignedIn]


def sign_in_form(login: str, password: str = PASSWORD, **more: str) -> dict[str, str]:
    return {"login": login, "password": password, **more}


def test_pages_lead_to_sign_in_and_back(client: FlaskClient, people: dict[str, Person]) -> None:
    answer = client.get("/annotate?x=1")
    assert answer.status_code == 302
    assert answer.location == "/sign-in?next=/annotate?x%3D1"
    assert 'name="next" value="/annotate?x=1"' in client.get(answer.location).text
    answer = client.post("/sign-in", data=sign_in_form("annotator", next="/annotate?x=1"))
    assert (answer.status_code, answer.location) == (302, "/annotate?x=1")
    assert client.get("/annotate").status_code == 200


def test_programs_get_401_and_no_redirect(client: FlaskClient) -> None:
    answer = client.put("/annotate/x/draft", json={}, headers={"Accept": "application/json"})
    assert answer.status_code == 401
    assert answer.get_json()["type"] == "urn:dunnock:not_signed_in"


def test_a_wrong_password_says_so_and_keeps_the_login(client: FlaskClient, people: dict[str, Person]) -> None:
    answer = client.post("/sign-in", data=sign_in_form("annotator", "wrong password"))
    assert answer.status_code == 401
    assert "not right" in answer.text
    assert 'value="annotator"' in answer.text
    assert client.get("/annotate").status_code == 302


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil", "javascript:alert(1)", "evil", "/a\\b",
     "/\tx", "/\n/evil.example", ""],
)  # fmt: skip
def test_next_never_leads_elsewhere(client: FlaskClient, people: dict[str, Person], target: str) -> None:
    answer = client.post("/sign-in", data=sign_in_form("annotator", next=target))
    assert answer.location == "/"


def test_sign_in_is_throttled_by_login_and_address(client: FlaskClient, people: dict[str, Person]) -> None:
    statuses = [client.post("/sign-in", data=sign_in_form("annotator", "wrong")).status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert "Wait a minute" in client.post("/sign-in", data=sign_in_form("annotator")).text
    other = client.post("/sign-in", data=sign_in_form("annotator"), environ_base={"REMOTE_ADDR": "10.0.0.9"})
    assert other.status_code == 302


def test_sign_in_and_out_refuse_forms_without_the_token(app: Flask, people: dict[str, Person]) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    client = app.test_client()
    assert client.post("/sign-in", data=sign_in_form("annotator")).status_code == 400
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/sign-in").text)
    assert found is not None
    assert client.post("/sign-in", data=sign_in_form("annotator", csrf_token=found[1])).status_code == 302
    assert client.post("/sign-out").status_code == 400
    assert client.post("/sign-out", data={"csrf_token": found[1]}).status_code == 400  # the old session's token
    assert client.get("/annotate").status_code == 200


def test_sign_out_ends_the_session(annotator: SignedIn) -> None:
    assert annotator.client.get("/annotate").status_code == 200
    assert annotator.client.post("/sign-out").location == "/sign-in"
    assert annotator.client.get("/annotate").status_code == 302


def test_a_session_ends_with_the_account_the_password_or_the_browser(
    database: Database, people: dict[str, Person], sign_in: SignIn
) -> None:
    moved, changed, left = (sign_in(people[role]).client for role in ("reviewer", "annotator", "lead"))
    with database.session() as session:
        session.get_one(Person, people["annotator"].id).password_hash = hash_password("another long passphrase")
        session.get_one(Person, people["lead"].id).active = False
    assert changed.get("/annotate").status_code == 302
    assert left.get("/annotate").status_code == 302
    assert moved.get("/annotate", headers={"User-Agent": "another browser"}).status_code == 302


def test_a_cookie_that_shows_up_in_another_browser_ends_the_session_for_whoever_has_it(
    annotator: SignedIn, database: Database
) -> None:
    stolen = annotator.client.get_cookie("dunnock")
    assert stolen is not None
    thief = annotator.client.application.test_client()
    thief.set_cookie("dunnock", stolen.value)
    assert thief.get("/account", headers={"User-Agent": "another browser"}).status_code == 302
    assert thief.get("/account").status_code == 302  # nor with the right browser, which could be guessed
    assert annotator.client.get("/account").status_code == 302
    with database.read() as session:
        assert session.scalars(select(SessionRecord.ended_at)).one() is not None
        entry = session.scalars(select(AuditLog).where(AuditLog.action == "session.end")).one()
    assert (entry.actor, entry.after) == ("session check", {"session": 1, "why": "moved"})


def test_a_session_outlives_a_change_of_networks(annotator: SignedIn) -> None:
    assert annotator.client.get("/account", environ_base={"REMOTE_ADDR": "10.0.0.9"}).status_code == 200


def test_strangers_cannot_lock_somebody_out(app: Flask, annotator: SignedIn, database: Database) -> None:
    assert annotator.client.post("/sign-out").status_code == 302
    for n in range(100):
        throttle.admit(database, app.config["SECRET_KEY"], "Annotator", f"10.1.{n}.1")
    stranger = app.test_client().post(
        "/sign-in", data=sign_in_form("annotator"), environ_base={"REMOTE_ADDR": "10.9.9.9"}
    )
    assert stranger.status_code == 429  # the right password too: so a guess that hits is not told
    away = {"REMOTE_ADDR": "10.7.7.7"}  # their own browser, in another place
    assert annotator.client.post("/sign-in", data=sign_in_form("annotator"), environ_base=away).status_code == 302
    home = app.test_client()  # a new browser, where they signed in before
    assert home.post("/sign-in", data=sign_in_form("ANNOTATOR")).status_code == 302
    assert app.test_client().post("/sign-in", data=sign_in_form("lead")).status_code == 302  # nobody else is concerned


def test_the_mark_of_a_device_is_of_one_login_and_cannot_be_made_up(app: Flask, annotator: SignedIn) -> None:
    mark = annotator.client.get_cookie("dunnock-device")
    assert mark is not None
    assert mark.http_only
    assert mark.same_site == "Lax"
    again = annotator.client.post("/sign-in", data=sign_in_form("annotator"))
    assert again.status_code == 302
    kept = annotator.client.get_cookie("dunnock-device")
    assert kept is not None
    assert kept.value == mark.value


def test_roles_open_pages(app: Flask, people: dict[str, Person], sign_in: SignIn) -> None:
    app.add_url_rule("/leads-only", view_func=require_role("lead")(lambda: "in"))
    statuses = {role: sign_in(person).client.get("/leads-only").status_code for role, person in people.items()}
    assert statuses == {"annotator": 403, "reviewer": 403, "lead": 200, "admin": 200}
    assert app.test_client().get("/leads-only").status_code == 302


def test_signing_in_is_recorded(annotator: SignedIn, database: Database) -> None:
    with database.read() as session:
        entry = session.scalars(select(AuditLog)).one()
    assert (entry.actor, entry.action) == ("annotator", "session.sign_in")


def test_the_head_shows_what_the_role_may_open(people: dict[str, Person], sign_in: SignIn) -> None:
    assert "/policies" not in sign_in(people["annotator"]).client.get("/annotate").text
    assert "/policies" in sign_in(people["lead"]).client.get("/annotate").text
