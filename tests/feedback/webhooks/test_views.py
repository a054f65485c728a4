"""The pages of webhooks: leads add, test, switch and remove; a secret is shown once."""

import re

import pytest
from sqlalchemy import select

from access.models import AuditLog
from core.db import Database
from feedback.models import Webhook, WebhookDelivery
from feedback.webhooks.events import tell
from tests.conftest import SignedIn

URL = "https://example.org/in"


def add(lead: SignedIn, url: str = URL, events: tuple[str, ...] = ("task.done",)) -> Webhook:
    answer = lead.client.post("/webhooks", data={"url": url, "events": list(events)})
    assert answer.status_code == 201, answer.text
    return answer


def hooks(database: Database) -> list[Webhook]:
    with database.read() as session:
        return list(session.scalars(select(Webhook).order_by(Webhook.id)))


def test_the_secret_is_shown_once(lead: SignedIn, database: Database) -> None:
    shown = add(lead).text
    (hook,) = hooks(database)
    assert re.search(r'id="secret">(whsec_[^<]+)<', shown).group(1) == hook.secret
    for page in ("/webhooks", f"/webhooks/{hook.id}"):
        text = lead.client.get(page).text
        assert URL in text
        assert hook.secret not in text
    with database.read() as session:
        entry = session.scalars(select(AuditLog).where(AuditLog.action == "webhook.add")).one()
        assert entry.actor == "lead"
        assert hook.secret not in str(entry.after)


@pytest.mark.parametrize(
    ("url", "events", "words"),
    [
        ("http://example.org", ["task.done"], "begins with https"),
        ("https://10.0.0.1/", ["task.done"], "private address"),
        (URL, [], "choose one"),
        (URL, ["all"], "choose one"),
    ],
)
def test_what_cannot_be_added_is_told_and_kept_in_the_form(
    lead: SignedIn, database: Database, url: str, events: list[str], words: str
) -> None:
    answer = lead.client.post("/webhooks", data={"url": url, "events": events})
    assert answer.status_code == 400
    assert words in answer.text
    assert f'value="{url}"' in answer.text
    assert hooks(database) == []


def test_a_test_is_queued_and_shown(lead: SignedIn, database: Database) -> None:
    add(lead)
    (hook,) = hooks(database)
    page = lead.client.post(f"/webhooks/{hook.id}/test", follow_redirects=True)
    assert "A test is on its way" in page.text
    assert "ping" in page.text
    assert "waiting" in page.text


def test_given_up_deliveries_are_shown_and_sent_again(lead: SignedIn, database: Database) -> None:
    add(lead)
    (hook,) = hooks(database)
    with database.session() as session:
        tell(session, "task.done", {"task_id": 1})
        row = session.scalars(select(WebhookDelivery)).one()
        row.state, row.error = "given_up", "answered 500 <script>"
    page = lead.client.get(f"/webhooks/{hook.id}").text
    assert "answered 500 &lt;script&gt;" in page
    assert "given up" in page
    again = f"/webhooks/{hook.id}/deliveries/{row.id}/again"
    assert lead.client.post(again).status_code == 303
    assert lead.client.post(again).status_code == 409
    assert lead.client.post(f"/webhooks/{hook.id}/deliveries/999/again").status_code == 404


def test_it_is_switched_and_removed(lead: SignedIn, database: Database) -> None:
    add(lead)
    (hook,) = hooks(database)
    lead.client.post(f"/webhooks/{hook.id}/switch", data={"active": "no"})
    assert "lead turned it off" in lead.client.get("/webhooks").text
    assert lead.client.post(f"/webhooks/{hook.id}/test").status_code == 409
    lead.client.post(f"/webhooks/{hook.id}/switch", data={"active": "yes"})
    assert hooks(database)[0].active
    assert "was removed" in lead.client.post(f"/webhooks/{hook.id}/remove", follow_redirects=True).text
    assert lead.client.get(f"/webhooks/{hook.id}").status_code == 404
    assert hooks(database)[0].secret == ""


def test_deliveries_are_shown_by_pages(lead: SignedIn, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.webhooks.subscriptions.PAGE", 2)
    add(lead)
    (hook,) = hooks(database)
    with database.session() as session:
        for n in range(5):
            tell(session, "task.done", {"task_id": n})
    path, pages = f"/webhooks/{hook.id}", 0
    while path:
        text = lead.client.get(path).text
        pages += 1
        older = re.search(r'href="(/webhooks/\d+\?before=\d+)"', text)
        path = older.group(1) if older else ""
    assert pages == 3


def test_others_may_not(annotator: SignedIn, database: Database, client: object) -> None:
    for method, path in (
        ("GET", "/webhooks"),
        ("POST", "/webhooks"),
        ("GET", "/webhooks/1"),
        ("POST", "/webhooks/1/test"),
    ):
        assert annotator.client.open(path, method=method).status_code == 403
