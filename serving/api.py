"""`/v1`: the chat API that OpenAI clients speak, and feedback on its replies.

Who asks shows an API key as Bearer token, or is a signed-in browser with an `X-CSRFToken` header. Errors are
raised as they are; `app.py` gives them the OpenAI shape.
"""

from typing import Any

from flask import Blueprint, Response, jsonify

from access.callers import caller_id
from core.body import parse_body
from core.errors import PromptTooLong
from core.language import gettext
from core.openapi import operation
from core.web import runtime
from feedback.judgments import record_feedback
from policy.client import ChatReply, ChatRequest, EngineClient
from policy.models import PolicyVersion
from serving.replies import Reply, ReplyStream, choice_body, earlier_replies, several, store, usage_body
from serving.routing import PUBLIC_NAME, active, engine_client, resolve, served_versions, with_version
from serving.schemas import ChatAnswer, ChatBody, FeedbackAnswer, FeedbackBody, Model, ModelList

blueprint = Blueprint("api", __name__, url_prefix="/v1")

CHAT_MEDIA = ("application/json", "text/event-stream")
VERSION_HEADER = "X-Dunnock-Policy-Version"
TEMPLATE_TOKENS = 64  # what a chat template adds at most, with room to spare, plus so many per message:
TEMPLATE_TOKENS_PER_MESSAGE = 8


@blueprint.post("/chat/completions")
@operation("Chat", ChatAnswer, body=ChatBody, scope="chat", errors=(404, 409, 503), media=CHAT_MEDIA)
def chat_completions() -> Response:
    """Answer a conversation, whole or streamed; the reply is stored before its last byte goes out."""
    person_id = caller_id("chat")
    body = parse_body(ChatBody)
    settings = runtime().settings
    with runtime().db.read() as session:
        version = resolve(session, body.model)
        texts = earlier_replies(session, body.named, person_id)
    client = engine_client(settings)
    asked = body.engine_request(version.name, settings, texts)
    _check_length(client, asked, settings.max_prompt_tokens)
    headers = {VERSION_HEADER: version.name}
    if body.stream:
        reply = Reply(runtime().db, version, asked, person_id)
        events = with_version(client, version, settings, lambda: client.stream(asked))
        stream = ReplyStream(reply, events, include_usage=body.include_usage)
        return Response(stream, mimetype="text/event-stream", headers={**headers, "X-Accel-Buffering": "no"})
    replies = several(body.choices, Reply(runtime().db, version, asked, person_id))
    made = with_version(client, version, settings, lambda: _complete(client, [reply.request for reply in replies]))
    both = list(zip(replies, made, strict=True))
    store([(reply, w.text, w.finish_reason, (w.prompt_tokens, w.completion_tokens)) for reply, w in both])
    choices = [choice_body(i, reply, whole) for i, (reply, whole) in enumerate(both)]
    written = sum(whole.completion_tokens for whole in made)
    usage = usage_body((made[0].prompt_tokens, written))  # the prompt of all is told once
    answer = jsonify(**replies[0].head("chat.completion"), choices=choices, usage=usage)
    answer.headers.update(headers)
    return answer


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


def _complete(client: EngineClient, requests: list[ChatRequest]) -> list[ChatReply]:
    """All at once; a single one without a thread of its own."""
    return client.complete_many(requests, len(requests)) if len(requests) > 1 else [client.complete(requests[0])]


def _check_length(client: EngineClient, asked: ChatRequest, limit: int) -> None:
    """Raise PromptTooLong above `limit` prompt tokens; asks the engine only where the bytes leave a doubt."""
    most = sum(len(m.content.encode()) + TEMPLATE_TOKENS_PER_MESSAGE for m in asked.messages) + TEMPLATE_TOKENS
    if most <= limit:  # a token is at least a byte
        return
    count = client.count_tokens(asked.messages)
    if count is not None and count > limit:
        raise PromptTooLong(
            gettext("the prompt has %(count)s tokens; at most %(limit)s are taken", count=count, limit=limit),
            param="messages",
        )
