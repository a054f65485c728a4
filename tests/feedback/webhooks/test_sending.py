"""Webhooks from the judgment to the receiver: a real server that takes them, fails, hangs, drips and redirects."""

import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, select, update
from standardwebhooks import Webhook as Verifier

from access.models import AuditLog, Person
from core.db import Database, utcnow
from core.settings import Settings
from feedback.assignment.leases import claim_task
from feedback.judgments import record_feedback, submit_judgment, undo_last
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Judgment, Task, Webhook, WebhookDelivery
from feedback.webhooks import subscriptions
from feedback.webhooks.events import EVENTS, tell
from feedback.webhooks.sending import Sender, forget_old, retry_after
from tests import factories
from tests.feedback.webhooks.receiver import Receiver, receiving, wait_until

ALL = list(EVENTS)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    """Settings of a trial on one machine, impatient ones."""
    return settings.model_copy(
        update={
            "webhook_allow_private": True, "webhook_timeout_s": 0.5, "webhook_poll_s": 0.05, "webhook_first_retry_s": 0.05,
            "webhook_attempts": 3,
        }
    )  # fmt: skip


@pytest.fixture
def lead_person(database: Database) -> Person:
    with database.session() as session:
        return factories.make_person(session, "lead", role="lead")


def subscribe(database: Database, person: Person, url: str, events: list[str] = ALL) -> Webhook:
    with database.session() as session:
        return subscriptions.add(session, person, url, events, allow_private=True)


@pytest.fixture
def hook(database: Database, lead_person: Person, receiver: Receiver) -> Webhook:
    return subscribe(database, lead_person, f"{receiver.url}/in?x=1")


@pytest.fixture
def sender(database: Database, open_settings: Settings) -> Iterator[Sender]:
    sender = Sender(database, open_settings)
    yield sender
    sender.stop()


def judge(database: Database, required_n: int = 1) -> Task:
    """A pair that is judged once."""
    with database.session() as session:
        person = factories.make_person(session)
        task = factories.make_pairwise_task(session, required_n=required_n)
        token = claim_task(session, task.id, person.id, 60).lease_token
        submit_judgment(
            session, token=token, annotator_id=person.id, form=PairwiseForm(choice="left", strength=3), latency_s=1
        )
        return task


def outbox(database: Database) -> list[WebhookDelivery]:
    with database.read() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)))


def make_due(database: Database) -> None:
    with database.session() as session:
        session.execute(update(WebhookDelivery).values(next_at=utcnow()))


# What is told ---------------------------------------------------------------------------------------------------------


def test_a_judgment_and_its_done_task_arrive_signed(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender
) -> None:
    task = judge(database)
    assert sender.send_due() == 2
    told = []
    for path, headers, body in receiver.got:
        assert path == "/in?x=1"
        assert headers["content-type"] == "application/json"
        told.append(Verifier(hook.secret).verify(body, headers))  # another's implementation of the specification
    assert [message["type"] for message in told] == ["judgment.created", "task.done"]
    assert told[0]["data"]["task_id"] == told[1]["data"]["task_id"] == task.id
    assert (told[0]["data"]["kind"], told[0]["data"]["strength"], told[0]["data"]["simulated"]) == (
        "pairwise",
        3,
        False,
    )
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 2
    assert [(row.state, row.status, row.attempts) for row in outbox(database)] == [("sent", 204, 1)] * 2
    assert sender.send_due() == 0


def test_a_changed_mind_and_feedback_are_told_and_end_no_task_twice(database: Database, hook: Webhook) -> None:
    judge(database)
    with database.session() as session:
        person_id = session.scalars(select(Judgment.annotator_id)).one()
        undo_last(session, person_id, PairwiseForm(choice="tie"))
        record_feedback(session, completion_id=factories.make_completion(session).id, annotator_id=None, thumbs=1)
    assert [row.event for row in outbox(database)] == [
        "judgment.created", "task.done", "judgment.created", "judgment.created",
    ]  # fmt: skip
    judge(database, required_n=2)
    assert [row.event for row in outbox(database)][4:] == ["judgment.created"]


def test_an_event_stands_or_falls_with_its_transaction(database: Database, hook: Webhook) -> None:
    with pytest.raises(ZeroDivisionError), database.session() as session:
        factories.make_pairwise_task(session)
        assert tell(session, "task.done", {"task_id": 1}) == 1
        raise ZeroDivisionError
    assert outbox(database) == []


def test_only_what_was_subscribed_is_told(database: Database, lead_person: Person, receiver: Receiver) -> None:
    one = subscribe(database, lead_person, receiver.url, ["task.done"])
    two = subscribe(database, lead_person, f"{receiver.url}/2", ["judgment.created"])
    judge(database)
    assert [(row.webhook_id, row.event) for row in outbox(database)] == [
        (two.id, "judgment.created"), (one.id, "task.done"),
    ]  # fmt: skip


def test_without_a_webhook_a_judgment_costs_no_statement(database: Database) -> None:
    judge(database)  # asks once whether there is one
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    judge(database)
    assert statements
    assert [text for text in statements if "webhook" in text] == []


def test_rounds_and_promotions_are_told(database: Database, settings: Settings, hook: Webhook) -> None:
    from finetune.cycle import cancel_cycle, finish_cycle, request_cycle
    from finetune.events import tell_promoted
    from policy.models import Promotion

    with database.session() as session:
        version = factories.make_policy_version(session, "v1")
        first = request_cycle(session, settings, "manual")
        finish_cycle(session, first.id, "refused", "v2 failed: length")
        second = request_cycle(session, settings, "manual")
        cancel_cycle(session, second.id, "lead")
        cancel_cycle(session, second.id, "lead")
        row = Promotion(kind="rollback", policy_version_id=version.id, actor="lead", reason="worse")
        session.add(row)
        session.flush()
        tell_promoted(session, row)
    told = [json.loads(row.body) for row in outbox(database)]
    assert [(message["type"], message["data"].get("state")) for message in told] == [
        ("cycle.finished", "refused"), ("cycle.finished", "cancelled"), ("policy.promoted", None),
    ]  # fmt: skip
    assert told[2]["data"] == {
        "policy_version": "v1", "former": None, "kind": "rollback", "actor": "lead", "reason": "worse",
    }  # fmt: skip


# Servers as they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (500, 500, "answered 500"), (404, 404, "answered 404"), (429, 429, "answered 429"),
        ("redirect", 302, "not followed"), ("hang", None, "no answer within 0.5 s"), ("drip", None, "no answer within 0.5 s"),
        ("close", None, "no connection"),
    ],
)  # fmt: skip
def test_a_failure_is_told_and_tried_again(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender, answer: Any, status: Any, words: str
) -> None:
    receiver.answers = [answer]
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
    began = time.monotonic()
    sender.send_due()
    assert time.monotonic() - began < 5
    (row,) = outbox(database)
    assert (row.state, row.attempts, row.status) == ("waiting", 1, status)
    assert words in row.error
    assert row.next_at > row.created_at
    make_due(database)
    sender.send_due()
    (row,) = outbox(database)
    assert (row.state, row.attempts, row.status, row.error) == ("sent", 2, 204, None)
    ids = [headers["webhook-id"] for _, headers, _ in receiver.got]
    assert len(ids) == 2
    assert len(set(ids)) == 1  # the same event, so that a receiver knows a double
    assert all(path == "/in?x=1" for path, _, _ in receiver.got)


def test_it_is_given_up_after_a_bound_and_sent_again_when_asked(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender
) -> None:
    receiver.default = 503
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
    for _ in range(5):
        make_due(database)
        sender.send_due()
    (row,) = outbox(database)
    assert (row.state, row.attempts, row.error, len(receiver.got)) == ("given_up", 3, "answered 503", 3)
    receiver.default = 200
    with database.session() as session:
        subscriptions.send_again(session, session.get_one(Webhook, hook.id), row.id, "lead")
    sender.send_due()
    assert [(row.state, row.attempts) for row in outbox(database)] == [("sent", 1)]


def test_a_server_that_is_gone_turns_the_webhook_off(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender
) -> None:
    receiver.default = 410
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
        tell(session, "task.done", {"task_id": 2})
    sender.send_due()
    make_due(database)
    sender.send_due()
    assert {row.state for row in outbox(database)} == {"given_up"}
    with database.read() as session:
        assert session.get_one(Webhook, hook.id).active is False
        assert session.scalars(select(AuditLog.action).order_by(AuditLog.id)).all() == ["webhook.add", "webhook.off"]


def test_nothing_answers_and_the_rest_of_the_batch_waits_uncounted(
    database: Database, lead_person: Person, sender: Sender
) -> None:
    subscribe(database, lead_person, "http://127.0.0.1:9/")  # the discard port: nobody is there
    with database.session() as session:
        for n in range(3):
            tell(session, "task.done", {"task_id": n})
    sender.send_due()
    assert [row.attempts for row in outbox(database)] == [1, 0, 0]


def test_what_a_removed_webhook_waits_for_is_given_up(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender
) -> None:
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
        subscriptions.remove(session, session.get_one(Webhook, hook.id), "lead")
    sender.send_due()
    assert [(row.state, row.error) for row in outbox(database)] == [
        ("given_up", "the webhook was turned off or removed")
    ]
    assert receiver.got == []
    with database.session() as session:
        assert tell(session, "task.done", {"task_id": 2}) == 0
        assert session.get_one(Webhook, hook.id).secret == ""


def test_a_private_address_is_never_asked(
    database: Database, hook: Webhook, receiver: Receiver, settings: Settings
) -> None:
    sender = Sender(database, settings)
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
    sender.send_due()
    assert receiver.got == []
    assert "https" in outbox(database)[0].error
    sender.stop()


def test_one_that_hangs_delays_nobody_else(
    database: Database, lead_person: Person, receiver: Receiver, open_settings: Settings
) -> None:
    """The thread serves a quick receiver while a slow one holds its own thread."""
    patient = open_settings.model_copy(update={"webhook_timeout_s": 20})
    with receiving() as slow:
        slow.default = "hang"
        subscribe(database, lead_person, slow.url)
        subscribe(database, lead_person, receiver.url)
        sender = Sender(database, patient)
        sender.start()
        for n in range(3):
            with database.session() as session:
                tell(session, "task.done", {"task_id": n})
            wait_until(lambda n=n: len(receiver.got) == n + 1)
        assert len(slow.got) == 1
        slow.released.set()
        sender.stop()


def test_a_thread_of_the_worker_sends(
    database: Database, hook: Webhook, receiver: Receiver, open_settings: Settings
) -> None:
    from finetune.worker import Worker

    worker = Worker(database, open_settings.model_copy(update={"cycle_poll_s": 0.05}))
    thread = threading.Thread(target=worker.run_forever)
    thread.start()
    judge(database)
    wait_until(lambda: len(receiver.got) == 2)
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_senders_send_each_event_once(
    request: pytest.FixtureRequest, receiver: Receiver, open_settings: Settings, kind: str
) -> None:
    database = request.getfixturevalue("database" if kind == "sqlite" else "postgres_database")
    with database.session() as session:
        person = factories.make_person(session, "lead", role="lead")
        subscriptions.add(session, person, receiver.url, ALL, allow_private=True)
        for n in range(60):
            tell(session, "task.done", {"task_id": n})
    senders = [Sender(database, open_settings.model_copy(update={"webhook_timeout_s": 10})) for _ in range(3)]
    for sender in senders:
        sender.start()
    wait_until(lambda: all(row.state == "sent" for row in outbox(database)), 60)
    for sender in senders:
        sender.stop()
    told = [json.loads(body)["data"]["task_id"] for _, _, body in receiver.got]
    assert sorted(told) == list(range(60))


def test_what_a_killed_worker_had_claimed_comes_up_again(
    database: Database, hook: Webhook, receiver: Receiver, sender: Sender
) -> None:
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
    assert len(sender._claim(set())) == 1  # and then its process dies
    assert sender.send_due() == 0
    (row,) = outbox(database)
    assert row.next_at > utcnow()
    make_due(database)
    assert sender.send_due() == 1
    assert [(row.state, row.attempts) for row in outbox(database)] == [("sent", 2)]


def test_waits_grow_four_times_and_end_at_a_day() -> None:
    for attempts, expected in ((1, 5), (2, 20), (3, 80), (7, 5 * 4**6), (30, 86400)):
        for _ in range(20):
            assert 0.8 * expected <= retry_after(attempts, 5.0) <= 1.2 * expected


def test_old_deliveries_are_forgotten_and_waiting_ones_are_not(database: Database, hook: Webhook) -> None:
    with database.session() as session:
        for n in range(3):
            tell(session, "task.done", {"task_id": n})
    rows = outbox(database)
    with database.session() as session:
        long_ago = utcnow() - dt.timedelta(days=31)
        session.execute(update(WebhookDelivery).values(created_at=long_ago))
        ended = update(WebhookDelivery).values(state="sent", ended_at=long_ago)
        session.execute(ended.where(WebhookDelivery.id == rows[0].id))
    assert forget_old(database, 30) == 1
    assert [row.id for row in outbox(database)] == [row.id for row in rows[1:]]
