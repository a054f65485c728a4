"""`/api/v1`: annotation for programs. In: JSON. Out: tasks as they are shown, and judgments.

Who asks shows an API key with the scope `annotate`, or is a signed-in browser with an `X-CSRFToken` header. Nothing here
tells which policy wrote a completion, what others judged (but to who settles it), nor which tasks have known answers.
"""

import hashlib
import logging
from typing import Any

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from access.callers import lock_caller
from access.people import LockedPerson
from core.body import parse_body
from core.errors import DunnockError
from core.openapi import operation
from core.web import runtime
from feedback.api.schemas import JudgedAnswer, NextAnswer
from feedback.assignment import leases
from feedback.blind import Blind
from feedback.judgments import store_judgment
from feedback.kinds import AnyForm
from feedback.kinds.frame import Said, Shown
from feedback.task_page import others_of

blueprint = Blueprint("annotation", __name__, url_prefix="/api/v1")

SCOPE = "annotate"
log = logging.getLogger("dunnock.annotation")


class NextBody(BaseModel):
    """Ask for work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beside: list[str] = Field(
        default_factory=list, max_length=20, description="Tokens of unfinished assignments that are at hand."
    )


class JudgmentBody(BaseModel):
    """A judgment of an assignment, in terms of what was shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judgment: AnyForm
    latency_s: float | None = Field(None, ge=0, le=7 * 24 * 3600, description="Seconds from showing to submitting.")
    idempotency_key: str | None = Field(None, min_length=1, max_length=100)
    next: NextBody | None = Field(None, description="Ask for more work in the same call.")


@blueprint.post("/assignments")
@operation("Annotation", NextAnswer, body=NextBody, scope=SCOPE)
def next_assignment() -> Response:
    """The caller's unfinished task, else the next one; `assignment` is null when nothing is left."""
    body = parse_body(NextBody)
    with runtime().db.session() as session:
        who = lock_caller(SCOPE, session)
        return jsonify(assignment=_next(session, who, body))


@blueprint.post("/assignments/<token>/judgment")
@operation("Annotation", {201: JudgedAnswer}, body=JudgmentBody, scope=SCOPE, errors=(404, 409))
def judge(token: str) -> tuple[Response, int]:
    """Store a judgment; the same `idempotency_key` again returns the first one."""
    body = parse_body(JudgmentBody)
    try:
        return jsonify(_judge(token, body)), 201
    except _NothingNext as error:  # what was judged is stored, come what may of the rest
        told = _judge(token, body.model_copy(update={"next": None}))
        return jsonify(told | {"assignment": None, "why_none": error.reason}), 201


class _NothingNext(Exception):
    """The next task could not be given; what was done in its transaction is taken back."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _judge(token: str, body: JudgmentBody) -> dict[str, Any]:
    settings = runtime().settings
    with runtime().db.session() as session:
        who = lock_caller(SCOPE, session)
        stored = store_judgment(
            session, token=token, who=who, form=body.judgment, latency_s=body.latency_s,
            once=_once(token, body.idempotency_key), gold=settings.gold, adjudicate=settings.assignment.adjudicate,
        )  # fmt: skip
        answer: dict[str, Any] = {"judgment_id": stored.id, "surplus": stored.surplus}
        if body.next is not None:
            try:
                answer["assignment"] = _next(session, who, body.next)
            except DunnockError as error:
                raise _NothingNext(error.message) from error
            except SQLAlchemyError as error:
                log.exception("no next task could be given to person %s", who.id)
                raise _NothingNext("the next task could not be fetched; ask for it again") from error
    return answer


def _once(token: str, key: str | None) -> str | None:
    """The caller's name of an act, which is theirs alone: others may use the same words."""
    return None if key is None else f"api:{token}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _next(session: Session, who: LockedPerson, body: NextBody) -> dict[str, Any] | None:
    settings = runtime().settings
    found = leases.next_shown(session, who, settings.lease_s, shares=settings.assignment, beside=body.beside)
    return None if found is None else _as_json(session, found)


def _as_json(session: Session, shown: Shown) -> dict[str, Any]:
    """An assignment as its annotator may see it."""
    answer: dict[str, Any] = {
        "token": shown.token,
        "expires_at": shown.expires_at.isoformat(),
        "kind": shown.kind,
        "why": shown.why,
        "messages": shown.messages,
        "completions": [item.text for item in shown.items],
    }
    if shown.rule is not None:
        rule = shown.rule
        answer["rule"] = {"version_id": rule.version_id, "slug": rule.slug, "title": rule.title, "text": rule.text}
    if shown.pool == "adjudication":
        answer["judgments"] = [_told(other.said, shown) for other in others_of(session, shown)]
    return answer


def _told(said: Said, shown: Shown) -> dict[str, Any]:
    """What somebody judged, in terms of what is shown here."""
    sides = {"a": 0, "b": 1}
    choice = ("left", "right")[shown.number_of(sides[said.choice])] if said.choice in sides else said.choice
    ranks = (said.answer or {}).get("ranks")
    blinds = {item.completion_id: item.blind for item in shown.items}
    told = {
        "choice": choice, "strength": said.strength, "rating": said.rating, "note": said.note,
        "aspects": (said.answer or {}).get("aspects"),
        "ranks": [ranks[position] for position in shown.order] if ranks else None,
        "rule_verdicts": [
            {
                "rule_version_id": each.rule_version_id, "verdict": each.verdict, "confidence": each.confidence,
                "item": shown.number_of_completion(each.completion_id), "span": blinds.get(each.completion_id, Blind("")).hide(each.span or "") or None,
            }
            for each in said.findings
        ],
        "corrections": {
            str(shown.number_of_completion(completion_id)): blinds.get(completion_id, Blind("")).hide(text)
            for completion_id, text in said.edits
        },
    }  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}
