"""The worker's thread that sends what stands in the outbox. Any number of workers may do it at once.

A look claims deliveries that are due by moving their next time ahead and counting the attempt, commits, and sends without
holding a transaction; what a killed worker had claimed comes up again. So a receiver gets an event at least once, and knows
doubles by `webhook-id`. Each webhook is served by one thread at a time: one that hangs delays nobody else.
"""

import datetime as dt
import logging
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, literal_column, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from access.audit import record
from access.names import WORKER
from core.db import Database, utcnow
from core.settings import Settings
from feedback.models import Webhook, WebhookDelivery
from feedback.webhooks.guarded import Undeliverable, post
from feedback.webhooks.signing import signed_headers

THREADS = 4
AT_A_TIME = 20
LOOKED_AT = 500
FACTOR = 4.0
JITTER_FRAC = 0.2
LONGEST_S = 24 * 3600.0
SWEEP_EVERY_S = 3600.0
AGENT = "dunnock-webhooks/1"
GONE = 410
DUE = WebhookDelivery.state == literal_column("'waiting'")  # literal, as in the partial index
log = logging.getLogger("dunnock.webhooks")


@dataclass(frozen=True)
class Claimed:
    """A delivery that this process has taken upon itself, and what it needs to send it."""

    id: int
    webhook_id: int
    attempt: int
    url: str
    secret: str
    message_id: str
    event: str
    body: bytes


class Sender:
    """Sends what is due, again and again, until it is stopped."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self.db, self.settings = db, settings
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="webhook")
        self._busy: dict[int, Future[None]] = {}
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._sweep_at = utcnow()

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being sent just now."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def send_due(self) -> int:
        """Claim and send what is due, and wait for it; returns how many attempts were made."""
        claimed = self._claim(set())
        for batch in _by_webhook(claimed):
            self._send_batch(batch)
        return len(claimed)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except OperationalError as error:
                log.warning("the database does not answer: %s", error.orig)
            self._stopping.wait(self.settings.webhook_poll_s)

    def _look(self) -> None:
        for number in [number for number, future in self._busy.items() if future.done()]:
            if (error := self._busy.pop(number).exception()) is not None:
                log.warning("webhook %d: %s; what was claimed comes up again", number, error)
        for batch in _by_webhook(self._claim(set(self._busy))):
            self._busy[batch[0].webhook_id] = self._pool.submit(self._send_batch, batch)
        if utcnow() >= self._sweep_at:
            self._sweep_at = utcnow() + dt.timedelta(seconds=SWEEP_EVERY_S)
            forget_old(self.db, self.settings.webhook_kept_days)

    def _claim(self, busy: set[int]) -> list[Claimed]:
        """Take deliveries that are due, at most so many of each webhook."""
        now = utcnow()
        held = now + dt.timedelta(seconds=AT_A_TIME * self.settings.webhook_timeout_s + 60)
        with self.db.read() as session:  # most looks find nothing, and take no write lock
            if session.scalar(select(WebhookDelivery.id).where(DUE, WebhookDelivery.next_at <= now).limit(1)) is None:
                return []
        with self.db.session() as session:
            due = (
                select(WebhookDelivery, Webhook)
                .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
                .where(DUE, WebhookDelivery.next_at <= now, WebhookDelivery.webhook_id.not_in(busy))
                .order_by(WebhookDelivery.next_at, WebhookDelivery.id)
                .limit(LOOKED_AT)
                .with_for_update(of=WebhookDelivery, skip_locked=True)
            )
            taken: dict[int, list[Claimed]] = {}
            for row, webhook in session.execute(due):
                if not webhook.active or webhook.removed_at is not None:
                    _end(row, "given_up", "the webhook was turned off or removed")
                elif len(of_it := taken.setdefault(webhook.id, [])) < AT_A_TIME:
                    row.attempts, row.next_at = row.attempts + 1, held
                    of_it.append(
                        Claimed(
                            row.id, webhook.id, row.attempts, webhook.url, webhook.secret, row.message_id, row.event,
                            row.body.encode(),
                        )
                    )  # fmt: skip
        return [claimed for of_it in taken.values() for claimed in of_it]

    def _send_batch(self, batch: list[Claimed]) -> None:
        """Send deliveries of one webhook in turn; where nothing answers, the rest waits for a better time."""
        for n, claimed in enumerate(batch):
            status, error = self._attempt(claimed)
            with self.db.session() as session:
                self._note(session, claimed, status, error)
                if status is None or self._stopping.is_set():
                    self._give_back(session, [other.id for other in batch[n + 1 :]])
                    return

    def _attempt(self, claimed: Claimed) -> tuple[int | None, str | None]:
        headers = {
            "content-type": "application/json", "user-agent": AGENT,
            **signed_headers(claimed.secret, claimed.message_id, claimed.body),
        }  # fmt: skip
        settings = self.settings
        try:
            status = post(
                claimed.url, headers, claimed.body, timeout_s=settings.webhook_timeout_s,
                allow_private=settings.webhook_allow_private,
            )  # fmt: skip
        except Undeliverable as error:
            return None, str(error)
        except Exception as error:
            log.exception("webhook %d: sending failed", claimed.webhook_id)
            return None, f"sending failed: {type(error).__name__}"
        if 300 <= status < 400:
            return status, f"answered {status}, a redirect, which is not followed; give the address that it leads to"
        return status, None if status < 300 else f"answered {status}"

    def _note(self, session: Session, claimed: Claimed, status: int | None, error: str | None) -> None:
        """Write down how an attempt ended, unless somebody else has taken the delivery meanwhile."""
        same = (WebhookDelivery.id == claimed.id) & (WebhookDelivery.attempts == claimed.attempt)
        row = session.scalar(select(WebhookDelivery).where(same, DUE).with_for_update())
        if row is None:
            return
        row.status, row.error = status, error
        if error is None:
            _end(row, "sent", None)
        elif status == GONE:
            _end(row, "given_up", error)
            _turn_off(session, claimed.webhook_id)
        elif row.attempts >= self.settings.webhook_attempts:
            _end(row, "given_up", error)
            log.warning("webhook %d: %s was given up after %d tries", claimed.webhook_id, row.event, row.attempts)
        else:
            row.next_at = utcnow() + dt.timedelta(
                seconds=retry_after(row.attempts, self.settings.webhook_first_retry_s)
            )

    def _give_back(self, session: Session, ids: list[int]) -> None:
        later = utcnow() + dt.timedelta(seconds=self.settings.webhook_first_retry_s)
        mine: ColumnElement[bool] = WebhookDelivery.id.in_(ids) & DUE
        session.execute(
            update(WebhookDelivery).where(mine).values(attempts=WebhookDelivery.attempts - 1, next_at=later)
        )


def retry_after(attempts: int, first_s: float) -> float:
    """Seconds until the next try, after so many: four times as long each time, a little by chance, at most a day."""
    return min(first_s * FACTOR ** (attempts - 1), LONGEST_S) * random.uniform(1 - JITTER_FRAC, 1 + JITTER_FRAC)


def forget_old(db: Database, days: int) -> int:
    """Delete deliveries that ended so many days ago; returns how many."""
    with db.session() as session:
        old = WebhookDelivery.ended_at < utcnow() - dt.timedelta(days=days)
        return len(session.scalars(delete(WebhookDelivery).where(old).returning(WebhookDelivery.id)).all())


def _by_webhook(claimed: list[Claimed]) -> list[list[Claimed]]:
    batches: dict[int, list[Claimed]] = {}
    for one in claimed:
        batches.setdefault(one.webhook_id, []).append(one)
    return list(batches.values())


def _end(row: WebhookDelivery, state: str, error: str | None) -> None:
    row.state, row.error, row.ended_at = state, error, utcnow()


def _turn_off(session: Session, webhook_id: int) -> None:
    webhook = session.get_one(Webhook, webhook_id)
    if webhook.active:
        webhook.active, webhook.why_off = False, "its server answered 410: it wants no more"
        record(session, WORKER, "webhook.off", f"webhook:{webhook_id}", {"active": True}, {"active": False})
