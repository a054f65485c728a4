"""Two probes without sign-in: `/healthz` (the process is up) and `/readyz` (it can answer a chat)."""

import logging

import httpx
from flask import Blueprint, Response, current_app, jsonify
from sqlalchemy.exc import SQLAlchemyError

from core.errors import DunnockError
from core.web import runtime
from policy.client import HEALTH_TIMEOUT_S, verify_adapter
from policy.models import PolicyVersion
from serving.chat import chat_of
from serving.routing import active, engine_client, make_ready

log = logging.getLogger("dunnock.serving")
blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """The process is up and handles requests."""
    return jsonify(status="ok")


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """The database answers, a version is active and undamaged, the engine has it, and the guard's model answers where there is
    one: without it replies are cut. Details are in the log."""
    reasons: list[str] = []
    version = _active_version(reasons)
    client = engine_client(runtime().settings)
    if not client.healthy():
        reasons.append("engine: it does not answer")
    if version is not None:
        try:
            verify_adapter(version, runtime().settings.artifact_dir)
            if not reasons:
                make_ready(client, version, runtime().settings)
        except DunnockError as error:
            log.error("not ready: %s", error.message)
            reasons.append(f"policy: version {version.name} cannot be loaded ({error.code})")
    if version is not None and not _guard_answers():
        reasons.append("guard: its model does not answer")
    name = version.name if version else None
    return jsonify(ready=not reasons, policy_version=name, reasons=reasons), 503 if reasons else 200


def _guard_answers() -> bool:
    """Whether the process of the guard's model is up; true where no model is to be asked."""
    guard = chat_of(current_app).guard
    with runtime().db.read() as session:
        if guard.standing(session).model is None:
            return True
    try:
        return httpx.get(f"{guard.model.url}/health", timeout=HEALTH_TIMEOUT_S).status_code == 200
    except httpx.HTTPError:
        return False


def _active_version(reasons: list[str]) -> PolicyVersion | None:
    try:
        with runtime().db.read() as session:
            return active(session)
    except SQLAlchemyError:
        log.exception("not ready: the database does not answer")
        reasons.append("database: it does not answer, or is not migrated")
    except DunnockError as error:
        reasons.append(f"policy: {error.message}")
    return None
