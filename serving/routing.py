"""Which policy version answers, and the engine that speaks for it.

A reply comes from the version that was asked for or not at all: a version that cannot be loaded is an error,
never a silent step to another one.
"""

import logging

from flask import Flask, current_app
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import ArtifactError, EngineError, NotFound
from core.language import gettext
from core.settings import Settings
from policy.client import EngineClient, ensure_loaded
from policy.models import PolicyVersion

log = logging.getLogger("dunnock.serving")

PUBLIC_NAME = "dunnock"
SERVED_STATES = ("active", "retired")
EXTENSION = "dunnock_engine"


def resolve(session: Session, model: str) -> PolicyVersion:
    """The version that answers to a model name: "dunnock" is the active one, a version's own name pins it.

    Raises:
        NotFound: no such version, or one that was never active.
        EngineError: no version is active yet.
    """
    if model == PUBLIC_NAME:
        return active(session)
    version = session.scalar(
        select(PolicyVersion).where(PolicyVersion.name == model, PolicyVersion.state.in_(SERVED_STATES))
    )
    if version is None:
        raise NotFound(
            gettext("the model %(model)r does not exist", model=model), code="model_not_found", param="model"
        )
    return version


def active(session: Session) -> PolicyVersion:
    """The version that answers now, or EngineError."""
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.state == "active"))
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
