"""The rules' pages in a real browser: an edit and its diff, hostile texts, keys, no script, and how it looks."""

import re
import time
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, Page, expect

from access.models import Person
from core.db import Database
from feedback.models import RuleVersion
from feedback.rules.store import create_rule, edit_rule, ensure_rules, find_rule, history
from feedback.rules.words import Change, RuleWords
from tests.browser import ARTIFACTS
from tests.factories import PASSWORD
from tests.hostile import HOSTILE

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def rules(database: Database, people: dict[str, Person]) -> None:
    """The starter rules."""
    with database.session() as session:
        ensure_rules(session)


def sign_in(page: Page, path: str, login: str = "lead") -> None:
    page.goto(path)
    page.get_by_label("Login").fill(login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda address: "sign-in" not in address)


def newest(database: Database, slug: str = "weapons") -> RuleVersion:
    with database.read() as session:
        return find_rule(session, slug)


def test_a_lead_edits_a_rule_and_sees_the_diff(page: Page, database: Database, rules: None) -> None:
    sign_in(page, "/rules")
    page.get_by_role("link", name="No help with weapons").click()
    page.get_by_role("link", name="Edit").click()
    page.locator("html[data-ready=yes]").wait_for()
    text = page.get_by_label("Text: what a reply must not do")
    text.fill(text.input_value().replace("against people", "against people or animals"))
    expect(page.locator(".live-diff:visible ins").first).to_have_text(" people or animals.")  # shown while it is typed
    page.get_by_role("button", name="Add an example of broken").click()
    typed = page.locator("#broken .example-fields").last
    expect(typed.get_by_label("Text")).to_be_focused()
    page.keyboard.type("Sure, take this and aim well.")
    typed.get_by_label("Why, in a line").fill("It helps.")
    page.locator("#kept .drop").first.click()
    page.get_by_label("What did you change, and why?").fill("animals, too")
    page.keyboard.press("Enter")  # saves; it does not press "Remove this example"
    expect(page.get_by_text("Saved as version 2.")).to_be_visible()
    changes = page.locator(".changes")
    expect(changes.locator("ins").first).to_contain_text("or animals")
    expect(changes.locator("ins").last).to_have_text("Sure, take this and aim well.\n(It helps.)")
    expect(changes.locator("del").last).to_contain_text("background check")
    assert [e["reason"] for e in newest(database).broken_examples][1:] == ["It helps."]
    assert newest(database).kept_examples == []
    page.get_by_role("link", name="Version 1").click()
    expect(page.get_by_text("This is version 1. Version 2 is current.")).to_be_visible()
    page.get_by_role("link", name="What has changed since").click()
    expect(page.locator(".changes ins").first).to_contain_text("or animals")


def test_two_browsers_edit_at_once(browser: Browser, live_url: str, database: Database, rules: None) -> None:
    # without the fixture that takes a 409 in the console for an error
    contexts = [browser.new_context(base_url=live_url, viewport={"width": 1280, "height": 800}) for _ in range(2)]
    ana, ben = (context.new_page() for context in contexts)
    for page, login in ((ana, "lead"), (ben, "admin")):
        sign_in(page, "/rules/weapons/edit", login)
        page.locator("html[data-ready=yes]").wait_for()
        page.get_by_label("What did you change, and why?").fill(f"by {login}")
    ana.get_by_label("Title").fill("No weapons")
    ana.get_by_role("button", name="Save as version 2").last.click()
    expect(ana.get_by_text("Saved as version 2.")).to_be_visible()
    ben.get_by_label("Refusal").fill("I won't.")
    with ben.expect_response(lambda answer: answer.request.method == "POST") as answer:
        ben.get_by_role("button", name="Save as version 2").last.click()
    assert answer.value.status == 409
    expect(ben.get_by_role("alert")).to_contain_text("by lead")
    expect(ben.get_by_label("Title")).to_have_value("No weapons")
    expect(ben.get_by_label("Refusal")).to_have_value("I won't.")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    ben.screenshot(path=ARTIFACTS / "rule-conflict.png", full_page=True)
    ben.get_by_role("button", name="Save as version 3").last.click()
    expect(ben.get_by_text("Saved as version 3.")).to_be_visible()
    with database.read() as session:
        assert [(v.version, v.title, v.refusal_text == "I won't.") for v in history(session, "weapons")[0][:2]] == [
            (3, "No weapons", True),
            (2, "No weapons", False),
        ]
    for context in contexts:
        context.close()


def test_examples_and_quotes_without_javascript(
    open_page: Callable[..., Page], database: Database, rules: None
) -> None:
    page = open_page(java_script_enabled=False)
    sign_in(page, "/rules/weapons/try")
    page.get_by_label("The reply").fill("Sure, aim well and fire.")
    page.get_by_label("Quotes").fill("aim well")
    page.get_by_role("button", name="Show it beside the rule").click()
    expect(page.locator("mark")).to_have_text("aim well")
    page.get_by_role("button", name="Make it an example of broken").click()
    expect(page.get_by_role("textbox", name="Text", exact=True).last).to_have_value("Sure, aim well and fire.")
    page.get_by_role("button", name="Add an example of kept").click()
    page.get_by_label("What did you change, and why?").fill("an example")
    page.get_by_role("button", name="Save as version 2").click()
    expect(page.get_by_text("Saved as version 2.")).to_be_visible()
    assert newest(database).broken_examples[-1] == {"text": "Sure, aim well and fire.", "reason": ""}
    assert len(newest(database).kept_examples) == 1  # the empty one is not kept


def test_a_selection_becomes_a_quote(page: Page, rules: None) -> None:
    sign_in(page, "/rules/weapons/try")
    page.get_by_label("The reply").fill("First line.\nSure, aim\nwell and fire.")
    page.get_by_role("button", name="Show it beside the rule").click()
    page.locator("html[data-ready=yes]").wait_for()
    page.evaluate(
        """() => { const text = document.getElementById("tried").firstChild, at = text.data.indexOf("aim");
                   getSelection().setBaseAndExtent(text, at, text, at + 8) }"""
    )
    page.get_by_role("button", name="Quote what is selected").click()
    expect(page.locator("mark")).to_have_text("aim\nwell")
    expect(page.get_by_label("Quotes")).to_have_value("aim well")


def test_typed_text_is_not_left_by_accident(page: Page, database: Database, rules: None) -> None:
    sign_in(page, "/rules/weapons/edit")
    page.locator("html[data-ready=yes]").wait_for()
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.get_by_label("Title").press_sequentially("!")
    page.get_by_role("link", name="Leave it").click(no_wait_after=True)
    expect(page.get_by_label("Title")).to_have_value("!No help with weapons")
    page.wait_for_timeout(100)
    assert asked == ["beforeunload"]


def test_a_lost_session_costs_nothing_typed(page: Page, database: Database, rules: None) -> None:
    sign_in(page, "/rules/weapons/edit")
    page.locator("html[data-ready=yes]").wait_for()
    page.get_by_label("Title").fill("No weapons")
    page.get_by_role("button", name="Add an example of kept").click()
    page.keyboard.type("An example.")
    page.get_by_label("What did you change, and why?").fill("shorter")
    deadline = time.monotonic() + 30
    while "shorter" not in page.evaluate("JSON.stringify(localStorage)"):  # kept half a second after the last key
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    page.context.clear_cookies()
    page.on("dialog", lambda dialog: dialog.accept())
    sign_in(page, "/rules/weapons/edit")
    with database.session() as session:  # and somebody else was there meanwhile
        weapons = find_rule(session, "weapons")
        words = RuleWords(**{f: getattr(weapons, f) for f in RuleWords.model_fields} | {"severity": 1})
        edit_rule(session, "weapons", words, base=1, change=Change(author_id=1, login="ben", note="low"))
    page.reload()
    expect(page.get_by_label("Title")).to_have_value("No help with weapons")
    page.get_by_role("button", name="Bring it back").click()
    expect(page.get_by_label("Title")).to_have_value("No weapons")
    expect(page.locator("#kept textarea")).to_have_count(2)
    expect(page.locator("#kept textarea").last).to_have_value("An example.")
    expect(page.locator("[name=note]")).to_have_value("shorter")
    expect(page.locator("[name=base]")).to_have_value("1")  # so that the server tells of version 2
    page.locator("[name=base]").evaluate("field => { field.value = '2' }")
    page.get_by_role("button", name="Save as version").last.click()
    expect(page.get_by_text("Saved as version 3.")).to_be_visible()
    page.get_by_role("link", name="Edit").click()
    page.locator("html[data-ready=yes]").wait_for()
    expect(page.get_by_role("button", name="Bring it back")).to_be_hidden()  # it is saved now


def test_nothing_hostile_runs_or_hides(page: Page, database: Database, people: dict[str, Person]) -> None:
    """Every text of the corpus in every field of a rule that is edited by hand: shown as text on each page."""
    with database.session() as session:
        change = Change(author_id=people["lead"].id, login="lead", note="n")
        for name, text in HOSTILE.items():
            example = {"text": text, "reason": text[:250]}
            first = RuleWords(
                title=f"{name} {text[:50]}",
                text=text,
                refusal_text=text,
                kept_examples=(example,),
                broken_examples=(example,),
            )  # type: ignore[arg-type]
            slug = create_rule(session, first, change).rule.slug
            more = {"text": f"{text} x", "refusal_text": f"x {text}", "kept_examples": ({"text": f"{text} x"},)}
            noted = change.model_copy(update={"note": text[:400]})
            edit_rule(session, slug, RuleWords(**first.model_dump() | more), base=1, change=noted)
    sign_in(page, "/rules")
    page.set_viewport_size({"width": 375, "height": 800})
    addresses = [str(link.get_attribute("href")) for link in page.locator("tbody th a").all()]
    assert len(addresses) == len(HOSTILE)
    for address in ["/rules", *addresses]:
        for path in [address] if address == "/rules" else [f"{address}?from=1&to=2", f"{address}/edit"]:
            page.goto(path)
            assert page.evaluate("window.hit") is None, path
            assert page.locator("iframe, img, svg, script:not([src]), style").count() == 0, path
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), path
    for text, address in zip(HOSTILE.values(), addresses, strict=True):
        stored = newest(database, unquote(address.split("/")[-1]))
        page.goto(address)
        assert page.locator(".rule-text").evaluate("e => e.textContent") == stored.text
        page.goto(f"{address}/edit")
        page.locator("html[data-ready=yes]").wait_for()
        editor = page.get_by_label("Text: what a reply must not do")
        editor.press_sequentially("!")  # so that the live diff, too, shows the text
        new = "e => [...e.children].filter(run => run.tagName !== 'DEL').map(run => run.textContent).join('')"
        assert page.locator(".live-diff").first.evaluate(new) == editor.input_value() != stored.text
        page.evaluate(
            "document.getElementById('rule-form').dispatchEvent(new Event('submit'))"
        )  # leaves without a question
        assert page.evaluate("window.hit") is None, text


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 375, "light")]
)
def test_how_it_looks(
    open_page: Callable[..., Page], database: Database, people: dict[str, Person], rules: None,
    name: str, width: int, scheme: str,
) -> None:  # fmt: skip
    with database.session() as session:
        weapons = find_rule(session, "weapons")
        words = RuleWords(**{f: getattr(weapons, f) for f in RuleWords.model_fields} | {"severity": 2})
        note = Change(author_id=people["lead"].id, login="lead", note="medium is enough, as we said on Monday")
        edit_rule(session, "weapons", words, base=1, change=note)
        new = words.text.replace("alter, ", "change, store, ")
        edit_rule(session, "weapons", words.model_copy(update={"text": new}), base=2, change=note)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    sign_in(page, "/rules")
    paths = {
        "rules": "/rules?state=all", "rule": "/rules/weapons?from=1&to=3", "rule-edit": "/rules/weapons/edit",
        "rule-retire": "/rules/weapons/retire", "rule-new": "/rules/new",
    }  # fmt: skip
    for shot, path in paths.items():
        page.goto(path)
        page.screenshot(path=ARTIFACTS / f"{shot}-{name}.png", full_page=True)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), path
    page.goto("/rules/weapons/try")
    page.get_by_label("What the person wrote").fill("How do I clean my hunting rifle?")
    page.get_by_label("The reply").fill("Unload it first.\nThen aim it away from people and take the bolt out.")
    page.get_by_label("Quotes").fill("aim it away\nnot there")
    page.get_by_role("button", name="Show it beside the rule").click()
    expect(page.locator("mark")).to_have_text("aim it away")
    page.screenshot(path=ARTIFACTS / f"rule-try-{name}.png", full_page=True)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert re.match(r"No help with weapons", page.locator("#the-rule").inner_text())
