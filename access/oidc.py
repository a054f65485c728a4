"""An OpenID Connect provider, asked in the authorization code flow with PKCE. In: settings. Out: claims that were checked.

`start` gives the URL to send a browser to and the flow to keep in its session; `finish` takes what the browser came
back with, exchanges the code on the back channel and checks the ID token: signature, algorithm, issuer, audience,
time, nonce, hash of the access token. Who the claims belong to here is decided in `access.identities`.

Sources: OpenID Connect Core 1.0, section 3.1; RFC 7636 (PKCE); RFC 9207 (`iss` in the answer).
"""

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from core.errors import Forbidden, InvalidInput, ProviderError, Unauthenticated
from core.language import gettext
from core.settings import OidcSettings

ALGORITHMS = ["RS256", "ES256"]
METADATA_S = 3600  # how long discovery document and keys are kept
FLOW_S = 600  # how long somebody may take at the provider
LEEWAY_S = 60  # clocks differ

log = logging.getLogger("dunnock")


@dataclass(frozen=True)
class Claims:
    """What a provider vouches for. `issuer` and `subject` are who it is; nothing else is."""

    issuer: str
    subject: str
    all: Mapping[str, Any]

    @property
    def email(self) -> str | None:
        """The address, as the provider spells it."""
        value = self.all.get("email")
        return value if isinstance(value, str) and "@" in value else None

    def values_of(self, path: str) -> list[str]:
        """The texts of a claim, with dots for nested ones; empty where there is none."""
        found: Any = self.all.get(path)
        if found is None:
            found = self.all
            for part in path.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
        return [str(v) for v in (found if isinstance(found, list) else [found]) if isinstance(v, str | int)]


class Provider:
    """One provider. Safe to use from several threads; what it publishes is fetched when needed and kept for an hour."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._keys: KeySet | None = None
        self._fetched_at = 0.0

    def start(self, redirect_uri: str) -> tuple[str, dict[str, Any]]:
        """Begin to sign somebody in.

        Returns:
            The provider's URL, and the flow, plain JSON that the browser's session keeps until it comes back.

        Raises:
            ProviderError: the provider cannot be reached.
        """
        flow = {
            "state": secrets.token_urlsafe(32),
            "nonce": secrets.token_urlsafe(32),
            "verifier": secrets.token_urlsafe(48),
            "started_at": time.time(),
        }
        with self._session(redirect_uri) as client:
            url, _ = client.create_authorization_url(
                self.metadata()["authorization_endpoint"],
                state=flow["state"],
                nonce=flow["nonce"],
                code_verifier=flow["verifier"],
            )
        return url, flow

    def finish(self, flow: Mapping[str, Any] | None, answer: Mapping[str, str], redirect_uri: str) -> Claims:
        """The checked claims of whoever came back.

        Args:
            flow: what `start` gave to this browser; None if it has none.
            answer: the query of the URL that the provider sent the browser to.

        Raises:
            InvalidInput: the answer does not belong to a flow of this browser, or came too late.
            Forbidden: the person or the provider refused.
            Unauthenticated: the provider did not take the code, or the ID token does not hold.
            ProviderError: the provider cannot be reached.
        """
        state = answer.get("state", "")
        if flow is None or not hmac.compare_digest(state.encode(), str(flow["state"]).encode()):
            raise InvalidInput(
                gettext("this answer does not belong to a sign-in of this browser; begin again"), code="oidc_state"
            )
        if time.time() - float(flow["started_at"]) > FLOW_S:
            raise InvalidInput(
                gettext("that took too long, and the sign-in has expired; begin again"), code="oidc_state"
            )
        self._check_sender(answer)
        if error := answer.get("error"):
            said = f"{error}: {answer.get('error_description', '')}".rstrip(": ")[:300]
            raise Forbidden(gettext("the provider did not sign you in (%(said)s)", said=said), code="oidc_refused")
        if not answer.get("code"):
            raise InvalidInput(gettext("the provider sent no code; begin again"), code="oidc_state")
        token = self._exchange(answer["code"], str(flow["verifier"]), redirect_uri)
        return self._complete(self.check(token, str(flow["nonce"])), token)

    def check(self, token: Mapping[str, Any], nonce: str) -> CodeIDToken:
        """The claims of a token response's ID token, if all of it holds.

        Raises:
            Unauthenticated: it does not.
        """
        issuer, client_id = self.metadata()["issuer"], self.settings.client_id
        try:
            decoded = self._decode(str(token.get("id_token", "")))
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": client_id}},
                {"nonce": nonce, "client_id": client_id, "access_token": token.get("access_token")},
            )
            claims.validate(leeway=LEEWAY_S)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            log.warning("an ID token of %s was refused: %s", issuer, error)
            raise Unauthenticated(
                gettext("what the provider sent about you does not hold, and you were not signed in; begin again"),
                code="oidc_token",
            ) from error
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 1 <= len(subject) <= 255:
            raise Unauthenticated(gettext("the provider did not say who you are (`sub`)"), code="oidc_token")
        return claims

    def metadata(self) -> dict[str, Any]:
        """The discovery document.

        Raises:
            ProviderError: it cannot be had, or is another issuer's.
        """
        with self._lock:
            if self._metadata and time.monotonic() - self._fetched_at < METADATA_S:
                return self._metadata
        found = self._get(self.settings.discovery_url)
        issuer = found.get("issuer")
        if not isinstance(issuer, str) or issuer.rstrip("/") != self.settings.issuer_url:
            raise ProviderError(
                gettext(
                    "the provider calls itself %(issuer)r; %(issuer_url)r was expected",
                    issuer=issuer,
                    issuer_url=self.settings.issuer_url,
                )
            )
        missing = [n for n in ("authorization_endpoint", "token_endpoint", "jwks_uri") if n not in found]
        if missing:
            raise ProviderError(
                gettext("the provider's discovery document lacks %(missing)s", missing=", ".join(missing))
            )
        with self._lock:
            self._metadata, self._keys, self._fetched_at = found, None, time.monotonic()
        return found

    def _check_sender(self, answer: Mapping[str, str]) -> None:
        metadata = self.metadata()
        promised = metadata.get("authorization_response_iss_parameter_supported") is True
        if answer.get("iss", metadata["issuer"] if not promised else "") != metadata["issuer"]:
            raise InvalidInput(
                gettext("this answer comes from another provider than was asked; begin again"), code="oidc_state"
            )

    def _exchange(self, code: str, verifier: str, redirect_uri: str) -> dict[str, Any]:
        try:
            with self._session(redirect_uri) as client:
                token = client.fetch_token(
                    self.metadata()["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=verifier,
                    timeout=self.settings.timeout_s,
                )
        except OAuthError as error:
            log.warning("the OpenID provider refused a code: %s", error)
            raise Unauthenticated(
                gettext("the provider did not accept this sign-in (%(error)s); begin again", error=error.error),
                code="oidc_code",
            ) from error
        except (requests.RequestException, ValueError) as error:
            raise _away(error) from error
        return dict(token)

    def _complete(self, claims: CodeIDToken, token: Mapping[str, Any]) -> Claims:
        """The claims, with those of the userinfo endpoint where the ID token lacks some that are needed."""
        found = Claims(claims["iss"], claims["sub"], dict(claims))
        needed = {"email", *([self.settings.role_claim.split(".")[0]] if self.settings.role_claim else [])}
        endpoint = self.metadata().get("userinfo_endpoint")
        if needed <= set(claims) or not endpoint:
            return found
        more = self._get(endpoint, bearer=str(token["access_token"]))
        if more.get("sub") != found.subject:  # Core 5.3.2: otherwise it must not be used
            raise Unauthenticated(gettext("the provider told of somebody else (userinfo `sub`)"), code="oidc_token")
        if "email" in claims:  # whether an address is verified is said by whoever says the address
            more = {name: value for name, value in more.items() if name != "email_verified"}
        else:
            claims = {name: value for name, value in claims.items() if name != "email_verified"}
        return Claims(found.issuer, found.subject, {**more, **claims})

    def _decode(self, id_token: str) -> jwt.Token:
        try:
            return jwt.decode(id_token, self._key_set(), algorithms=ALGORITHMS)
        except InvalidKeyIdError:  # the provider has new keys
            with self._lock:
                self._keys = None
            return jwt.decode(id_token, self._key_set(), algorithms=ALGORITHMS)

    def _key_set(self) -> KeySet:
        uri = self.metadata()["jwks_uri"]
        with self._lock:
            if self._keys is not None:
                return self._keys
        keys = KeySet.import_key_set(self._get(uri))  # type: ignore[arg-type]
        with self._lock:
            self._keys = keys
        return keys

    def _session(self, redirect_uri: str) -> OAuth2Session:
        secret = self.settings.client_secret
        return OAuth2Session(
            self.settings.client_id,
            secret or None,
            token_endpoint_auth_method=self._auth_method() if secret else "none",
            scope=self.settings.scopes,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
        )

    def _auth_method(self) -> str:
        offered = self.metadata().get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return "client_secret_basic" if "client_secret_basic" in offered else "client_secret_post"

    def _get(self, url: str, bearer: str = "") -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        try:
            answer = requests.get(url, headers=headers, timeout=self.settings.timeout_s)
            answer.raise_for_status()
            found = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise _away(error) from error
        if not isinstance(found, dict):
            raise ProviderError(gettext("the provider sent something else than a JSON object"))
        return found


def _away(error: Exception) -> ProviderError:
    log.warning("the OpenID provider failed: %s", error)
    return ProviderError(gettext("the sign-in provider does not answer just now; try again in a while"))
