"""What a view may ask the running app for: its settings and its database, and what all views need. No state of its own."""

from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from flask import current_app, url_for

from core.db import Database
from core.settings import Settings


@dataclass(frozen=True)
class Runtime:
    """The parts of one app instance, made by `create_app` and shared by its views."""

    settings: Settings
    db: Database


def runtime() -> Runtime:
    """The running app's parts; call it inside a request or app context."""
    return cast(Runtime, current_app.extensions["dunnock"])


def public_url(endpoint: str, **values: Any) -> str:
    """The URL of a page as others get it: below `DUNNOCK_PUBLIC_URL`, or the host of this request where that is empty."""
    base = runtime().settings.public_url.rstrip("/")
    return base + url_for(endpoint, **values) if base else url_for(endpoint, _external=True, **values)


def local_path(target: str | None) -> str:
    """`target` if it is a path of this site, else "/": a link must not send people elsewhere after sign-in."""
    if not target or not target.startswith("/") or target[1:2] in ("/", "\\") or not target.isprintable():
        return "/"
    parts = urlsplit(target)
    return "/" if parts.scheme or parts.netloc or "\\" in target else target
