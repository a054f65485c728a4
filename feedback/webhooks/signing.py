"""Signatures as Standard Webhooks has them (standardwebhooks.com, version 1): who receives one can tell that it is ours, whole,
and not an old one sent again."""

import base64
import hashlib
import hmac
import secrets
import time

PREFIX = "whsec_"


def new_secret() -> str:
    """A secret of 256 random bits, in the form that libraries for receivers take."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signed_headers(secret: str, message_id: str, body: bytes, now_s: int | None = None) -> dict[str, str]:
    """The headers of a delivery: id, time in seconds since 1970, and "v1," with the base64 of HMAC-SHA256 over
    `id.time.body`."""
    at = str(int(time.time()) if now_s is None else now_s)
    key = base64.b64decode(secret.removeprefix(PREFIX))
    digest = hmac.new(key, b".".join((message_id.encode(), at.encode(), body)), hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
