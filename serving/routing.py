"""Which policy version answers, and the engine that speaks for it.

A reply comes from the version that was asked for or not at all: a version that cannot be loaded is an error,
never a silent step to another one.
"""

import logging
from functools import lru_cache
from typing import Any

from flask import Flask, current_app
from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from core.db import table_of
from core.errors import ArtifactError, EngineError, NotFound
from core.language import gettext
from core.settings import Settings
from policy.client import EngineClient, ensure_loaded
from policy.models import PolicyVersion

log = logging.getLogger("dunnock.serving")

PUBLIC_NAME = "dunnock"
SERVED_STATES = ("active", "retired")
EXTENSION = "dunnock_engine"


_VERSION = table_of(PolicyVersion)
_ACTIVE = select(_VERSION).where(_VERSION.c.state == "active")
_NAMED = select(_VERSION).where(_VERSION.c.name == bindparam("name"), _VERSION.c.state.in_(SERVED_STATES))


def _one(session: Session, statement: Select[Any], **values: str) -> PolicyVersion | None:
    """The version that is found, as an object of no session: every chat call asks for one, and nobody changes it here."""
    row = session.connection().execute(statement, values).one_or_none()
    return None if row is None else _version(*row)


@lru_cache(maxsize=64)
def _version(*columns: Any) -> PolicyVersion:
    return PolicyVersion(**dict(zip(_VERSION.c.keys(), columns, strict=True)))


def resolve(session: Session, model: str) -> PolicyVersion:
    """The version that answers to a model name: "dunnock" is the active one, a version's own name pins it.

    Raises:
        NotFound: no such version, or one that was never active.
        EngineError: no version is active yet.
    """
    if model == PUBLIC_NAME:
        return active(session)
    version = _one(session, _NAMED, name=model)
    if version is None:
        raise NotFound(
            gettext("the model %(model)r does not exist", model=model), code="model_not_found", param="model"
        )
    return version


def active(session: Session) -> PolicyVersion:
    """The version that answers now, or EngineError."""
    version = _one(session, _ACTIVE)
    if version is None:
        raise EngineError(gettext("no policy version is active yet"), code="no_active_policy")
    return version


def served_versions(session: Session) -> list[PolicyVersion]:
    """Every version that can be asked for by name, newest first."""
    found = select(PolicyVersion).where(PolicyVersion.state.in_(SERVED_STATES)).order_by(PolicyVersion.id.desc())
    return list(session.scalars(found))


def engine_client(settings: Settings, app: Flask | None = None) -> EngineClient:
    """The app's one engine client, made at its first use."""
    extensions = (app or current_app).extensions
    if EXTENSION not in extensions:
        extensions[EXTENSION] = EngineClient(
            settings.engine_base_url, settings.engine_api_key, settings.engine_timeout_s
        )
    client: EngineClient = extensions[EXTENSION]
    return client


def make_ready(client: EngineClient, version: PolicyVersion, settings: Settings) -> None:
    """Have the engine know a version; errors name the version and keep paths of this machine to the log."""
    try:
        ensure_loaded(client, version, settings.artifact_dir)
    except ArtifactError as error:
        log.error("policy version %s cannot be loaded: %s", version.name, error.message)
        raise ArtifactError(
            gettext(
                "policy version %(name)s cannot be loaded: its adapter is missing or damaged; roll back, or restore it",
                name=version.name,
            )
        ) from error
