"""What a view may ask the running app for: its settings and its database. No state of its own."""

from dataclasses import dataclass
from typing import cast

from flask import current_app

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
