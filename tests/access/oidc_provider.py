"""A real OpenID provider for tests: Canaille, in a process of its own, on loopback, with its own SQLite file.

It asks for login, password and consent, wants PKCE, takes a code once, and signs by RS256 or ES256 as the client asks.
Clients register themselves (RFC 7591). `Visitor` goes through its pages as a browser would.

    python -m tests.access.oidc_provider PORT FOLDER        what the fixture starts
"""

import html
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "seven small brown birds"
PEOPLE = {  # login: (address, groups)
    "wren": ("wren@birds.example", ["annotators"]),
    "rook": ("rook@birds.example", ["annotators", "leads"]),
    "mole": ("mole@burrows.example", []),
}


@dataclass(frozen=True)
class Client:
    """A client as it is registered at the provider."""

    id: str
    secret: str
    redirect_uri: str


class OidcProvider:
    """The running provider."""

    def __init__(self, url: str) -> None:
        self.url = url

    def register(self, redirect_uri: str, algorithm: str = "RS256") -> Client:
        """A new client."""
        answer = httpx.post(
            f"{self.url}/oauth/register",
            json={
                "client_name": "Dunnock", "client_uri": "http://dunnock.example", "redirect_uris": [redirect_uri],
                "scope": "openid profile email groups", "grant_types": ["authorization_code"],
                "response_types": ["code"], "token_endpoint_auth_method": "client_secret_basic",
                "id_token_signed_response_alg": algorithm,
            },
        )  # fmt: skip
        assert answer.status_code == 201, answer.text
        made = answer.json()
        return Client(made["client_id"], made["client_secret"], redirect_uri)


_last: dict[tuple[str, str], int] = {}  # when somebody signed in last for a client, in seconds


class Visitor:
    """Somebody at the provider's pages: signs in there, and says yes or no to what the client asks for."""

    def __init__(self, login: str, consent: str = "accept") -> None:
        self.login = login
        self.consent = consent
        self._browser = httpx.Client(follow_redirects=False)

    def go(self, url: str, redirect_uri: str) -> str:
        """From the URL that a client sends people to, to the one that the provider sends them back to."""
        self._wait(re.findall(r"client_id=([^&]+)", url)[0])
        answer = self._browser.get(url)
        for _ in range(12):
            if "location" in answer.headers:
                target = str(answer.url.join(answer.headers["location"]))
                if target.startswith(redirect_uri):
                    return target
                answer = self._browser.get(target)
            else:
                assert answer.status_code == 200, answer.text
                answer = self._browser.post(answer.url, data=self._filled(answer.text))
        raise AssertionError(f"the provider never led back; it is at {answer.url}: {answer.text[:2000]}")

    def _wait(self, client_id: str) -> None:
        """This provider's access tokens say when in whole seconds, and two that are equal are one too many for it."""
        while _last.get((self.login, client_id)) == int(time.time()):
            time.sleep(0.05)
        _last[self.login, client_id] = int(time.time())

    def _filled(self, page: str) -> dict[str, str]:
        wanted = {"login": self.login, "password": PASSWORD, "answer": self.consent}
        fields = {}
        for tag in re.findall(r"<(?:input|button)\b[^>]*>", page):
            found = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
            name = found.get("name", "")
            if name in wanted:
                fields[name] = wanted[name]
            elif found.get("type") == "hidden":
                fields[name] = html.unescape(found.get("value", ""))
        return fields


@pytest.fixture(scope="session")
def oidc_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    """The provider, for the whole run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("oidc")
    url, log = f"http://127.0.0.1:{port}", folder / "provider.log"
    with log.open("w") as out:
        line = [sys.executable, "-m", "tests.access.oidc_provider", str(port), str(folder)]
        process = subprocess.Popen(line, cwd=ROOT, stdout=out, stderr=out)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"{url}/.well-known/openid-configuration").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            pytest.fail(f"the provider did not start: {log.read_text()}")
        yield OidcProvider(url)
    finally:
        process.terminate()
        process.wait(20)


def serve(port: int, folder: Path) -> None:
    """Run the provider until the process ends."""
    os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"  # http on loopback
    import canaille.oidc.provider
    from canaille import create_app
    from canaille.app import models
    from canaille.backends import Backend
    from joserfc.jwk import JWKRegistry
    from werkzeug.serving import make_server

    # Canaille's own access tokens say nothing but who and when, to the second: two sign-ins in one second get the same one, and
    # its database refuses the second. Ours are as opaque as any provider's.
    canaille.oidc.provider.generate_access_token = lambda *_args, **_named: secrets.token_urlsafe(48)
    keys = [JWKRegistry.generate_key("RSA", 2048), JWKRegistry.generate_key("EC", "P-256")]
    for key in keys:
        key.ensure_kid()
    app = create_app(
        config={
            "SECRET_KEY": secrets.token_urlsafe(32), "SERVER_NAME": f"127.0.0.1:{port}", "PREFERRED_URL_SCHEME": "http",
            "CANAILLE": {
                "DATABASE": "sql", "JAVASCRIPT": False, "ACL": {"DEFAULT": {"PERMISSIONS": ["use_oidc"]}},
            },
            "CANAILLE_SQL": {"DATABASE_URI": f"sqlite:///{folder / 'provider.db'}"},
            "CANAILLE_OIDC": {
                "DYNAMIC_CLIENT_REGISTRATION_OPEN": True, "TRUSTED_DOMAINS": [],  # nobody gets in without consent
                "ACTIVE_JWKS": [key.as_dict(private=True) for key in keys],
            },
        },
        env_file=None,
    )  # fmt: skip
    with app.app_context():
        members: dict[str, list[object]] = {}
        for login, (address, groups) in PEOPLE.items():
            person = models.User(
                user_name=login, formatted_name=login, family_name=login, emails=[address], password=PASSWORD
            )
            Backend.instance.save(person)
            for group in groups:
                members.setdefault(group, []).append(person)
        for group, people in members.items():
            Backend.instance.save(models.Group(display_name=group, members=people))
    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
