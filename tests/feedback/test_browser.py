"""The pairwise page in a real browser: by mouse, by keyboard alone, with a reload in the middle, and how it looks."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from access.models import Person
from core.db import Database
from core.messages import user
from feedback.models import Assignment, Correction, Draft, Judgment, RuleJudgment, Task
from feedback.prompts import add_prompt
from feedback.rules.store import ensure_rules
from tests.browser import ARTIFACTS
from tests.factories import PASSWORD, make_pairwise_task, make_prompt
from tests.feedback.test_views import XSS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def tasks(database: Database, people: dict[str, Person]) -> list[int]:
    """Ids of two tasks, and the starter rules."""
    with database.session() as session:
        ensure_rules(session)
        return [make_pairwise_task(session, a="Moss makes a soft nest.", b="Use sticks.", rank=-n).id for n in range(2)]


def sign_in(page: Page, login: str = "annotator") -> None:
    page.goto("/annotate")
    page.get_by_label("Login").fill(login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.locator("html[data-ready=yes]").wait_for()


def stored(database: Database, kind: Any) -> list[Any]:
    with database.read() as session:
        return list(session.scalars(select(kind).order_by(*kind.__table__.primary_key)))


def wait_for(database: Database, kind: Any, count: int, of_tasks: list[int] | None = None) -> list[Any]:
    """Rows of a table, or of these tasks in it, once there are so many."""
    deadline = time.monotonic() + 30
    while len(rows := [row for row in stored(database, kind) if of_tasks is None or row.task_id in of_tasks]) != count:
        assert time.monotonic() < deadline, f"{len(rows)} {kind.__name__} rows, expected {count}"
        time.sleep(0.05)
    return rows


def shown_order(page: Page, database: Database, task_id: int) -> bool:
    """Whether the page shows the task's completion a on the left."""
    with database.read() as session:
        return page.locator("#reply-0 .reply-text").inner_text() == session.get_one(Task, task_id).completions[0].text


def test_by_mouse(page: Page, database: Database, tasks: list[int]) -> None:
    sign_in(page)
    left_is_a = shown_order(page, database, tasks[0])
    page.locator('input[name="broken-1"]').first.check()
    expect(page.locator("#reply-1 .broken-count")).to_have_text("✗ breaks 1 rule")
    page.get_by_text("Correct A").click()
    editor = page.locator('textarea[name="correction-0"]')
    editor.fill(editor.input_value() + " It really does.")
    expect(page.locator("#correct-0 ins")).to_have_text(" It really does.")
    page.get_by_text("A slightly").click()
    page.get_by_role("button", name="Submit and next").click()
    expect(page.get_by_text("1 judged by you today")).to_be_visible()
    judgment = wait_for(database, Judgment, 1)[0]
    assignment = stored(database, Assignment)[0]
    with database.read() as session:
        ids = [completion.id for completion in session.get_one(Task, tasks[0]).completions]
    left, right = ids if left_is_a else reversed(ids)
    assert assignment.shown_order == ([0, 1] if left_is_a else [1, 0])
    assert (judgment.choice, judgment.strength) == ("a" if left_is_a else "b", 1)
    assert [(v.completion_id, v.verdict) for v in stored(database, RuleJudgment)] == [(right, "broken")]
    correction = stored(database, Correction)[0]
    assert correction.completion_id == left
    assert correction.text.endswith("It really does.")


def test_by_keyboard_alone(page: Page, database: Database, tasks: list[int]) -> None:
    page.goto("/annotate")
    expect(page.get_by_label("Login")).to_be_focused()  # from the start, so that nothing typed is lost
    page.keyboard.type("annotator")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.locator("html[data-ready=yes]").wait_for()
    left_is_a = shown_order(page, database, tasks[0])
    for key in ["?", "Escape", "1", "0", "x", "6"]:
        page.keyboard.press(key)
    for key in ["b", "ArrowDown", "Space", "Escape"]:  # B breaks the second rule
        page.keyboard.press(key)
    page.keyboard.press("e")  # B is better, so B is corrected
    page.keyboard.type(" 1 axe, 7 sticks?")  # no key fires while typing
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("1 judged by you today")).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    page.keyboard.press("x")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    first, second = wait_for(database, Judgment, 2)
    assert (first.choice, first.strength) == ("b" if left_is_a else "a", 2)
    assert second.choice == "both_bad"
    assert "1 axe, 7 sticks?" in stored(database, Correction)[0].text
    verdict = stored(database, RuleJudgment)[0]
    with database.read() as session:
        ids = [completion.id for completion in session.get_one(Task, tasks[0]).completions]
    assert verdict.completion_id == ids[1 if left_is_a else 0]


def test_every_step_key_chooses_its_step(page: Page, tasks: list[int]) -> None:
    sign_in(page)
    for key, value in [*((str(n), str(n)) for n in range(1, 8)), ("0", "4"), ("x", "both_bad")]:
        page.keyboard.press(key)
        assert page.locator('input[name="scale"]:checked').get_attribute("value") == value
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("3")  # keys rest while the list is open
    page.keyboard.press("Escape")
    assert page.locator('input[name="scale"]:checked').get_attribute("value") == "both_bad"


def test_a_reload_in_the_middle_keeps_the_draft(page: Page, database: Database, tasks: list[int]) -> None:
    sign_in(page)
    before = page.locator("#reply-0 .reply-text").inner_text()
    page.evaluate("document.addEventListener('input', () => { window.typedAt = performance.now(); })")
    page.keyboard.press("3")
    page.keyboard.press("a")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("E")
    page.keyboard.type(" And feathers.")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    assert 0 < page.evaluate("performance.getEntriesByType('resource').at(-1).startTime - window.typedAt") < 2000  # ms
    assert "And feathers." in str(stored(database, Draft)[0].form)
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    assert page.locator("#reply-0 .reply-text").inner_text() == before
    assert page.locator('input[name="scale"]:checked').get_attribute("value") == "3"
    expect(page.locator('input[name="broken-0"]').first).to_be_checked()
    assert "And feathers." in page.locator('textarea[name="correction-1"]').input_value()
    expect(page.locator("#correct-1 ins")).to_contain_text("feathers")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 judged by you today")).to_be_visible()
    assert "And feathers." in wait_for(database, Correction, 1)[0].text
    assert stored(database, Draft) == []


def test_selected_words_become_the_quote(page: Page, database: Database, tasks: list[int]) -> None:
    sign_in(page)
    page.locator("#reply-0 .reply-text").click(click_count=3)
    words = page.evaluate("getSelection().toString().trim()")
    page.keyboard.press("a")
    page.keyboard.press("Space")
    expect(page.locator(".quotes").first).to_have_text(f"A: “{words}”")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 judged by you today")).to_be_visible()
    assert wait_for(database, RuleJudgment, 1)[0].span == words


def test_skip_flag_and_undo_by_key(page: Page, database: Database, tasks: list[int]) -> None:
    with database.session() as session:
        make_pairwise_task(session)
    sign_in(page)
    first_url = str(page.locator("#judgment").get_attribute("action"))
    for key in ["s", "ArrowDown", "Enter"]:
        page.keyboard.press(key)
    expect(page.locator("#judgment")).not_to_have_attribute("action", first_url)
    assert wait_for(database, Assignment, 2)[0].skip_reason == "It upsets me"
    page.locator("html[data-ready=yes]").wait_for()
    page.keyboard.press("f")
    page.keyboard.type("cut off")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The leads see it")).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    page.get_by_text("Change my last judgment").click()
    page.locator("html[data-ready=yes]").wait_for()
    page.keyboard.press("7")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    first, second = wait_for(database, Judgment, 2)
    assert second.supersedes_id == first.id
    assert {first.choice, second.choice} == {"a", "b"}
    page.screenshot(path=ARTIFACTS / "empty.png")


def test_risky_text_is_blurred_until_space(page: Page, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        make_pairwise_task(session, make_prompt(session, harmful=True))
    sign_in(page)
    text = page.locator("#reply-0 .reply-text")
    expect(text).to_have_css("filter", re.compile("blur"))
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / "risky.png")
    page.keyboard.press("Space")
    expect(text).to_have_css("filter", "none")


def test_blurred_text_can_be_shown_without_javascript(
    open_page: Callable[..., Page], database: Database, people: dict[str, Person]
) -> None:
    with database.session() as session:
        make_pairwise_task(session, make_prompt(session, harmful=True))
    page = open_page(java_script_enabled=False)
    page.goto("/annotate")
    page.get_by_label("Login").fill("annotator")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    text = page.locator("#reply-0 .reply-text")
    expect(text).to_have_css("filter", re.compile("blur"))
    page.locator(".reveal-label").click()
    expect(text).to_have_css("filter", "none")
    page.get_by_text("B much").click()
    page.get_by_role("button", name="Submit and next").click()
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert wait_for(database, Judgment, 1)[0].strength == 3


def test_nothing_that_is_shown_runs(page: Page, database: Database, people: dict[str, Person]) -> None:
    text = "\n".join(XSS)
    with database.session() as session:
        make_pairwise_task(session, add_prompt(session, user(text), "served"), a=text, b=text + "!", why=text)
    sign_in(page)
    page.keyboard.press("e")
    page.keyboard.type(XSS[1] + XSS[2])
    expect(page.locator("#correct-0 ins").first).to_be_visible()  # the diff, too, is text
    assert page.evaluate("window.hit") is None
    assert page.locator("#judgment iframe, #judgment img, #judgment script, #judgment style").count() == 0


CHARS = "Dunnocks nest low in hedges and shrubs. The cup is built of twigs and moss, lined with hair and feathers. "


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [
        ("light", 1280, 800, "light"),
        ("dark", 1280, 800, "dark"),
        ("phone", 375, 740, "light"),
        ("tablet", 820, 1100, "dark"),
    ],
)
def test_how_it_looks(
    open_page: Callable[..., Page],
    database: Database,
    people: dict[str, Person],
    name: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    with database.session() as session:
        ensure_rules(session)
        prompt = make_prompt(session, "Where does a dunnock build its nest, and what does it use?")
        make_pairwise_task(session, prompt, a=CHARS * 3, b=CHARS * 2 + "\n\n1. Find a hedge.\n2. Look low.")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page = open_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto("/annotate")
    page.screenshot(path=ARTIFACTS / f"sign-in-{name}.png")
    sign_in(page)
    page.screenshot(path=ARTIFACTS / f"pairwise-{name}.png")
    page.keyboard.press("2")
    page.keyboard.press("e")
    page.keyboard.type(" Cats are its worst enemy.")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.screenshot(path=ARTIFACTS / f"pairwise-typed-{name}.png")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.screenshot(path=ARTIFACTS / f"keys-{name}.png")
    sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert sideways <= 0, "the page scrolls sideways"
