"""The pages of people and invitations, and the page that an invitation's link opens."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from access.models import Invitation, Person, SessionRecord
from core.db import Database
from tests import factories
from tests.conftest import SignedIn

NEW = "nine quiet grey herons"
SignIn = Callable[[Person], SignedIn]


def link_in(page: str) -> str:
    """The path of the link that a page shows once."""
    found = re.search(r'id="link"[^>]*>([^<]+)<', page)
    assert found is not None, page
    return urlsplit(found[1]).path


def accept(client: FlaskClient, path: str, login: str = "wren", password: str = NEW, again: str = NEW) -> int:
    return client.post(path, data={"login": login, "password": password, "again": again}).status_code


def test_from_invitation_to_work(lead: SignedIn, client: FlaskClient, database: Database) -> None:
    page = lead.client.post("/invitations", data={"role": "annotator", "note": "for <b>Wren</b>"}).text
    path = link_in(page)
    assert path not in lead.client.get("/invitations").text  # shown once
    listed = lead.client.get("/invitations").text
    assert "for &lt;b&gt;Wren&lt;/b&gt;" in listed
    assert "badge-live" in listed

    assert client.get(path).status_code == 200
    assert client.get(path).status_code == 200  # looking does not use it up
    assert accept(client, path, again="something else") == 400
    assert accept(client, path, password="short", again="short") == 400
    assert accept(client, path, login="lead") == 409
    assert 'value="lead"' in client.post(path, data={"login": "lead", "password": NEW, "again": NEW}).text
    assert accept(client, path) == 303
    assert client.get("/annotate").status_code == 200
    assert accept(client, path, login="second") == 404
    assert "wren" in lead.client.get("/invitations").text
    with database.read() as session:
        assert session.scalars(select(SessionRecord.method).order_by(SessionRecord.id.desc())).first() == "invitation"


def test_a_revoked_link(lead: SignedIn, client: FlaskClient, database: Database) -> None:
    path = link_in(lead.client.post("/invitations", data={"role": "reviewer"}).text)
    with database.read() as session:
        number = session.scalars(select(Invitation.id)).one()
    assert lead.client.post(f"/invitations/{number}/revoke").status_code == 303
    answer = client.get(path)
    assert answer.status_code == 404
    assert "ask for a new one" in answer.text
    assert accept(client, path) == 404


def test_a_lead_is_offered_and_given_what_is_theirs(lead: SignedIn, people: dict[str, Person]) -> None:
    page = lead.client.get("/invitations").text
    assert re.findall(r'<option value="(\w+)"', page) == ["annotator", "reviewer"]
    assert lead.client.post("/invitations", data={"role": "admin"}).status_code == 403
    assert lead.client.post("/invitations", data={"role": "king"}).status_code == 400
    admin = lead.client.get(f"/people/{people['admin'].id}").text
    assert "You only look here" in admin
    assert "<select" not in admin
    for act in ("role", "deactivate", "sessions/end", "reset"):
        answer = lead.client.post(f"/people/{people['admin'].id}/{act}", data={"role": "annotator"})
        assert answer.status_code == 403, act
        assert lead.client.post(f"/people/{lead.person.id}/{act}", data={"role": "annotator"}).status_code == 403, act


def test_role_access_and_sessions_of_a_person(
    lead: SignedIn, annotator: SignedIn, people: dict[str, Person], sign_in: SignIn
) -> None:
    url = f"/people/{annotator.person.id}"
    assert lead.client.post(f"{url}/role", data={"role": "reviewer"}).status_code == 303
    assert annotator.client.get("/policies").status_code == 200  # at once
    assert lead.client.post(f"{url}/sessions/end").status_code == 303
    assert annotator.client.get("/annotate").status_code == 302
    again = sign_in(annotator.person).client
    assert lead.client.post(f"{url}/deactivate").status_code == 303
    assert again.get("/annotate").status_code == 302
    assert "deactivated" in lead.client.get(url).text
    data = {"login": "annotator", "password": factories.PASSWORD}
    assert again.post("/sign-in", data=data).status_code == 401
    assert lead.client.post(f"{url}/activate").status_code == 303
    assert again.post("/sign-in", data=data).status_code == 302
    page = lead.client.get(url).text
    assert [word in page for word in ("person.role", "person.deactivate", "person.activate", "session.end")] == [
        True
    ] * 4


def test_a_reset_link_sets_a_password_and_ends_sessions(
    lead: SignedIn, annotator: SignedIn, client: FlaskClient
) -> None:
    path = link_in(lead.client.post(f"/people/{annotator.person.id}/reset").text)
    assert annotator.client.get("/annotate").status_code == 200
    page = client.get(path).text
    assert "annotator" in page
    assert client.get(f"{path}/oidc").status_code == 404
    assert accept(client, path, login="lead") == 303  # the login is the link's, whatever is sent
    assert annotator.client.get("/annotate").status_code == 302
    assert 'id="who"' in client.get("/annotate").text
    assert client.get("/people").status_code == 403


def test_the_list_filters_and_shows_names_as_text(lead: SignedIn, database: Database) -> None:
    nasty = "<img src=x onerror=alert(1)>\u202e"
    with database.session() as session:
        factories.make_person(session, nasty.replace("\u202e", ""), "reviewer")
        factories.make_person(session, "gone", active=False)
    page = lead.client.get("/people").text
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<img src=x" not in page
    assert "gone" in lead.client.get("/people?active=no").text
    assert "lead" not in re.findall(r'people/\d+">([^<]+)', lead.client.get("/people?active=no").text)
    assert "Nobody is like that" in lead.client.get("/people?q=zzz").text
    assert lead.client.get("/people?role=king").status_code == 400


@pytest.mark.parametrize("before", ["x", "-1", "1e3", "9" * 30, "²"])
def test_a_bad_page_of_a_list_is_said(lead: SignedIn, before: str) -> None:
    assert lead.client.get("/invitations", query_string={"before": before}).status_code == 400
    assert lead.client.get("/audit", query_string={"before": before}).status_code == 400


def test_admins_see_keys_of_people_and_leads_do_not(
    people: dict[str, Person], sign_in: SignIn, annotator: SignedIn
) -> None:
    annotator.client.post("/account/keys", data={"name": "laptop-key", "scopes": "chat", "days": "30"})
    url = f"/people/{annotator.person.id}"
    assert "laptop-key" not in sign_in(people["lead"]).client.get(url).text
    admin = sign_in(people["admin"]).client
    assert "laptop-key" in admin.get(url).text
    assert "laptop-key" in admin.get("/keys").text
