"""`/v1`: the chat and completions API that OpenAI clients speak, and feedback on its replies.

Who asks shows an API key as Bearer token, or is a signed-in browser with an `X-CSRFToken` header. Errors are
raised as they are; `app.py` gives them the OpenAI shape.
"""

from typing import Any

import flask
from flask import Blueprint, Response, current_app, jsonify

from access.callers import asking
from access.limits import admit, take
from access.tenants import pinned
from core.body import parse_body
from core.openapi import operation
from core.web import runtime
from feedback.consent import HEADER, NONE, SERVICE, consent_of, user_key
from feedback.judgments import record_feedback
from policy.models import PolicyVersion
from serving.answers import (
    ChatAnswer,
    ErasureAnswer,
    FeedbackAnswer,
    Model,
    ModelList,
    Moderation,
    TextAnswer,
)
from serving.calls import this_call
from serving.chat import Asked, chat_of
from serving.deferred import Deferred
from serving.erasures import erase_for
from serving.moderation import moderate
from serving.prompting import HEADER as SYSTEM_PROMPT_HEADER
from serving.replies import earlier_replies
from serving.routing import PUBLIC_NAME, resolve, served_versions
from serving.schemas import ChatBody, ErasureBody, FeedbackBody, ModerationBody, TextBody

blueprint = Blueprint("api", __name__, url_prefix="/v1")

ENERGY_HEADER = "X-Dunnock-Energy"
ANSWER_MEDIA = ("application/json", "text/event-stream")


@blueprint.post("/chat/completions")
@operation("Chat", ChatAnswer, body=ChatBody, scope="chat", errors=(404, 409, 429, 503), media=ANSWER_MEDIA)
def chat_completions() -> Response:
    """Answer a conversation, whole or streamed; the reply is stored before its last byte goes out."""
    return _completed(ChatBody)


@blueprint.post("/completions")
@operation("Chat", TextAnswer, body=TextBody, scope="chat", errors=(404, 409, 429, 503), media=ANSWER_MEDIA)
def completions() -> Response:
    """Continue texts as they stand, without a chat template. They are stored, and never trained on: policies learn conversations."""
    return _completed(TextBody)


def _completed(kind: type[ChatBody] | type[TextBody]) -> Response:
    settings, chat, call = runtime().settings, chat_of(current_app), this_call()
    with runtime().db.read() as session:
        who = asking("chat", session)
        body: ChatBody | TextBody = parse_body(kind)
        consent = consent_of(
            flask.request.headers.get(HEADER), body.consent, NONE if body.store is False else None,
            default=(who.terms.consent if who.terms else None) or settings.privacy.consent,
        )  # fmt: skip
        admit(runtime().db, who.limits, who.terms, settings.limits)
        version = resolve(session, pinned(who.terms, body.model, PUBLIC_NAME))
        standing = chat.guard.standing(session, who.tenant_id)
        named = body.system_prompt if isinstance(body, ChatBody) else None
        offer = chat.prompting.offer(session, who.tenant_id, named or flask.request.headers.get(SYSTEM_PROMPT_HEADER))
        if isinstance(body, ChatBody):
            texts = earlier_replies(session, body.named, who.person_id)
            requests = body.engine_requests(version.name, settings, texts)
        else:
            consent = consent_of(consent, SERVICE, default=consent)
            requests = body.engine_requests(version.name, settings)
        scorer = chat.best_of.scorer(session) if chat.best_of.settings.n > 1 else None
    put = [chat.prompting.put(offer, request, who.tenant_id, body.user) for request in requests]
    call.asked(
        body.model, put[0][0], choices=body.choices * len(put), stream=bool(body.stream), tenant_id=who.tenant_id
    )
    with call.trace.part("guard input"):
        checked = [chat.check_prompt(request) for request, _ in put]
    every = [
        Asked(
            version, request, who.person_id, standing, found, flask.request.path, body.choices, bool(body.stream), body.include_usage,
            tenant_id=who.tenant_id, keep_texts=consent != NONE, consent=consent, call=call, prompted=prompted, scorer=scorer,
            user_key=user_key(settings.user_secret(), who.tenant_id, body.user) if body.user else None,
            cache_control=flask.request.headers.get("Cache-Control", "").lower(), tell_energy=settings.energy.tell_callers or flask.request.headers.get(ENERGY_HEADER, "").lower() == "true",
            echo=isinstance(body, TextBody) and bool(body.echo),
        )
        for (request, prompted), found in zip(put, checked, strict=True)
    ]  # fmt: skip
    return Deferred(lambda: chat.answer(*every))


@blueprint.post("/moderations")
@operation("Chat", Moderation, body=ModerationBody, scope="chat", errors=(429, 503))
def moderations() -> Response:
    """Say what the guard finds in texts: the rules that they break, prompt injection, secrets, personal data."""
    who = asking("chat")
    body = parse_body(ModerationBody)
    guard = chat_of(current_app).guard
    admit(runtime().db, who.limits, who.terms, runtime().settings.limits)
    with runtime().db.read() as session:
        standing = guard.standing(session, who.tenant_id)
    return Deferred(lambda: moderate(guard, standing, body.texts))


@blueprint.get("/models")
@operation("Chat", ModelList, scope="chat", errors=(503,))
def models() -> Response:
    """The names that `model` may be: "dunnock" for the active version, and every version that was ever active; of a tenant with a pin, that one."""
    who = asking("chat")
    pin = who.terms.policy_version if who.terms else None
    with runtime().db.read() as session:
        public = resolve(session, pinned(who.terms, PUBLIC_NAME, PUBLIC_NAME))
        others = [version for version in served_versions(session) if pin in (None, version.name)]
        named = [(PUBLIC_NAME, public), *((version.name, version) for version in others)]
    return jsonify(object="list", data=[_model(name, version) for name, version in named])


@blueprint.get("/models/<path:model>")
@operation("Chat", Model, scope="chat", errors=(404, 503))
def one_model(model: str) -> Response:
    """One of the names that `model` may be."""
    who = asking("chat")
    with runtime().db.read() as session:
        return jsonify(_model(model, resolve(session, pinned(who.terms, model, PUBLIC_NAME))))


@blueprint.post("/feedback")
@operation("Chat", {201: FeedbackAnswer}, body=FeedbackBody, scope="feedback", errors=(404, 409))
def feedback() -> tuple[Response, int]:
    """Record what somebody says of a completion."""
    who = asking("feedback")
    body = parse_body(FeedbackBody)
    with runtime().db.session() as session:
        judgments = record_feedback(
            session,
            completion_id=body.completion_id,
            annotator_id=who.person_id,
            tenant_id=who.tenant_id,
            thumbs={"up": 1, "down": -1, None: None}[body.thumbs],
            rating=body.rating,
            correction=body.correction,
            note=body.note,
            once=body.idempotency_key,
            most_flagged=runtime().settings.sampling.most("flagged"),
        )
        ids = [judgment.id for judgment in judgments]
    return jsonify(object="feedback", judgment_ids=ids), 201


@blueprint.post("/erasures")
@operation("Chat", ErasureAnswer, body=ErasureBody, scope="chat", errors=(429,))
def erase() -> Response:
    """Erase the texts that were written for one user of the caller's, and by them. Of the house's users, leads and admins do."""
    who = asking("chat")
    body = parse_body(ErasureBody)
    take(runtime().db, who.limits, runtime().settings.limits)  # whose tokens are used up may still erase
    return jsonify(erase_for(who, body.user))


def _model(name: str, version: PolicyVersion) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(version.created_at.timestamp()), "owned_by": "dunnock"}
