"""Sign-in by OpenID Connect, against a real provider: the whole flow over HTTP, and what attackers would try."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import pytest
from authlib.oidc.core import CodeIDToken
from flask import Flask
from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import JWKRegistry
from sqlalchemy import select
from werkzeug.test import TestResponse

from access import oidc
from access.models import AuditLog, OidcIdentity, Person
from access.oidc import Claims, Provider
from core.db import Database
from core.errors import ProviderError, Unauthenticated
from core.settings import OidcSettings, Settings
from tests.access.oidc_provider import Client, OidcProvider, Visitor
from tests.conftest import SignedIn

CALLBACK = "http://localhost/sign-in/oidc/callback"


@pytest.fixture
def with_oidc(
    settings: Settings, database: Database, oidc_provider: OidcProvider
) -> Callable[..., tuple[Flask, Client]]:
    """A function that makes the app as a client of the provider; its arguments are settings of the group."""
    from app import create_app

    def with_oidc(algorithm: str = "RS256", **more: Any) -> tuple[Flask, Client]:
        client = oidc_provider.register(CALLBACK, algorithm)
        group = OidcSettings(
            **{
                "issuer": oidc_provider.url, "client_id": client.id, "client_secret": client.secret,
                "scopes": "openid profile email groups", "people": "everybody", **more,
            }
        )  # fmt: skip
        app = create_app(settings.model_copy(update={"oidc": group}), database)
        app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
        return app, client

    return with_oidc


def through(browser: FlaskClient, who: str, start: str = "/sign-in/oidc", consent: str = "accept") -> TestResponse:
    """From the button to what the app says when the provider has sent the browser back."""
    return browser.get(Visitor(who, consent).go(sent_to(browser, start), CALLBACK))


def sent_to(browser: FlaskClient, start: str = "/sign-in/oidc") -> str:
    """Where at the provider the app sends a browser."""
    answer = browser.get(start)
    assert answer.status_code == 302, answer.text
    return answer.location


def changed(url: str, **query: str) -> str:
    """A URL with other values in its query."""
    parts = urlsplit(url)
    old = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return urlunsplit(parts._replace(query=urlencode(old | query)))


def signed_in(browser: FlaskClient) -> bool:
    return browser.get("/account").status_code == 200


def people_in(database: Database) -> dict[str, tuple[str, bool]]:
    with database.read() as session:
        return {p.login: (p.role, p.active) for p in session.scalars(select(Person))}


# The flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_somebody_new_signs_in_and_is_the_same_person_again(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database, algorithm: str
) -> None:
    app, client = with_oidc(algorithm)
    browser = app.test_client()
    assert "Sign in with your organisation" in browser.get("/sign-in").text
    query = parse_qs(urlsplit(sent_to(browser)).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["client_id"] == [client.id]
    assert {"state", "nonce", "code_challenge"} <= set(query)

    answer = through(browser, "wren", "/sign-in/oidc?next=/annotate?x=1")
    assert (answer.status_code, answer.location) == (302, "/annotate?x=1")
    assert signed_in(browser)
    assert people_in(database) == {"wren@birds.example": ("annotator", True)}

    again = app.test_client()
    through(again, "wren")
    assert signed_in(again)
    with database.read() as session:
        identity = session.scalars(select(OidcIdentity)).one()
        acts = list(session.scalars(select(AuditLog.action).order_by(AuditLog.id)))
    assert (identity.subject, identity.email) == ("wren", "wren@birds.example")
    assert acts == ["person.add", "identity.link", "session.sign_in", "session.sign_in"]


def test_nobody_is_made_where_people_must_be_known(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database
) -> None:
    app, _ = with_oidc(people="known")
    browser = app.test_client()
    answer = through(browser, "wren")
    assert answer.status_code == 403
    assert "no account here yet" in answer.text
    assert "ask a lead for an invitation" in answer.text
    assert not signed_in(browser)
    assert people_in(database) == {}


def test_an_equal_email_or_login_gets_nobody_into_an_account(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database
) -> None:
    app, _ = with_oidc()
    with database.session() as session:
        session.add(Person(login="wren@birds.example", password_hash=None, role="admin"))
    browser = app.test_client()
    through(browser, "wren")
    assert people_in(database) == {"wren@birds.example": ("admin", True), "wren@birds.example-2": ("annotator", True)}
    assert browser.get("/people").status_code == 403


def test_linking_while_signed_in(
    with_oidc: Callable[..., tuple[Flask, Client]], people: dict[str, Person], database: Database
) -> None:
    app, _ = with_oidc(people="known")
    mine = app.test_client()
    mine.post("/sign-in", data={"login": "reviewer", "password": "seven small brown birds"})
    page = mine.post("/account/identities")
    url = page.text.split('href="http')[1].split('"')[0].replace("&amp;", "&")
    answer = mine.get(Visitor("wren").go(f"http{url}", CALLBACK))
    assert (answer.status_code, answer.location) == (302, "/account")
    assert "wren@birds.example" in mine.get("/account").text

    fresh = app.test_client()
    through(fresh, "wren")
    assert "reviewer" in fresh.get("/account").text

    other = app.test_client()
    other.post("/sign-in", data={"login": "lead", "password": "seven small brown birds"})
    url = other.post("/account/identities").text.split('href="http')[1].split('"')[0].replace("&amp;", "&")
    answer = other.get(Visitor("wren").go(f"http{url}", CALLBACK))
    assert answer.status_code == 409
    assert "another account" in answer.text

    with database.read() as session:
        number = session.scalars(select(OidcIdentity.id)).one()
    assert other.post(f"/account/identities/{number}/unlink").status_code == 404
    assert mine.post(f"/account/identities/{number}/unlink").status_code == 303
    assert through(app.test_client(), "wren").status_code == 403


def test_a_link_that_was_begun_by_somebody_else_is_not_made(
    with_oidc: Callable[..., tuple[Flask, Client]], people: dict[str, Person], database: Database
) -> None:
    app, _ = with_oidc(people="known")
    browser = app.test_client()
    browser.post("/sign-in", data={"login": "reviewer", "password": "seven small brown birds"})
    url = browser.post("/account/identities").text.split('href="http')[1].split('"')[0].replace("&amp;", "&")
    back = Visitor("wren").go(f"http{url}", CALLBACK)
    with database.session() as session:  # signed out from elsewhere, while at the provider
        session.get_one(Person, people["reviewer"].id).active = False
    assert browser.get(back).status_code == 401
    with database.read() as session:
        assert session.scalars(select(OidcIdentity)).all() == []


# Who is let in --------------------------------------------------------------------------------------------------------


def test_roles_follow_the_provider_up_and_down(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database, people: dict[str, Person]
) -> None:
    mapping = {"role_claim": "groups", "roles": {"annotators": "annotator", "leads": "lead"}}
    app, _ = with_oidc(**mapping)
    through(app.test_client(), "rook")
    assert people_in(database)["rook@birds.example"] == ("lead", True)
    lowered, _ = with_oidc(**{**mapping, "roles": {"annotators": "reviewer"}})
    through(lowered.test_client(), "rook")
    assert people_in(database)["rook@birds.example"] == ("reviewer", True)
    strict, _ = with_oidc(**mapping, default_role="refuse")
    answer = through(strict.test_client(), "mole")
    assert answer.status_code == 403
    assert "no role" in answer.text
    assert "mole@burrows.example" not in people_in(database)


def test_the_last_admin_is_not_taken_away_by_a_claim(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database
) -> None:
    mapping = {"role_claim": "groups", "roles": {"leads": "admin"}}
    app, _ = with_oidc(**mapping)
    through(app.test_client(), "rook")
    lowered, _ = with_oidc(**{**mapping, "roles": {"leads": "annotator"}})
    assert through(lowered.test_client(), "rook").status_code == 409
    assert people_in(database) == {"rook@birds.example": ("admin", True)}


def test_only_verified_addresses_of_allowed_domains(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database
) -> None:
    app, _ = with_oidc(email_domains=["birds.example"])  # this provider does not say that addresses are verified
    assert through(app.test_client(), "wren").status_code == 403
    app, _ = with_oidc(email_domains=["Birds.example"], trust_email=True)
    assert through(app.test_client(), "wren").status_code == 302
    assert "certain domains" in through(app.test_client(), "mole").text
    assert set(people_in(database)) == {"wren@birds.example"}


def test_a_deactivated_person_stays_out(with_oidc: Callable[..., tuple[Flask, Client]], database: Database) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    through(browser, "wren")
    with database.session() as session:
        session.scalars(select(Person)).one().active = False
    assert not signed_in(browser)
    answer = through(app.test_client(), "wren")
    assert answer.status_code == 403
    assert "deactivated" in answer.text
    assert len(people_in(database)) == 1


def test_an_invitation_is_accepted_with_an_identity(
    with_oidc: Callable[..., tuple[Flask, Client]], people: dict[str, Person], database: Database
) -> None:
    app, _ = with_oidc(people="known")
    lead = app.test_client()
    lead.post("/sign-in", data={"login": "lead", "password": "seven small brown birds"})
    page = lead.post("/invitations", data={"role": "reviewer", "note": "for wren"}).text
    path = urlsplit(page.split('id="link" tabindex="0">')[1].split("<")[0]).path
    assert through(app.test_client(), "wren").status_code == 403
    browser = app.test_client()
    assert through(browser, "wren", f"{path}/oidc").status_code == 302
    assert people_in(database)["wren@birds.example"] == ("reviewer", True)
    assert signed_in(browser)
    assert app.test_client().get(f"{path}/oidc").status_code == 404  # used up
    assert through(app.test_client(), "wren").status_code == 302


# Attacks and failures -------------------------------------------------------------------------------------------------


def test_an_answer_is_good_once_and_only_where_it_was_asked_for(
    with_oidc: Callable[..., tuple[Flask, Client]], database: Database
) -> None:
    app, _ = with_oidc()
    browser, stranger = app.test_client(), app.test_client()
    back = Visitor("wren").go(sent_to(browser), CALLBACK)
    sent_to(stranger)
    answer = stranger.get(back)  # login CSRF: somebody else's answer, slipped to this browser
    assert answer.status_code == 400
    assert "does not belong to a sign-in of this browser" in answer.text
    assert app.test_client().get(back).status_code == 400
    assert browser.get(back).status_code == 302
    assert browser.get(back).status_code == 400
    assert not signed_in(stranger)


def test_a_replayed_code_is_refused(with_oidc: Callable[..., tuple[Flask, Client]]) -> None:
    app, _ = with_oidc()
    first, second = app.test_client(), app.test_client()
    back = Visitor("wren").go(sent_to(first), CALLBACK)
    assert first.get(back).status_code == 302
    state = parse_qs(urlsplit(sent_to(second)).query)["state"][0]
    answer = second.get(changed(back, state=state))  # the right state of this browser, a code that was used
    assert answer.status_code == 401
    assert "begin again" in answer.text
    assert not signed_in(second)


def test_a_stolen_code_is_worth_nothing_without_the_verifier(with_oidc: Callable[..., tuple[Flask, Client]]) -> None:
    app, _ = with_oidc()
    victim, thief = app.test_client(), app.test_client()
    back = Visitor("wren").go(sent_to(victim), CALLBACK)  # and here it is stolen, not used yet
    state = parse_qs(urlsplit(sent_to(thief)).query)["state"][0]
    assert thief.get(changed(back, state=state)).status_code == 401
    assert not signed_in(thief)


@pytest.mark.parametrize("state", ["", "guessed"])
def test_a_wrong_state_is_refused(with_oidc: Callable[..., tuple[Flask, Client]], state: str) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    back = Visitor("wren").go(sent_to(browser), CALLBACK)
    assert browser.get(changed(back, state=state)).status_code == 400
    assert browser.get(back).status_code == 400  # the flow is used up
    assert not signed_in(browser)


def test_a_changed_nonce_is_refused(with_oidc: Callable[..., tuple[Flask, Client]], database: Database) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    back = Visitor("wren").go(changed(sent_to(browser), nonce="of-another-sign-in"), CALLBACK)
    answer = browser.get(back)
    assert answer.status_code == 401
    assert "does not hold" in answer.text
    assert not signed_in(browser)
    assert people_in(database) == {}


def test_a_code_of_another_client_is_refused(
    with_oidc: Callable[..., tuple[Flask, Client]], oidc_provider: OidcProvider
) -> None:
    app, _ = with_oidc()
    browser, other = app.test_client(), oidc_provider.register(CALLBACK)
    back = Visitor("wren").go(changed(sent_to(browser), client_id=other.id), CALLBACK)
    assert browser.get(back).status_code == 401
    assert not signed_in(browser)


def test_an_answer_of_another_issuer_is_refused(with_oidc: Callable[..., tuple[Flask, Client]]) -> None:
    app, _ = with_oidc()
    for iss in ("https://evil.example", ""):
        browser = app.test_client()
        back = Visitor("wren").go(sent_to(browser), CALLBACK)
        assert "iss=" in back
        assert browser.get(changed(back, iss=iss)).status_code == 400


def test_refused_consent_is_said(with_oidc: Callable[..., tuple[Flask, Client]]) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    answer = through(browser, "wren", consent="deny")
    assert answer.status_code == 403
    assert "access_denied" in answer.text
    assert not signed_in(browser)


def test_a_flow_is_over_after_ten_minutes(
    with_oidc: Callable[..., tuple[Flask, Client]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    back = Visitor("wren").go(sent_to(browser), CALLBACK)
    now = time.time()
    monkeypatch.setattr(oidc.time, "time", lambda: now + oidc.FLOW_S + 1)
    assert "took too long" in browser.get(back).text


def test_a_provider_that_is_down_or_another_one(
    settings: Settings, database: Database, oidc_provider: OidcProvider
) -> None:
    from app import create_app

    down = OidcSettings(issuer="http://127.0.0.1:9", client_id="x", timeout_s=0.5)
    app = create_app(settings.model_copy(update={"oidc": down}), database)
    answer = app.test_client().get("/sign-in/oidc")
    assert answer.status_code == 503
    assert "does not answer" in answer.text
    assert app.test_client().get("/sign-in").status_code == 200
    wrong = OidcSettings(issuer=oidc_provider.url.replace("127.0.0.1", "localhost"), client_id="x")
    with pytest.raises(ProviderError, match="calls itself"):
        Provider(wrong).metadata()


def test_no_provider_no_button_no_route(client: FlaskClient) -> None:
    assert "oidc" not in client.get("/sign-in").text
    for path in ("/sign-in/oidc", "/sign-in/oidc/callback?code=x&state=y"):
        assert client.get(path).status_code == 404


# ID tokens, one thing wrong at a time ---------------------------------------------------------------------------------


@pytest.fixture
def real_token(oidc_provider: OidcProvider) -> tuple[Provider, dict[str, Any], str]:
    """A provider's client, a real token response, and its nonce."""
    client = oidc_provider.register(CALLBACK)
    provider = Provider(
        OidcSettings(issuer=oidc_provider.url, client_id=client.id, client_secret=client.secret, scopes="openid email")
    )
    url, flow = provider.start(CALLBACK)
    back = Visitor("wren").go(url, CALLBACK)
    code = parse_qs(urlsplit(back).query)["code"][0]
    return provider, provider._exchange(code, flow["verifier"], CALLBACK), flow["nonce"]


def test_a_real_token_holds_and_says_who(real_token: tuple[Provider, dict[str, Any], str]) -> None:
    provider, token, nonce = real_token
    assert provider.check(token, nonce)["sub"] == "wren"


def test_a_real_token_of_another_client_is_refused(
    real_token: tuple[Provider, dict[str, Any], str], oidc_provider: OidcProvider
) -> None:
    """What a program gets that the same person uses, at the same provider, and would pass on to us."""
    _, token, nonce = real_token
    ours = oidc_provider.register(CALLBACK)
    provider = Provider(OidcSettings(issuer=oidc_provider.url, client_id=ours.id, client_secret=ours.secret))
    with pytest.raises(Unauthenticated):
        provider.check(token, nonce)


def parts_of(token: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in token["id_token"].split(".")[:2]]


def encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_tampered_tokens_are_refused(real_token: tuple[Provider, dict[str, Any], str]) -> None:
    provider, token, nonce = real_token
    header, claims = parts_of(token)
    _, _, signature = token["id_token"].split(".")
    other = JWKRegistry.generate_key("RSA", 2048)
    secret = JWKRegistry.import_key(provider.settings.client_secret, "oct")
    forged = {
        "no signature": f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(claims)}.",
        "another subject": f"{encoded(header)}.{encoded(claims | {'sub': 'rook'})}.{signature}",
        "another key of the same name": jwt.encode({"alg": "RS256", "kid": header["kid"]}, claims, other),
        "an unknown key": jwt.encode({"alg": "RS256", "kid": "unknown"}, claims, other),
        "the client's secret as the key": jwt.encode({"alg": "HS256"}, claims, secret),
        "no token at all": "",
        "not a token": "a.b.c",
    }
    for what, id_token in forged.items():
        with pytest.raises(Unauthenticated):
            provider.check(token | {"id_token": id_token}, nonce)
            pytest.fail(what)
    with pytest.raises(Unauthenticated):  # another access token than the one that was issued with it
        provider.check(token | {"access_token": "of somebody else"}, nonce)


@pytest.mark.parametrize(
    "wrong",
    [{"iss": "https://evil.example"}, {"aud": "another client"}, {"aud": ["another client", "a third"]}, {"azp": "other"}, {"aud": "another client", "azp": "OURS"},
     {"exp": 1}, {"iat": 9_999_999_999}, {"nbf": 9_999_999_999}, {"nonce": "other"}, {"nonce": None}, {"sub": None},
     {"sub": ""}, {"sub": 7}, {"sub": "x" * 256}, {"iss": None}, {"aud": None}, {"exp": None}, {"exp": "soon"}],
    ids=str,
)  # fmt: skip
def test_a_token_that_is_well_signed_but_not_ours(
    real_token: tuple[Provider, dict[str, Any], str], wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed with a key that the provider is made to publish, so that the claims alone decide."""
    provider, token, nonce = real_token
    _, claims = parts_of(token)
    key = JWKRegistry.generate_key("RSA", 2048)
    key.ensure_kid()
    fetched = provider._get
    monkeypatch.setattr(
        provider,
        "_get",
        lambda url, **o: {"keys": [key.as_dict(private=False)]} if "jwks" in url else fetched(url, **o),
    )

    def check(change: dict[str, Any]) -> Any:
        ours = {k: provider.settings.client_id for k, v in change.items() if v == "OURS"}
        body = {k: v for k, v in (claims | change | ours).items() if v is not None}
        return provider.check(token | {"id_token": jwt.encode({"alg": "RS256", "kid": key.kid}, body, key)}, nonce)

    provider._keys = None
    assert check({})["sub"] == "wren"
    with pytest.raises(Unauthenticated):
        check(wrong)


def test_claims_are_looked_up_nested_or_flat() -> None:
    claims = Claims(
        "i", "s", {"groups": "one", "realm_access": {"roles": ["a", "b", None]}, "a.b": ["flat"], "n": {"x": 1}}
    )
    assert claims.values_of("groups") == ["one"]
    assert claims.values_of("realm_access.roles") == ["a", "b"]
    assert claims.values_of("a.b") == ["flat"]
    assert claims.values_of("n.x.y") == []
    assert claims.values_of("missing") == []


def test_signing_in_takes_over_nothing_of_the_session_before(
    with_oidc: Callable[..., tuple[Flask, Client]], annotator: SignedIn
) -> None:
    app, _ = with_oidc()
    browser = app.test_client()
    with browser.session_transaction() as session:
        session["planted"] = "x"
    through(browser, "wren")
    with browser.session_transaction() as session:
        assert "planted" not in session
        assert "oidc_flow" not in session


@pytest.mark.parametrize(
    ("token", "userinfo", "email", "verified"),
    [
        ({"email": "ceo@birds.example"}, {"email": "a@evil.example", "email_verified": True}, "ceo@birds.example", None),
        ({"email": "ceo@birds.example"}, {"email_verified": True}, "ceo@birds.example", None),
        ({"email_verified": True}, {"email": "a@evil.example"}, "a@evil.example", None),
        ({}, {"email": "a@birds.example", "email_verified": True}, "a@birds.example", True),
        (
            {"email": "a@birds.example", "email_verified": True}, {"email_verified": False}, "a@birds.example", True,
        ),
    ],
)  # fmt: skip
def test_an_address_and_whether_it_is_verified_come_from_one_source(
    monkeypatch: pytest.MonkeyPatch, token: dict[str, Any], userinfo: dict[str, Any], email: str, verified: bool | None
) -> None:
    provider = Provider(OidcSettings(issuer="https://id.example", client_id="x", role_claim="groups"))
    monkeypatch.setattr(provider, "metadata", lambda: {"userinfo_endpoint": "https://id.example/me"})
    monkeypatch.setattr(provider, "_get", lambda url, bearer="": {"sub": "u", "groups": ["leads"], **userinfo})
    claims = CodeIDToken({"iss": "https://id.example", "sub": "u", **token}, {})
    found = provider._complete(claims, {"access_token": "t"})
    assert (found.email, found.all.get("email_verified"), found.all["groups"]) == (email, verified, ["leads"])
