"""One's own account: password, sessions, keys."""

import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import authenticate, create_key
from access.models import ApiKey, AuditLog, Person, SessionRecord
from core.db import Database, utcnow
from core.errors import Unauthenticated
from tests.conftest import SignedIn
from tests.factories import PASSWORD

NEW = "nine quiet grey herons"
SignIn = Callable[[Person], SignedIn]


def change(client: FlaskClient, old: str = PASSWORD, new: str = NEW, again: str | None = None, **more: str) -> str:
    """What the page says after changing the password."""
    data = {"old": old, "new": new, "again": new if again is None else again} | more
    return client.post("/account/password", data=data, follow_redirects=True).text


def actions(database: Database) -> list[str]:
    with database.read() as session:
        rows = session.scalars(
            select(AuditLog.action).where(AuditLog.action != "session.sign_in").order_by(AuditLog.id)
        )
        return list(rows)


def test_a_new_password_asks_the_old_one_and_ends_other_sessions(
    annotator: SignedIn, sign_in: SignIn, database: Database
) -> None:
    other = sign_in(annotator.person).client
    cookie = annotator.client.get_cookie("dunnock")
    for wrong, said in [
        ({"old": "wrong"}, "old password is not right"),
        ({"again": "another"}, "not the same"),
        ({"new": "short"}, "characters"),
        ({"new": "annotator!!"}, "easy to guess"),
    ]:
        assert said in change(annotator.client, **wrong)
        assert other.get("/account").status_code == 200
    assert "Your password is changed" in change(annotator.client)
    assert other.get("/account").status_code == 302
    assert annotator.client.get("/account").status_code == 200
    after = annotator.client.get_cookie("dunnock")
    assert cookie is not None
    assert after is not None
    assert cookie.value != after.value
    stale = annotator.client.application.test_client()
    stale.set_cookie("dunnock", cookie.value)  # a stolen cookie of before is worth nothing
    assert stale.get("/account").status_code == 302
    assert actions(database) == ["person.password"]


@pytest.mark.parametrize(("ticked", "works"), [({"keys": "yes"}, False), ({}, True)])
def test_a_new_password_ends_ones_keys_if_that_is_ticked(
    annotator: SignedIn, database: Database, ticked: dict[str, str], works: bool
) -> None:
    with database.session() as session:
        key, secret = create_key(session, session.get_one(Person, annotator.person.id), "laptop")
    assert 'name="keys" value="yes" checked' in annotator.client.get("/account").text
    change(annotator.client, **ticked)
    with database.read() as session:
        if works:
            assert authenticate(session, secret, "chat").key_id == key.id
        else:
            with pytest.raises(Unauthenticated):
                authenticate(session, secret, "chat")
    assert actions(database) == (["person.password"] if works else ["key.revoke", "person.password"])


def test_guessing_the_old_password_is_throttled(annotator: SignedIn) -> None:
    for _ in range(10):
        assert "not right" in change(annotator.client, old="wrong")
    assert "Too many attempts" in change(annotator.client)


def test_sessions_are_seen_and_ended(annotator: SignedIn, app: object, sign_in: SignIn, database: Database) -> None:
    phone = sign_in(annotator.person).client
    page = annotator.client.get("/account").text
    assert page.count("this browser") == 1
    with database.read() as session:
        rows = session.scalars(select(SessionRecord).order_by(SessionRecord.id)).all()
    assert [(row.address, row.method) for row in rows] == [("127.0.0.1", "password")] * 2
    assert all(row.user_agent for row in rows)
    assert annotator.client.post(f"/account/sessions/{rows[1].id}/end").status_code == 303
    assert phone.get("/annotate").status_code == 302
    assert annotator.client.post(f"/account/sessions/{rows[0].id}/end").status_code == 303
    assert annotator.client.get("/annotate").status_code == 302  # also this very one


def test_nobody_ends_a_session_of_somebody_else(annotator: SignedIn, lead: SignedIn, database: Database) -> None:
    with database.read() as session:
        theirs = session.scalars(select(SessionRecord.id).where(SessionRecord.person_id == lead.person.id)).one()
    assert annotator.client.post(f"/account/sessions/{theirs}/end").status_code == 404
    assert lead.client.get("/account").status_code == 200


def test_all_others_at_once(annotator: SignedIn, lead: SignedIn, sign_in: SignIn) -> None:
    others = [sign_in(annotator.person).client for _ in range(2)]
    assert "(2)" in annotator.client.post("/account/sessions/end", follow_redirects=True).text
    assert [other.get("/account").status_code for other in others] == [302, 302]
    assert annotator.client.get("/account").status_code == lead.client.get("/account").status_code == 200


def test_signing_out_ends_the_session_for_good(annotator: SignedIn) -> None:
    cookie = annotator.client.get_cookie("dunnock")
    assert cookie is not None
    annotator.client.post("/sign-out")
    thief = annotator.client.application.test_client()
    thief.set_cookie("dunnock", cookie.value)  # before there were records, a copied cookie lived on
    assert thief.get("/annotate").status_code == 302


def test_keys_are_made_shown_once_used_and_revoked(annotator: SignedIn, database: Database) -> None:
    page = annotator.client.post(
        "/account/keys", data={"name": "<b>laptop</b>", "scopes": ["chat", "annotate"], "days": "90"}
    ).text
    found = re.search(r"dk-[\w-]+", page)
    assert found is not None
    secret = found[0]
    assert "&lt;b&gt;laptop&lt;/b&gt;" in page
    listed = annotator.client.get("/account").text
    assert secret not in listed
    assert "chat annotate" in listed
    with database.read() as session:
        key = session.scalars(select(ApiKey)).one()
    assert key.expires_at is not None
    assert 89 <= (key.expires_at - utcnow()).days <= 90

    def call() -> int:
        client = annotator.client.application.test_client()
        return client.post("/api/v1/assignments", json={}, headers={"Authorization": f"Bearer {secret}"}).status_code

    assert call() == 200
    assert annotator.client.post(f"/account/keys/{key.id}/revoke").status_code == 303
    assert call() == 401
    assert annotator.client.post(f"/account/keys/{key.id}/revoke").status_code == 303
    assert actions(database) == ["key.add", "key.revoke"]


@pytest.mark.parametrize(
    ("data", "said"),
    [({"scopes": []}, "use one or more"), ({"scopes": ["root"]}, "Not all of these"), ({"name": " "}, "needs a name"),
     ({"days": "7"}, "how long"), ({"days": "x"}, "how long"), ({"days": ""}, "how long")],
)  # fmt: skip
def test_a_key_that_cannot_be_made(annotator: SignedIn, database: Database, data: dict[str, object], said: str) -> None:
    whole = {"name": "laptop", "scopes": ["chat"], "days": "30", **data}
    assert said in annotator.client.post("/account/keys", data=whole, follow_redirects=True).text
    with database.read() as session:
        assert session.scalars(select(ApiKey)).all() == []


def test_only_ones_own_keys_and_all_of_them_for_admins(
    annotator: SignedIn, lead: SignedIn, people: dict[str, Person], sign_in: SignIn, database: Database
) -> None:
    annotator.client.post("/account/keys", data={"name": "laptop", "scopes": "chat", "days": "0"})
    with database.read() as session:
        key = session.scalars(select(ApiKey)).one()
    assert key.expires_at is None
    assert lead.client.post(f"/account/keys/{key.id}/revoke").status_code == 404
    assert lead.client.post(f"/keys/{key.id}/revoke").status_code == 403
    assert sign_in(people["admin"]).client.post(f"/keys/{key.id}/revoke").status_code == 303
    with database.read() as session:
        assert session.get_one(ApiKey, key.id).revoked_at is not None
