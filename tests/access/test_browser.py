"""People and access in a real browser: from an invitation to an ended session, through a provider, and how it looks."""

import threading
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from werkzeug.serving import make_server

from access.audit import record
from access.models import Person
from core.db import Database
from core.settings import OidcSettings, Settings
from tests.access.oidc_provider import OidcProvider
from tests.browser import ARTIFACTS, PATIENCE_MS
from tests.factories import PASSWORD, make_person

NEW = "nine quiet grey herons"
PAGES = ["/account", "/people", "/people/1", "/invitations", "/audit", "/keys"]
OpenPage = Callable[..., Page]

pytestmark = pytest.mark.timeout(300)


def sign_in(page: Page, login: str, password: str = PASSWORD, target: str = "/account") -> None:
    page.goto(target)
    page.get_by_label("Login").fill(login)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**{target}")


def test_invitation_password_sign_in_and_an_ended_session(open_page: OpenPage, people: dict[str, Person]) -> None:
    lead, mine, phone = open_page(), open_page(), open_page(viewport={"width": 375, "height": 700})
    sign_in(lead, "lead", target="/invitations")
    lead.get_by_label("Role").select_option("annotator")
    lead.get_by_label("For whom").fill("Wren")
    lead.get_by_role("button", name="Make an invitation").click()
    link = lead.locator("#link").inner_text()

    mine.goto(link)
    mine.get_by_label("Login").fill("wren")
    mine.get_by_label("Password at least").fill(NEW)
    mine.get_by_label("Password again").fill(NEW)
    mine.get_by_role("button", name="Make the account and sign in").click()
    mine.wait_for_url("**/annotate")

    sign_in(phone, "wren", NEW)
    mine.get_by_role("link", name="Account").click()
    rows = mine.locator("#sessions + .table-scroll tbody tr")
    expect(rows).to_have_count(2)
    rows.filter(has_not_text="this browser").get_by_role("button", name="Sign out").click()
    expect(mine.get_by_role("status")).to_have_text("That browser is signed out.")
    expect(mine.locator("#sessions + .table-scroll tbody tr")).to_have_count(1)
    phone.reload()
    expect(phone.get_by_role("heading", name="Sign in")).to_be_visible()

    mine.get_by_label("chat").check()
    mine.get_by_label("Name").fill("laptop")
    mine.get_by_role("button", name="Make a key").click()
    expect(mine.locator("#key")).to_contain_text("dk-")

    lead.goto("/audit?actor=wren")
    expect(lead.locator("tbody")).to_contain_text("invitation.accept")
    expect(lead.locator("tbody")).to_contain_text("key.add")


def test_by_keyboard_alone(page: Page, people: dict[str, Person]) -> None:
    page.goto("/sign-in?next=/account")
    expect(page.get_by_label("Login")).to_be_focused()
    page.keyboard.type("annotator")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Old password")).to_be_visible()
    page.get_by_label("Old password").focus()
    for text in (PASSWORD, NEW, NEW):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    expect(page.get_by_label("End my API keys too")).to_be_focused()
    expect(page.get_by_label("End my API keys too")).to_be_checked()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Change the password"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Your password is changed")


@pytest.fixture
def oidc_url(settings: Settings, database: Database, oidc_provider: OidcProvider) -> Iterator[str]:
    """The app on a free port, as a client of the provider that knows that port."""
    from app import create_app

    server = make_server("127.0.0.1", 0, lambda *_: [], threaded=True)
    url = f"http://127.0.0.1:{server.server_port}"
    client = oidc_provider.register(f"{url}/sign-in/oidc/callback", "ES256")
    group = OidcSettings(
        issuer=oidc_provider.url, client_id=client.id, client_secret=client.secret, label="Sign in with birds.example",
        scopes="openid profile email groups", role_claim="groups", roles={"leads": "lead"}, people="everybody",
    )  # fmt: skip
    server.app = create_app(settings.model_copy(update={"oidc": group}), database)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("consent", ["accept", "deny"])
def test_through_a_provider(browser: Browser, oidc_url: str, consent: str) -> None:
    context = browser.new_context(base_url=oidc_url)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto("/sign-in?next=/people")
    page.get_by_role("link", name="Sign in with birds.example").click()
    page.locator("#login").fill("rook")
    page.keyboard.press("Enter")
    page.locator("#password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.locator(f"#{consent}").click()
    if consent == "accept":
        page.wait_for_url("**/people")
        expect(page.get_by_role("heading", name="People")).to_be_visible()
        expect(page.locator("#who")).to_contain_text("rook")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.go_back()  # nothing of it is left in the browser's memory
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    else:
        expect(page.get_by_role("heading", name="You were not signed in")).to_be_visible()
        expect(page.get_by_role("link", name="To the sign-in page")).to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_pages_fit_and_their_controls_have_names(
    open_page: OpenPage, people: dict[str, Person], database: Database, width: int, scheme: str
) -> None:
    with database.session() as session:
        long = "a-login-that-is-as-long-as-a-login-can-be-" * 2
        make_person(session, f"{long}\u202ereversed".replace("\u202e", ""), "reviewer", active=False)
        before = "Never threaten anybody. Never claim to be a person. Give no medical advice beyond first aid."
        record(
            session,
            "lead",
            "rule.edit",
            "rule:3",
            {"severity": 1, "text": before},
            {"severity": 2, "text": before[24:]},
        )
        record(session, "lead", "rule.add", "rule:4", after={"text": "W" * 400, "<b>": "<img src=x>"})
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto("/sign-in")
    shoot(page, f"sign-in-{width}-{scheme}")
    sign_in(page, "admin")
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("annotate").check()
    page.get_by_role("button", name="Make a key").click()
    shoot(page, f"key-{width}-{scheme}")
    page.goto("/invitations")
    page.get_by_role("button", name="Make an invitation").click()
    shoot(page, f"link-{width}-{scheme}")
    page.goto(page.locator("#link").inner_text())
    shoot(page, f"invitation-{width}-{scheme}")
    for path in PAGES:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        nameless = page.evaluate(
            "[...document.querySelectorAll('main input:not([type=hidden]), main select, main textarea')]"
            ".filter(e => !e.labels.length && !e.getAttribute('aria-label')).map(e => e.name)"
        )
        assert nameless == [], path
        shoot(page, f"{path.strip('/').replace('/', '-')}-{width}-{scheme}")


def shoot(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"access-{name}.png", full_page=True)
