"""`/v1`: the chat API that OpenAI clients speak, and feedback on its replies.

Who asks shows an API key as Bearer token, or is a signed-in browser with an `X-CSRFToken` header. Errors are
raised as they are; `app.py` gives them the OpenAI shape.
"""

from typing import Any

import flask
from flask import Blueprint, Response, current_app, jsonify

from access.callers import caller_id
from core.body import parse_body
from core.openapi import operation
from core.web import runtime
from feedback.judgments import record_feedback
from policy.models import PolicyVersion
from serving.chat import Asked, chat_of
from serving.deferred import Deferred
from serving.moderation import moderate
from serving.replies import earlier_replies
from serving.routing import PUBLIC_NAME, active, resolve, served_versions
from serving.schemas import (
    ChatAnswer,
    ChatBody,
    FeedbackAnswer,
    FeedbackBody,
    Model,
    ModelList,
    Moderation,
    ModerationBody,
)

blueprint = Blueprint("api", __name__, url_prefix="/v1")

CHAT_MEDIA = ("application/json", "text/event-stream")


@blueprint.post("/chat/completions")
@operation("Chat", ChatAnswer, body=ChatBody, scope="chat", errors=(404, 409, 503), media=CHAT_MEDIA)
def chat_completions() -> Response:
    """Answer a conversation, whole or streamed; the reply is stored before its last byte goes out."""
    person_id = caller_id("chat")
    body = parse_body(ChatBody)
    settings, chat = runtime().settings, chat_of(current_app)
    with runtime().db.read() as session:
        version, standing = resolve(session, body.model), chat.guard.standing(session)
        texts = earlier_replies(session, body.named, person_id)
    request = body.engine_request(version.name, settings, texts)
    asked = Asked(
        version, request, person_id, standing, flask.request.path, body.choices, bool(body.stream), body.include_usage,
        keep_texts=body.store is not False,
    )  # fmt: skip
    return Deferred(lambda: chat.answer(asked))


@blueprint.post("/moderations")
@operation("Chat", Moderation, body=ModerationBody, scope="chat", errors=(503,))
def moderations() -> Response:
    """Say what the guard finds in texts: the rules that they break, prompt injection, secrets, personal data."""
    caller_id("chat")
    body = parse_body(ModerationBody)
    guard = chat_of(current_app).guard
    with runtime().db.read() as session:
        standing = guard.standing(session)
    return Deferred(lambda: moderate(guard, standing, body.texts))


@blueprint.get("/models")
@operation("Chat", ModelList, scope="chat", errors=(503,))
def models() -> Response:
    """The names that `model` may be: "dunnock" for the active version, and every version that was ever active."""
    caller_id("chat")
    with runtime().db.read() as session:
        named = [(PUBLIC_NAME, active(session)), *((version.name, version) for version in served_versions(session))]
    return jsonify(object="list", data=[_model(name, version) for name, version in named])


@blueprint.get("/models/<path:model>")
@operation("Chat", Model, scope="chat", errors=(404, 503))
def one_model(model: str) -> Response:
    """One of the names that `model` may be."""
    caller_id("chat")
    with runtime().db.read() as session:
        return jsonify(_model(model, resolve(session, model)))


@blueprint.post("/feedback")
@operation("Chat", {201: FeedbackAnswer}, body=FeedbackBody, scope="feedback", errors=(404, 409))
def feedback() -> tuple[Response, int]:
    """Record what somebody says of a completion."""
    person_id = caller_id("feedback")
    body = parse_body(FeedbackBody)
    with runtime().db.session() as session:
        judgments = record_feedback(
            session,
            completion_id=body.completion_id,
            annotator_id=person_id,
            thumbs={"up": 1, "down": -1, None: None}[body.thumbs],
            rating=body.rating,
            correction=body.correction,
            note=body.note,
            once=body.idempotency_key,
        )
        ids = [judgment.id for judgment in judgments]
    return jsonify(object="feedback", judgment_ids=ids), 201


def _model(name: str, version: PolicyVersion) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(version.created_at.timestamp()), "owned_by": "dunnock"}
