"""Telling of events: one call in the transaction that makes them, a row for each webhook that wants to know.

An event stands or falls with its transaction. Where nobody listens, a call costs a look-up in memory: whether any webhook is
active is asked of the database every few seconds, so a new one hears of what happens from then on.
"""

import json
import secrets
import time
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from core.db import utcnow
from core.language import N_
from feedback.models import Judgment, Task, Webhook, WebhookDelivery

EVENTS = {
    "judgment.created": N_("somebody judged, or changed their judgment"),
    "task.done": N_("a task has all the judgments that it wants"),
    "cycle.finished": N_("a round of the loop ended, whatever its end"),
    "policy.promoted": N_("another policy version became active, by promotion or rollback"),
}
PING = "ping"
NOTICED_S = 5.0
"""How long it takes at most until a process knows that there is a webhook, or that there is none any more."""

_listened: "WeakKeyDictionary[Engine, tuple[float, bool]]" = WeakKeyDictionary()


def judgment_added(session: Session, judgment_id: int) -> None:
    """Tell of a judgment, and of its task where this was the last one that it wanted. Texts are not told, only ids: whoever
    may read them asks the API."""
    if not _anybody(session):
        return
    judgment = session.get_one(Judgment, judgment_id)
    names = (
        "task_id", "completion_id", "annotator_id", "kind", "choice", "strength", "rating", "thumbs", "simulated", "surplus",
        "supersedes_id",
    )  # fmt: skip
    told = {"judgment_id": judgment.id} | {name: getattr(judgment, name) for name in names}
    tell(session, "judgment.created", told)
    task = None if judgment.task_id is None else session.get(Task, judgment.task_id, populate_existing=True)
    if task is not None and task.state == "done" and not judgment.surplus and judgment.supersedes_id is None:
        tell(session, "task.done", {"task_id": task.id, "kind": task.kind, "pool": task.pool, "judgments": task.done})


def tell(session: Session, event: str, told: dict[str, Any]) -> int:
    """Write an event into the outbox, for every active webhook that wants it; returns for how many."""
    if not _anybody(session):
        return 0
    wanted = select(Webhook).where(Webhook.active, Webhook.removed_at.is_(None)).order_by(Webhook.id)
    hooks = [hook for hook in session.scalars(wanted) if event in hook.events]
    session.add_all(delivery(hook, event, told) for hook in hooks)
    return len(hooks)


def delivery(webhook: Webhook, event: str, told: dict[str, Any]) -> WebhookDelivery:
    """A row of the outbox: the payload of Standard Webhooks, `{type, timestamp, data}`, as it will be signed and sent."""
    now = utcnow()
    body = json.dumps({"type": event, "timestamp": now.isoformat(), "data": told}, ensure_ascii=False)
    return WebhookDelivery(
        webhook_id=webhook.id, message_id=f"msg_{secrets.token_urlsafe(18)}", event=event, body=body, next_at=now
    )


def forget_who_listens(session: Session) -> None:
    """Ask the database again at the next event; for who changes a webhook in this process."""
    _listened.pop(session.get_bind().engine, None)


def _anybody(session: Session) -> bool:
    engine = session.get_bind().engine
    until, listened = _listened.get(engine, (0.0, False))
    now = time.monotonic()
    if now >= until:
        active = select(Webhook.id).where(Webhook.active, Webhook.removed_at.is_(None)).limit(1)
        listened = session.scalar(active) is not None
        _listened[engine] = (now + NOTICED_S, listened)
    return listened
