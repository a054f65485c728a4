"""The pages of webhooks and of the programming interface in Chromium: by keyboard, on a phone, with nothing that axe minds."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from access.models import Person
from core.db import Database
from feedback.models import Webhook, WebhookDelivery
from feedback.webhooks.events import tell
from tests import factories


@pytest.fixture
def signed_in(page: Page, people: dict[str, Person]) -> Page:
    page.goto("/sign-in")
    page.fill("[name=login]", people["lead"].login)
    page.fill("[name=password]", factories.PASSWORD)
    page.click("main button[type=submit]")
    page.wait_for_url(lambda url: not url.endswith("/sign-in"))
    return page


def test_a_webhook_is_added_and_tested_by_keyboard(signed_in: Page, database: Database) -> None:
    page = signed_in
    page.goto("/webhooks")
    page.get_by_label("Address").fill("https://example.org/in")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # not the first event
    page.get_by_label("Address").press("Enter")
    assert page.locator("#secret").inner_text().startswith("whsec_")
    page.get_by_role("link", name="go on").press("Enter")
    page.get_by_role("button", name="Send a test").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("on its way")
    with database.read() as session:
        assert len(session.scalars(select(Webhook)).one().events) == 3
        assert session.scalars(select(WebhookDelivery.event)).one() == "ping"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_pages_fit_and_are_read(
    signed_in: Page, database: Database, people: dict[str, Person], width: int, scheme: str
) -> None:
    page = signed_in
    with database.session() as session:
        events = ["judgment.created", "task.done"]
        for n, url in enumerate(("https://example.org/in", "https://hooks.example.com/" + "long" * 60)):
            off = {"active": False, "why_off": "its server answered 410"} if n else {}
            session.add(Webhook(url=url, secret="whsec_eA==", events=events, created_by_id=people["lead"].id, **off))
        session.flush()
        for n in range(6):
            tell(session, "task.done", {"task_id": n})
        for n, row in enumerate(session.scalars(select(WebhookDelivery))):
            row.state = ("sent", "waiting", "given_up")[n % 3]
            row.attempts, row.status = n, 200 if n % 3 == 0 else 500
            row.error = None if n % 3 == 0 else "answered 500 <b>&</b> " + "x" * 80
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for path in ("/webhooks", "/webhooks/1", "/api/docs"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")


def test_the_programming_interface_needs_no_sign_in_and_its_links_lead_somewhere(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(viewport={"width": 1280, "height": 800}, java_script_enabled=False)
    page.goto("/api/docs")
    anchors = page.locator("main a[href^='#']")
    targets = {anchors.nth(n).get_attribute("href") for n in range(anchors.count())}
    assert len(targets) > 30
    missing = [target for target in targets if page.locator(f"[id='{target[1:]}']").count() != 1]
    assert missing == []
