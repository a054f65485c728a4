"""Adding, testing, pausing and removing webhooks; each with an entry in the audit log, never with a secret in it."""

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from access.audit import record
from access.models import Person
from core.db import utcnow
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext
from feedback.models import Webhook, WebhookDelivery
from feedback.webhooks.events import EVENTS, PING, delivery, forget_who_listens
from feedback.webhooks.guarded import checked_url
from feedback.webhooks.signing import new_secret

PAGE = 50
MAX_WEBHOOKS = 50


def add(session: Session, person: Person, url: str, events: Iterable[str], *, allow_private: bool) -> Webhook:
    """Subscribe an address to events.

    Raises:
        InvalidInput: an address that webhooks do not go to, or events that do not exist.
        Conflict: there are too many.
    """
    url, wanted = checked_url(url, allow_private=allow_private), sorted(set(events))
    if not wanted or set(wanted) - set(EVENTS):
        raise InvalidInput(gettext("choose one or more of %(choices)s", choices=", ".join(EVENTS)), param="events")
    if len(list_webhooks(session)) >= MAX_WEBHOOKS:
        raise Conflict(gettext("there are %(most)s webhooks; remove one first", most=MAX_WEBHOOKS))
    webhook = Webhook(url=url, secret=new_secret(), events=wanted, created_by_id=person.id)
    session.add(webhook)
    session.flush()
    record(session, person.login, "webhook.add", _subject(webhook), after={"url": url, "events": wanted})
    forget_who_listens(session)
    return webhook


def list_webhooks(session: Session) -> list[Webhook]:
    """All that were not removed, oldest first."""
    return list(session.scalars(select(Webhook).where(Webhook.removed_at.is_(None)).order_by(Webhook.id)))


def find(session: Session, webhook_id: int) -> Webhook:
    """A webhook that was not removed.

    Raises:
        NotFound: there is none of this id.
    """
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or webhook.removed_at is not None:
        raise NotFound(gettext("there is no webhook %(webhook_id)s", webhook_id=webhook_id))
    return webhook


def counts(session: Session, webhook_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Deliveries that are kept, by webhook and state."""
    query = select(WebhookDelivery.webhook_id, WebhookDelivery.state, func.count())
    query = query.where(WebhookDelivery.webhook_id.in_(webhook_ids))
    found: dict[int, dict[str, int]] = {number: {} for number in webhook_ids}
    for webhook_id, state, n in session.execute(query.group_by(WebhookDelivery.webhook_id, WebhookDelivery.state)):
        found[webhook_id][state] = n
    return found


def deliveries(session: Session, webhook_id: int, before: int | None) -> tuple[list[WebhookDelivery], int | None]:
    """A page of a webhook's deliveries, newest first, and the id that the next page goes on before, or None."""
    query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook_id)
    if before is not None:
        query = query.where(WebhookDelivery.id < before)
    rows = session.scalars(query.order_by(WebhookDelivery.id.desc()).limit(PAGE + 1)).all()
    return list(rows[:PAGE]), rows[PAGE - 1].id if len(rows) > PAGE else None


def test(session: Session, webhook: Webhook, actor: str) -> WebhookDelivery:
    """Send an event that says nothing.

    Raises:
        Conflict: the webhook is off.
    """
    if not webhook.active:
        raise Conflict(gettext("this webhook is off; turn it on first"))
    row = delivery(webhook, PING, {"webhook_id": webhook.id, "asked_by": actor})
    session.add(row)
    session.flush()
    record(session, actor, "webhook.test", _subject(webhook))
    return row


def send_again(session: Session, webhook: Webhook, delivery_id: int, actor: str) -> WebhookDelivery:
    """Try a delivery that was given up from the beginning.

    Raises:
        NotFound: the webhook has no such delivery.
        Conflict: it was not given up, or the webhook is off.
    """
    row = session.get(WebhookDelivery, delivery_id)
    if row is None or row.webhook_id != webhook.id:
        raise NotFound(gettext("there is no delivery %(delivery_id)s", delivery_id=delivery_id))
    if row.state != "given_up" or not webhook.active:
        raise Conflict(gettext("only a delivery that was given up is sent again, and only while the webhook is on"))
    row.state, row.attempts, row.next_at, row.ended_at = "waiting", 0, utcnow(), None
    record(session, actor, "webhook.again", _subject(webhook), after={"delivery": delivery_id})
    return row


def switch(session: Session, webhook: Webhook, active: bool, actor: str) -> None:
    """Turn a webhook on or off; what waits for one that is off is given up."""
    if webhook.active != active:
        record(session, actor, "webhook.switch", _subject(webhook), {"active": webhook.active}, {"active": active})
    webhook.active, webhook.why_off = active, None if active else f"{actor} turned it off"[:200]
    forget_who_listens(session)


def remove(session: Session, webhook: Webhook, actor: str) -> None:
    """Send nothing more to it. The row stays, for its deliveries, without its secret."""
    record(session, actor, "webhook.remove", _subject(webhook), before={"url": webhook.url, "events": webhook.events})
    webhook.removed_at, webhook.active, webhook.secret = utcnow(), False, ""
    forget_who_listens(session)


def _subject(webhook: Webhook) -> str:
    return f"webhook:{webhook.id}"
