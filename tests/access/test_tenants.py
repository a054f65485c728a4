"""Tenants: making, changing, pausing, keys that can do little, an account that nobody signs in with, pins."""

from collections.abc import Callable

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.audit import Filters, entries
from access.invitations import make_reset
from access.keys import SCOPES, TENANT_SCOPES, authenticate, create_key
from access.limits import Terms
from access.models import ApiKey, Person
from access.names import checked_login
from access.people import create_person
from access.tenants import (
    Agreed,
    change_tenant,
    create_tenant,
    key_of,
    make_key,
    pinned,
    revoke,
    set_active,
    tenant_id_of,
    tenant_keys,
)
from core.db import Database
from core.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthenticated
from tests.conftest import SignedIn
from tests.factories import make_person


def test_a_tenant_has_a_lasting_key_and_an_account(session: Session) -> None:
    tenant = create_tenant(session, "lead", Agreed("  Vögel &  Söhne GmbH ", 10, 2000, "v3"))
    assert (tenant.name, tenant.key, tenant.active) == ("Vögel & Söhne GmbH", "vögel-söhne-gmbh", True)
    account = session.scalars(select(Person).where(Person.tenant_id == tenant.id)).one()
    assert (account.login, account.password_hash, account.role) == ("tenant:vögel-söhne-gmbh", None, "annotator")
    change_tenant(session, "admin", tenant.id, Agreed("Birds Ltd", None, 2000, None))
    assert (tenant.key, tenant_keys(session, [tenant.id, None])) == (
        "vögel-söhne-gmbh",
        {tenant.id: "vögel-söhne-gmbh"},
    )
    rows, _ = entries(session, Filters(subject=f"tenant:{tenant.id}"))
    assert [(row.actor, row.action) for row in rows] == [("admin", "tenant.change"), ("lead", "tenant.add")]
    assert rows[0].before == {"name": "Vögel & Söhne GmbH", "requests_per_minute": 10, "policy_version": "v3"}
    assert rows[0].after == {"name": "Birds Ltd", "requests_per_minute": None, "policy_version": None}


@pytest.mark.parametrize(
    ("agreed", "param"),
    [
        (Agreed(""), "name"),
        (Agreed("a\x00b"), "name"),
        (Agreed("n" * 121), "name"),
        (Agreed("Acme", 0), "requests_per_minute"),
        (Agreed("Acme", 10**7), "requests_per_minute"),
        (Agreed("Acme", None, -1), "tokens_per_day"),
    ],
)
def test_what_cannot_be_agreed(session: Session, agreed: Agreed, param: str) -> None:
    with pytest.raises(InvalidInput) as error:
        create_tenant(session, "lead", agreed)
    assert error.value.param == param


@pytest.mark.parametrize("key", ["a b", "-a", "a/b", "k" * 61])
def test_what_is_no_key(session: Session, key: str) -> None:
    with pytest.raises(InvalidInput):
        create_tenant(session, "lead", Agreed("Acme"), key)
    with pytest.raises(InvalidInput):
        create_tenant(session, "lead", Agreed("!!!"))


def test_a_key_is_of_one_tenant(session: Session) -> None:
    create_tenant(session, "lead", Agreed("Acme"))
    with pytest.raises(Conflict):
        create_tenant(session, "lead", Agreed("ACME"))
    assert key_of("ＡＣＭＥ  two_words") == "acme-two-words"
    with pytest.raises(InvalidInput):
        tenant_id_of(session, "nobody")
    assert tenant_id_of(session, None) is None


def test_keys_of_tenants_can_chat_and_give_feedback_and_nothing_else(session: Session) -> None:
    tenant = create_tenant(session, "lead", Agreed("Acme", 10, 2000, "v3"))
    account = session.scalars(select(Person).where(Person.tenant_id == tenant.id)).one()
    for scope in set(SCOPES) - set(TENANT_SCOPES):
        with pytest.raises(InvalidInput):
            make_key(session, "lead", tenant.id, "too much", f"chat {scope}")
        with pytest.raises(InvalidInput):
            create_key(session, account, "by the back door", scope)
    key, secret = make_key(session, "lead", tenant.id, "app", requests_per_minute=3)
    caller = authenticate(session, secret, "chat")
    assert caller.terms == Terms(tenant.id, "acme", 10, 2000, "v3")
    assert (caller.person_id, caller.requests_per_minute, key.tenant_id) == (account.id, 3, tenant.id)
    assert authenticate(session, secret, "chat", lock=True) == caller
    with pytest.raises(Forbidden):
        authenticate(session, secret, "annotate")


def test_keys_from_before_are_the_houses(session: Session) -> None:
    key, secret = create_key(session, make_person(session), "laptop")
    assert key.tenant_id is None
    assert authenticate(session, secret, "chat").terms is None


def test_a_paused_tenant_opens_nothing_until_it_goes_on(session: Session) -> None:
    tenant = create_tenant(session, "lead", Agreed("Acme"))
    _, secret = make_key(session, "lead", tenant.id, "app")
    for _ in range(2):
        set_active(session, "lead", tenant.id, False)
    with pytest.raises(Forbidden) as error:
        authenticate(session, secret, "chat")
    assert error.value.code == "tenant_paused"
    set_active(session, "lead", tenant.id, True)
    authenticate(session, secret, "chat")
    acts = [row.action for row in entries(session, Filters(subject=f"tenant:{tenant.id}"))[0]]
    assert acts == ["tenant.resume", "tenant.pause", "tenant.add"]


def test_a_key_is_revoked_by_its_own_tenants_page(session: Session) -> None:
    acme, beta = (create_tenant(session, "lead", Agreed(name)) for name in ("Acme", "Beta"))
    key, secret = make_key(session, "lead", acme.id, "app")
    own, _ = create_key(session, make_person(session), "laptop")
    for tenant_id, key_id in ((beta.id, key.id), (acme.id, own.id), (acme.id, 999)):
        with pytest.raises(NotFound):
            revoke(session, "lead", tenant_id, key_id)
    revoke(session, "lead", acme.id, key.id)
    with pytest.raises(Unauthenticated):
        authenticate(session, secret, "chat")


def test_nobody_gets_into_the_account_of_a_tenant(
    database: Database, client: FlaskClient, sign_in: Callable[[Person], SignedIn], people: dict[str, Person]
) -> None:
    with database.session() as session:
        tenant = create_tenant(session, "lead", Agreed("Acme"))
        account = session.scalars(select(Person).where(Person.tenant_id == tenant.id)).one()
    for login in ("tenant:acme", "tenant:other"):
        with pytest.raises(InvalidInput):
            checked_login(login)
        with database.session() as session, pytest.raises(InvalidInput):
            create_person(session, login, "seven small brown birds", "annotator")
    answer = client.post("/sign-in", data={"login": "tenant:acme", "password": ""})
    assert answer.status_code == 401
    admin = sign_in(people["admin"])
    for act in ("role", "deactivate", "reset"):
        data = {"role": "admin"}
        assert admin.client.post(f"/people/{account.id}/{act}", data=data).status_code == 403, act
    with database.session() as session, pytest.raises(Forbidden):
        make_reset(session, admin.person, account.id, 60)


def test_a_pin_stands_for_the_public_name_and_hides_the_other_versions() -> None:
    terms = Terms(1, "acme", None, None, "v3")
    assert pinned(terms, "dunnock", "dunnock") == "v3"
    assert pinned(terms, "v3", "dunnock") == "v3"
    with pytest.raises(NotFound) as error:
        pinned(terms, "v4", "dunnock")
    assert error.value.code == "model_not_found"
    for free in (None, Terms(1, "acme", None, None, None)):
        assert pinned(free, "v4", "dunnock") == "v4"


def test_the_account_of_a_tenant_is_one(session: Session) -> None:
    tenant = create_tenant(session, "lead", Agreed("Acme"))
    keys = [make_key(session, "lead", tenant.id, name)[0] for name in ("web", "phone")]
    assert len({key.person_id for key in session.scalars(select(ApiKey))}) == 1
    assert [key.tenant_id for key in keys] == [tenant.id] * 2


def test_a_terminal_makes_a_tenant_and_its_keys(app: Flask, database: Database) -> None:
    def run(*args: str) -> Result:
        with app.app_context():
            return app.test_cli_runner().invoke(args=args)

    made = run("tenant-add", "Acme GmbH", "--requests-per-minute", "5", "--tokens-per-day", "70")
    assert made.exit_code == 0, made.output
    assert "key-add tenant:acme-gmbh" in made.output
    assert run("tenant-add", "Acme GmbH").exit_code == 1
    assert run("key-add", "tenant:acme-gmbh", "--scopes", "manage").exit_code == 1
    secret = run("key-add", "tenant:acme-gmbh").output.strip()
    with database.read() as session:
        assert authenticate(session, secret, "chat").terms == Terms(1, "acme-gmbh", 5, 70, None)
