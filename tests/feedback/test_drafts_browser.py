"""What is typed is saved soon, whatever happens then: the browser is killed, the server is down, a submit fails."""

import os
import secrets
import signal
import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from access.models import Person
from access.sessions import end_sessions
from core.db import Database
from feedback.models import Assignment, Draft, Judgment
from tests.browser import FLAGS, LiveServer, chromium
from tests.feedback.test_browser import sign_in, stored, wait_for
from tests.feedback.test_kinds_browser import make, press, said_of

pytestmark = pytest.mark.timeout(120)

WORDS = "Moss is soft, and hair keeps the eggs warm when it blows."


def main_process(flag: str) -> int:
    """The process id of the browser that was started with this flag; those that it starts itself name their type."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if flag in arguments and "--type=" not in arguments:
            return int(folder.name)
    raise AssertionError(f"no process has {flag}")


@pytest.fixture
def task(database: Database, people: dict[str, Person]) -> list[int]:
    with database.session() as session:
        return make(session, "rating", 1)


def test_steady_typing_is_saved_before_the_browser_dies(
    browser: Browser, live_url: str, database: Database, task: list[int], page: Page
) -> None:
    flag = f"--dunnock-test={secrets.token_hex(8)}"
    path = chromium(browser.browser_type.executable_path)
    doomed = browser.browser_type.launch(executable_path=path, headless=True, args=[*FLAGS, flag])
    typing = doomed.new_page(base_url=live_url)
    sign_in(typing)
    press(typing, ["n"])
    began = time.monotonic()
    typing.keyboard.type(WORDS, delay=60)  # no pause is as long as a second
    assert time.monotonic() - began > 3
    os.kill(main_process(flag), signal.SIGKILL)
    note = stored(database, Draft)[0].form["note"][0]
    assert len(WORDS[: len(note)]) > len(WORDS) / 3
    assert WORDS.startswith(note)
    sign_in(page)
    assert page.locator("textarea[name=note]").input_value() == note


def test_what_could_not_be_saved_is_saved_once_the_server_is_back(
    page: Page, database: Database, task: list[int], live_server: LiveServer
) -> None:
    sign_in(page)
    live_server.stop()
    press(page, ["4", "n", f"text:{WORDS}"])
    expect(page.locator("#saved")).to_contain_text("draft not saved")
    assert stored(database, Draft) == []
    live_server.start()
    expect(page.locator("#saved")).to_contain_text("draft saved")  # and nothing was typed meanwhile
    assert stored(database, Draft)[0].form["note"] == [WORDS]


def test_the_connection_comes_back(page: Page, database: Database, task: list[int]) -> None:
    """It is tried at once, however long the wait has become."""
    sign_in(page)
    page.context.set_offline(True)
    press(page, ["3"])
    expect(page.locator("#saved")).to_contain_text("draft not saved")
    page.wait_for_timeout(3500)  # the next try is seconds away
    page.context.set_offline(False)
    expect(page.locator("#saved")).to_contain_text("draft saved", timeout=2000)
    assert stored(database, Draft)[0].form["rating"] == ["3"]


def test_a_long_draft_is_saved_too(page: Page, database: Database, task: list[int]) -> None:
    """Browsers let no request outlive its page that is longer than 64 KB."""
    sign_in(page)
    text = "moss " * 19_000
    page.keyboard.press("e")
    page.locator("textarea[name=correction-0]").fill(text)
    expect(page.locator("#saved")).to_contain_text("draft saved")
    assert stored(database, Draft)[0].form["correction-0"] == [text]


def test_a_submit_that_failed_and_a_reload_lose_nothing(page: Page, database: Database, task: list[int]) -> None:
    sign_in(page)
    action = page.locator("#judgment").get_attribute("action")
    page.route(f"**{action}", lambda route: route.abort())
    press(page, ["n", f"text:{WORDS}", "Escape", "4", "Enter"])
    expect(page.get_by_role("alert")).to_contain_text("Your judgment is still here")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.unroute_all()
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    assert page.locator("textarea[name=note]").input_value() == WORDS
    assert page.locator('input[name="rating"]:checked').get_attribute("value") == "4"
    press(page, ["Enter"])
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert said_of(database).note == WORDS


def test_who_is_signed_out_signs_in_in_another_tab_and_goes_on(
    page: Page, database: Database, people: dict[str, Person], task: list[int]
) -> None:
    """As the page says. The new session has another CSRF token than the page; nothing that was typed is lost."""
    sign_in(page)
    with database.session() as session:
        end_sessions(session, people["annotator"].id)
    page.keyboard.press("4")
    page.keyboard.press("n")
    page.keyboard.type("typed while signed out")
    expect(page.locator("#saved")).to_contain_text("sign in again in another tab")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("sign in again in another tab")
    other = page.context.new_page()
    sign_in(other)
    other.close()
    page.locator("details.note textarea").press("End")
    page.keyboard.type(", and after")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    (judgment,) = wait_for(database, Judgment, 1)
    assert (judgment.rating, judgment.note) == (4, "typed while signed out, and after")


@pytest.mark.parametrize(
    ("keys", "reason"), [(["s", "Enter"], "I cannot tell"), (["f", "text:It is cut off.", "Enter"], "It is cut off.")]
)
def test_a_new_session_gives_a_task_back_without_a_reload(
    page: Page, database: Database, people: dict[str, Person], task: list[int], keys: list[str], reason: str
) -> None:
    """Nothing was typed before, so that no draft took up the new CSRF token."""
    sign_in(page)
    with database.session() as session:
        end_sessions(session, people["annotator"].id)
    other = page.context.new_page()
    sign_in(other)
    other.close()
    press(page, keys)
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    (assignment,) = stored(database, Assignment)
    assert assignment.state == "skipped"
    assert reason in str(assignment.skip_reason)


def test_another_language_is_chosen_in_a_new_session_too(
    page: Page, database: Database, people: dict[str, Person], task: list[int]
) -> None:
    """Its button says which one."""
    sign_in(page)
    with database.session() as session:
        end_sessions(session, people["annotator"].id)
    other = page.context.new_page()
    sign_in(other)
    other.close()
    page.get_by_role("button", name="Deutsch").click()
    expect(page.locator("html")).to_have_attribute("lang", "de")
