"""What every answer carries: security headers, cookie flags, and whom a proxy may speak for."""

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.keys import create_key
from access.models import Person, SessionRecord
from core.db import Database
from core.errors import SettingsError
from core.settings import OidcSettings, Settings
from core.web import public_url
from tests.factories import PASSWORD

FORM = {"login": "annotator", "password": PASSWORD}


@pytest.fixture
def production(settings: Settings, database: Database) -> Flask:
    """The app as it runs in production."""
    from app import create_app

    app = create_app(settings.model_copy(update={"env": "production", "trusted_proxies": 1}), database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    return app


@pytest.mark.parametrize("path", ["/sign-in", "/nowhere", "/healthz", "/static/style.css", "/v1/models"])
def test_every_answer_has_its_headers(client: FlaskClient, path: str) -> None:
    with client.get(path) as answer:
        headers = answer.headers
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "camera=()" in headers["Permissions-Policy"]
    assert "Strict-Transport-Security" not in headers


def test_https_is_remembered_in_production_only_over_https(production: Flask, client: FlaskClient) -> None:
    secure = {"X-Forwarded-Proto": "https"}
    assert "max-age=" in production.test_client().get("/sign-in", headers=secure).headers["Strict-Transport-Security"]
    assert "Strict-Transport-Security" not in production.test_client().get("/sign-in").headers
    assert "Strict-Transport-Security" not in client.get("/sign-in", headers=secure).headers


def test_the_cookies_of_session_and_device(production: Flask, client: FlaskClient, people: dict[str, Person]) -> None:
    cookies = client.post("/sign-in", data=FORM).headers.getlist("Set-Cookie")
    assert {cookie.partition("=")[0] for cookie in cookies} == {"dunnock", "dunnock-device"}
    for cookie in cookies:
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
    secure = production.test_client()
    cookies = secure.post("/sign-in", data=FORM, base_url="https://dunnock.example").headers.getlist("Set-Cookie")
    assert {cookie.partition("=")[0] for cookie in cookies} == {"__Host-dunnock", "__Host-dunnock-device"}
    for cookie in cookies:
        assert "Secure" in cookie
        assert "Path=/" in cookie
        assert "Domain" not in cookie


def test_signing_in_makes_a_new_session(client: FlaskClient, people: dict[str, Person]) -> None:
    client.get("/sign-in")
    with client.session_transaction() as session:
        session["planted"] = "by whoever set this cookie"
    client.post("/sign-in", data=FORM)
    with client.session_transaction() as session:
        assert "planted" not in session


@pytest.mark.parametrize(("proxies", "seen"), [(0, "127.0.0.1"), (1, "203.0.113.9"), (2, "198.51.100.7")])
def test_only_as_many_proxies_are_believed_as_there_are(
    settings: Settings, database: Database, people: dict[str, Person], proxies: int, seen: str
) -> None:
    from app import create_app

    app = create_app(settings.model_copy(update={"trusted_proxies": proxies}), database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    app.test_client().post("/sign-in", data=FORM, headers={"X-Forwarded-For": "198.51.100.7, 203.0.113.9"})
    with database.read() as session:
        assert session.scalars(select(SessionRecord.address)).one() == seen


@pytest.mark.parametrize(
    ("group", "said"),
    [({"issuer": "https://id.example"}, "CLIENT_ID"),
     ({"issuer": "https://id.example", "client_id": "x", "scopes": "email"}, "openid"),
     ({"issuer": "https://id.example", "client_id": "x", "roles": {"a": "lead"}}, "go together"),
     ({"issuer": "http://id.example", "client_id": "x"}, "not https")],
)  # fmt: skip
def test_settings_of_a_provider_that_contradict(group: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings(
            _env_file=None,
            env="production",
            secret_key="k" * 40,
            public_url="https://a.example",
            oidc=OidcSettings(**group),
        )


@pytest.fixture
def public(settings: Settings, database: Database) -> Flask:
    """The app as people reach it under a name."""
    from app import create_app

    oidc = OidcSettings(issuer="https://id.example", client_id="x")
    app = create_app(settings.model_copy(update={"public_url": "https://birds.example", "oidc": oidc}), database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    return app


def test_other_hosts_than_the_public_one_are_refused(public: Flask) -> None:
    client = public.test_client()
    for host in ("birds.example", "birds.example:443", "127.0.0.1:8080", "localhost"):
        assert client.get("/sign-in", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "birds.example.evil.example", "xbirds.example", "birds.example@evil.example"):
        for path in ("/sign-in", "/v1/models", "/healthz", "/nowhere", "/static/pages.css"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == 400, (host, path)
            assert "evil" not in answer.text
            assert "not at this host name" in answer.text
    proxied = client.get("/sign-in", headers={"Host": "birds.example", "X-Forwarded-Host": "evil.example"})
    assert proxied.status_code == 200  # nobody's word is taken for it


def test_links_that_are_sent_name_the_public_host(public: Flask, people: dict[str, Person], database: Database) -> None:
    client = public.test_client()
    client.post("/sign-in", data={"login": "lead", "password": PASSWORD})
    page = client.post("/invitations", data={"role": "annotator"}, headers={"Host": "localhost:8080"}).text
    assert "https://birds.example/invitation/" in page
    assert "localhost" not in page
    with database.session() as session:
        _, key = create_key(session, session.get_one(Person, people["lead"].id), "x", "people")
    headers = {"Authorization": f"Bearer {key}", "Host": "localhost:8080"}
    made = client.post("/api/v1/invitations", json={"role": "annotator"}, headers=headers).get_json()
    assert made["link"].startswith("https://birds.example/invitation/")
    with public.test_request_context("/", headers={"Host": "localhost:8080"}):
        assert public_url("oidc.callback") == "https://birds.example/sign-in/oidc/callback"


def test_the_app_of_an_edge_bundle_has_the_chat_api_and_its_health_alone(
    settings: Settings, database: Database
) -> None:
    from app import create_app

    app = create_app(settings, database, pages=False)
    paths = {rule.rule for rule in app.url_map.iter_rules()}
    assert {"/v1/chat/completions", "/v1/models", "/v1/moderations", "/v1/feedback", "/healthz", "/readyz"} < paths
    assert {path for path in paths if not path.startswith("/v1/")} == {"/healthz", "/readyz"}
    answer = app.test_client().get("/sign-in", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")
