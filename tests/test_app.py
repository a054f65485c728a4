"""What every answer carries: security headers, cookie flags, and whom a proxy may speak for."""

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.models import Person, SessionRecord
from core.db import Database
from core.errors import SettingsError
from core.settings import OidcSettings, Settings
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


def test_the_session_cookie(production: Flask, client: FlaskClient, people: dict[str, Person]) -> None:
    cookie = client.post("/sign-in", data=FORM).headers["Set-Cookie"]
    assert cookie.startswith("dunnock=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    secure = production.test_client()
    cookie = secure.post("/sign-in", data=FORM, base_url="https://dunnock.example").headers["Set-Cookie"]
    assert cookie.startswith("__Host-dunnock=")
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
        Settings(_env_file=None, env="production", secret_key="k" * 40, oidc=OidcSettings(**group))
