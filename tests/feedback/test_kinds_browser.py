"""The page of every kind of task in a real browser: by mouse, by keyboard alone, reloaded in the middle, when the lease has
run out, when the server was started again, and how it looks. Probes need an engine: tests/serving/test_probe_browser.py."""

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import Person
from core.db import Database, utcnow
from core.messages import user
from feedback.assignment.leases import claim_task, release_expired
from feedback.judgments import read_said, submit_judgment
from feedback.kinds.frame import Said
from feedback.kinds.rule_check import RuleCheckForm
from feedback.models import Assignment, Draft, Judgment, Task
from feedback.prompts import add_prompt
from feedback.rules.store import active_rules, ensure_rules
from tests.browser import ARTIFACTS, LiveServer, check_accessible
from tests.factories import make_person, make_prompt, make_task
from tests.feedback.assignment.test_assignment import judge_as
from tests.feedback.test_browser import sign_in, stored, wait_for

pytestmark = pytest.mark.timeout(300)

TEXTS = ["Moss makes a soft nest.", "Use sticks, and hair on top.", "Ask the bird.", "Any hedge will do."]
TURNS = [*user("Where does a dunnock nest?"), {"role": "assistant", "content": "Low in a hedge."}, *user("Of what?")]


@dataclass(frozen=True)
class Case:
    """How a kind is made, done by mouse and by keyboard, and what is then stored; A is the task's first completion."""

    n: int
    mouse: Callable[[Page], None]
    keys: list[str]
    said_by_mouse: Callable[[Said], bool]
    said_by_keys: Callable[[Said], bool]


def rank_by_mouse(page: Page) -> None:
    # C is dragged to the front; then B is given the same place as A.
    page.locator("#reply-2 .rank-head").drag_to(
        page.locator("#reply-0 .reply-text"), target_position={"x": 20, "y": 10}
    )
    expect(page.locator("#order")).to_have_text("C > A > B")
    page.locator('select[name="rank-1"]').select_option("2")
    expect(page.locator("#order")).to_have_text("C > A = B")


def rate_by_mouse(page: Page) -> None:
    page.locator('.likert:has(input[name="rating"]) .step').nth(3).click()
    page.locator('.likert:has(input[name="aspect-clear"]) .step').nth(4).click()


def check_by_mouse(page: Page) -> None:
    page.locator("#reply-0 .reply-text").click(click_count=3)
    page.locator(".step-broken").click()
    page.get_by_text("certain", exact=True).click()
    page.get_by_label("Words that show it").fill("soft nest")


def correct_by_mouse(page: Page) -> None:
    page.locator('textarea[name="correction-0"]').fill("Moss and hair make a soft nest.")
    expect(page.locator(".word-diff ins").first).to_contain_text("and hair")


def choose_by_mouse(page: Page) -> None:
    page.locator('input[name="broken-1"]').first.check()
    page.locator(".scale .step").nth(2).click()


CASES = {
    "ranking": Case(
        3,
        rank_by_mouse,
        ["c", "ArrowUp", "ArrowUp", "b", "2"],
        lambda said: said.answer == {"ranks": [2, 2, 1]},
        lambda said: said.answer == {"ranks": [2, 2, 1]},
    ),
    "rating": Case(
        1,
        rate_by_mouse,
        ["2", "ArrowDown", "5", "1"],
        lambda said: (said.rating, said.answer) == (4, {"aspects": {"clear": 5}}),
        lambda said: (said.rating, said.answer) == (2, {"aspects": {"correct": 5, "harmless": 1}}),
    ),
    "rule_check": Case(
        1,
        check_by_mouse,
        ["k", "2"],
        lambda said: [(f.verdict, f.confidence, f.span) for f in said.findings] == [("broken", 0.95, "soft nest")],
        lambda said: [(f.verdict, f.confidence, f.span) for f in said.findings] == [("kept", 0.8, None)],
    ),
    "correction": Case(
        1,
        correct_by_mouse,
        ["e", "text: And hair.", "Escape"],
        lambda said: [text for _, text in said.edits] == ["Moss and hair make a soft nest."],
        lambda said: [text for _, text in said.edits] == ["Moss makes a soft nest. And hair."],
    ),
}
kinds = pytest.mark.parametrize("kind", CASES)

PAIR = Case(
    2,
    choose_by_mouse,
    ["6", "b", "Space", "Escape"],
    lambda said: (said.choice, said.strength, len(said.findings)) == ("a", 1, 1),
    lambda said: (said.choice, said.strength, len(said.findings)) == ("b", 2, 1),
)
EVERY = {**CASES, "pairwise": PAIR, "adjudication": PAIR}  # how these two look is seen elsewhere
every_kind = pytest.mark.parametrize("kind", EVERY)


def make(session: Session, kind: str, count: int = 2) -> list[int]:
    """Ids of tasks of a kind, with the starter rules; the first one is handed out first."""
    ensure_rules(session)
    rule = active_rules(session)[0].id if kind == "rule_check" else None
    prompt, texts = add_prompt(session, TURNS, "served"), TEXTS[: EVERY[kind].n]
    if kind == "adjudication":
        for _ in range(count):
            task = make_task(session, "pairwise", prompt, texts, required_n=2)
            for choice in ("a", "b"):
                judge_as(session, task.id, make_person(session).id, choice)
        tasks = session.scalars(select(Task).where(Task.pool == "adjudication").order_by(Task.id)).all()
        for n, task in enumerate(tasks):
            task.rank = -n
        return [task.id for task in tasks]
    return [make_task(session, kind, prompt, texts, rank=-n, rule_version_id=rule).id for n in range(count)]


def as_stored(session: Session, task_id: int) -> None:
    """Show the items in the order of their positions, so that A is the first."""
    for assignment in session.scalars(select(Assignment).where(Assignment.task_id == task_id)):
        assignment.shown_order = sorted(assignment.shown_order)


def opened(page: Page, database: Database, kind: str, count: int = 2) -> list[int]:
    """Sign in and open the first of some tasks, A first."""
    with database.session() as session:
        ids = make(session, kind, count)
    sign_in(page, "reviewer" if kind == "adjudication" else "annotator")
    with database.session() as session:
        as_stored(session, ids[0])
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    return ids


def press(page: Page, keys: list[str]) -> None:
    for key in keys:
        if key.startswith("text:"):
            page.keyboard.type(key.removeprefix("text:"))
        else:
            page.keyboard.press(key)


def said_of(database: Database, of_tasks: list[int] | None = None) -> Said:
    """What the one judgment says that there is, or that there is of these tasks."""
    wait_for(database, Judgment, 1, of_tasks)
    with database.read() as session:
        query = select(Judgment) if of_tasks is None else select(Judgment).where(Judgment.task_id.in_(of_tasks))
        return read_said(session, [session.scalars(query).one()])[0]


@every_kind
def test_by_mouse_and_the_next_is_there_at_once(
    page: Page, database: Database, people: dict[str, Person], kind: str
) -> None:
    ids = opened(page, database, kind)
    token = str(page.locator("#judgment").get_attribute("data-token"))
    wait_for(database, Assignment, 2, ids)  # the next one is fetched ahead
    EVERY[kind].mouse(page)
    page.get_by_role("button", name="Submit and next").click()
    expect(page.locator("#judgment")).not_to_have_attribute("data-token", token)
    expect(page.locator("#saved")).to_have_text("stored")
    expect(page.locator("#progress")).to_contain_text("1 judged by you today")
    assert EVERY[kind].said_by_mouse(said_of(database, ids))
    navigations = page.evaluate("performance.getEntriesByType('navigation').length")
    assert navigations == 1  # and that without loading a page


@every_kind
def test_by_keyboard_alone(page: Page, database: Database, people: dict[str, Person], kind: str) -> None:
    ids = opened(page, database, kind)
    press(page, ["?", "Escape", *EVERY[kind].keys, "n", "text:because 1, 2, x", "Escape", "Enter"])
    expect(page.locator("#progress")).to_contain_text("1 judged by you today")
    said = said_of(database, ids)
    assert EVERY[kind].said_by_keys(said)
    assert said.note == "because 1, 2, x"


@every_kind
def test_a_reload_and_a_new_start_of_the_server_keep_what_was_typed(
    page: Page, database: Database, people: dict[str, Person], live_server: LiveServer, kind: str
) -> None:
    ids = opened(page, database, kind, count=1)
    press(page, EVERY[kind].keys)
    expect(page.locator("#saved")).to_contain_text("draft saved")
    live_server.stop()
    live_server.start()
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    press(page, ["Enter"])
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert EVERY[kind].said_by_keys(said_of(database, ids))
    assert stored(database, Draft) == []


@every_kind
def test_a_lease_that_ran_out_loses_nothing(
    page: Page, database: Database, people: dict[str, Person], kind: str
) -> None:
    ids = opened(page, database, kind, count=1)
    EVERY[kind].mouse(page)
    with database.session() as session:
        session.scalars(select(Assignment).where(Assignment.task_id == ids[0])).one().expires_at = (
            utcnow() - dt.timedelta(seconds=1)
        )
        session.flush()
        release_expired(session, utcnow())
        assert claim_task(session, ids[0], make_person(session).id, 60) is not None
    page.get_by_role("button", name="Submit and next").click()
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    expect(page.get_by_text("Kept as an extra judgment")).to_be_visible()
    assert EVERY[kind].said_by_mouse(said_of(database, ids))
    assert [judgment.surplus for judgment in wait_for(database, Judgment, 1, ids)] == [True]


def test_a_task_that_was_judged_in_another_tab_leads_on(
    page: Page, database: Database, people: dict[str, Person]
) -> None:
    opened(page, database, "rating", count=1)
    other = page.context.new_page()
    other.goto("/annotate")
    other.locator("html[data-ready=yes]").wait_for()
    press(page, ["4", "Enter"])
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    press(other, ["2", "Enter"])
    expect(other.get_by_role("alert")).to_contain_text("you have judged this task already")
    other.get_by_role("link", name="To your next task").click()
    expect(other.get_by_text("Nothing to judge right now")).to_be_visible()
    assert [judgment.rating for judgment in wait_for(database, Judgment, 1)] == [4]


def test_undo_says_that_it_is_an_extra_judgment_too(page: Page, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        task_id = make_task(session, "rating", None, TEXTS[:1]).id
    sign_in(page)
    with database.session() as session:
        session.scalars(select(Assignment)).one().expires_at = utcnow() - dt.timedelta(seconds=1)
        session.flush()
        release_expired(session, utcnow())
        assert claim_task(session, task_id, make_person(session).id, 60) is not None
    press(page, ["1", "Enter"])
    page.get_by_role("link", name="Change my last judgment").click()
    page.locator("html[data-ready=yes]").wait_for()
    press(page, ["5", "Enter"])
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    expect(page.get_by_text("Kept as an extra judgment")).to_be_visible()
    assert [judgment.surplus for judgment in wait_for(database, Judgment, 2)] == [True, True]


def test_every_reply_of_a_ranking_is_corrected_by_keys(
    page: Page, database: Database, people: dict[str, Person]
) -> None:
    """The one that one is at; the best one where one is at none."""
    opened(page, database, "ranking")
    press(page, ["?"])
    expect(page.get_by_role("dialog")).to_contain_text("correct that reply")
    press(page, ["Escape", "c", "ArrowUp", "ArrowUp"])  # C > A > B
    for letter in "ab":
        press(page, [letter, "e", f"text: {letter}!", "Escape"])
    press(page, ["e", "text: best!", "Escape", "Enter"])
    expect(page.locator("#progress")).to_contain_text("1 judged by you today")
    edits = sorted(text for _, text in said_of(database).edits)
    assert edits == sorted([f"{TEXTS[0]} a!", f"{TEXTS[1]} b!", f"{TEXTS[2]} best!"])


def test_what_the_server_refuses_comes_back(page: Page, database: Database, people: dict[str, Person]) -> None:
    """The page has gone on already: the task comes back with what was typed, and says why."""
    opened(page, database, "correction")
    wait_for(database, Assignment, 2)
    press(page, ["Enter"])  # nothing was changed, which only the server sees
    expect(page.get_by_role("alert")).to_contain_text("nothing is changed")
    press(page, CASES["correction"].keys)
    press(page, ["Enter"])
    expect(page.locator("#progress")).to_contain_text("1 judged by you today")
    assert CASES["correction"].said_by_keys(said_of(database))


def test_a_lost_connection_loses_nothing(
    page: Page, database: Database, people: dict[str, Person], live_server: LiveServer
) -> None:
    opened(page, database, "rating")
    wait_for(database, Assignment, 2)
    live_server.stop()
    press(page, ["4", "Enter"])
    expect(page.get_by_role("alert")).to_contain_text("Your judgment is still here")
    assert page.locator('input[name="rating"]:checked').get_attribute("value") == "4"
    live_server.start()
    press(page, ["Enter"])
    expect(page.locator("#progress")).to_contain_text("1 judged by you today")
    assert said_of(database).rating == 4


def test_undo_of_what_was_just_submitted(page: Page, database: Database, people: dict[str, Person]) -> None:
    opened(page, database, "rating")
    wait_for(database, Assignment, 2)
    press(page, ["1", "Enter", "z"])
    changing = page.get_by_role("heading", name="Change your last judgment")
    expect(changing).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    press(page, ["2", "z"])  # and back, with nothing changed
    expect(page.get_by_role("heading", name="How good is this reply?")).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    press(page, ["z"])
    expect(changing).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    press(page, ["5", "Enter"])
    first, second = wait_for(database, Judgment, 2)
    assert (second.supersedes_id, first.rating, second.rating) == (first.id, 1, 5)


def test_a_reviewer_settles_what_others_disagree_on(page: Page, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        task = make_task(session, "pairwise", None, TEXTS[:2])
        assert task.pool == "uniform"
        task_id = task.id
        task.required_n = 2
        for choice in ("a", "b"):
            judge_as(session, task_id, make_person(session).id, choice)
    sign_in(page, "reviewer")
    expect(page.get_by_text("These judgments contradict each other")).to_be_visible()
    expect(page.locator(".others li")).to_have_count(2)
    check_accessible(page)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / "adjudication.png")
    press(page, ["1", "Enter"])
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    with database.read() as session:
        settled = session.scalars(select(Task).where(Task.about_id == task_id)).one()
        assert (settled.pool, settled.state) == ("adjudication", "done")


def test_what_others_quoted_of_text_that_may_upset_is_blurred_too(
    page: Page, database: Database, people: dict[str, Person]
) -> None:
    with database.session() as session:
        ensure_rules(session)
        rule, prompt = active_rules(session)[0].id, make_prompt(session, harmful=True)
        task = make_task(session, "rule_check", prompt, TEXTS[:1], required_n=2, rule_version_id=rule)
        for verdict in ("broken", "kept"):
            assignment = claim_task(session, task.id, make_person(session).id, 60)
            assert assignment is not None
            form = RuleCheckForm(verdict=verdict, span="soft nest", note="a note on it")
            submit_judgment(
                session, token=assignment.lease_token, annotator_id=assignment.annotator_id, form=form, latency_s=1,
                adjudicate=True,
            )  # fmt: skip
    sign_in(page, "reviewer")
    blurred, shown = re.compile("blur"), page.locator(".others q")
    expect(shown).to_have_count(4)
    for quote in shown.all():
        expect(quote).to_have_css("filter", blurred)
    page.get_by_label("Words that show it").fill("soft nest")  # one's own, out of a draft
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    expect(page.get_by_label("Words that show it")).to_have_css("filter", blurred)
    press(page, [" "])
    for quote in shown.all():
        expect(quote).to_have_css("filter", "none")
    expect(page.get_by_label("Words that show it")).to_have_css("filter", "none")


MARKDOWN = "Do this:\n\n1. **Find** a hedge.\n2. Look low.\n\n```python\nnest = moss + hair  # soft\n```\n\n[x](javascript:alert(1)) <b>no</b>"


def test_markdown_is_shown_as_such_and_safely(page: Page, database: Database, people: dict[str, Person]) -> None:
    with database.session() as session:
        turns = [*user(MARKDOWN), {"role": "assistant", "content": f"{MARKDOWN} By SmolLM."}, *user(MARKDOWN + "?")]
        make_task(
            session,
            "pairwise",
            add_prompt(session, turns, "served"),
            [MARKDOWN, MARKDOWN + "\n\nAs SmolLM2-135M I know."],
        )
    sign_in(page)
    for turn in page.locator(".turns .chat-turn").all():  # turns of the conversation as replies are
        expect(turn.locator(".formatted strong")).to_have_text("Find")
        expect(turn.locator(".turn-text:not(.formatted)")).to_be_hidden()
    shown = page.locator("#reply-0 .formatted")
    expect(shown.locator("strong")).to_have_text("Find")
    expect(shown.locator("pre code")).to_contain_text("nest = moss + hair")
    assert page.locator(".formatted a, .formatted b, .formatted img").count() == 0
    assert "SmolLM" not in page.content()
    page.keyboard.press("m")
    expect(shown).to_be_hidden()
    expect(page.locator(".turns .formatted").first).to_be_hidden()
    expect(page.locator(".turns .turn-text:not(.formatted)").first).to_contain_text("**Find**")
    expect(page.locator("#reply-0 .reply-text:not(.formatted)")).to_contain_text("**Find**")


MARKED = """() => [...(CSS.highlights.get("quote") ?? [])].map((range) => [
  range.startContainer.parentElement.closest(".reply-text").matches(".formatted"), range.toString()])"""


@pytest.mark.parametrize("kind", ["rule_check", "pairwise"])
def test_quotes_are_marked_in_the_text_as_written_and_as_formatted(
    page: Page, database: Database, people: dict[str, Person], kind: str
) -> None:
    with database.session() as session:
        ensure_rules(session)
        rule = active_rules(session)[0].id if kind == "rule_check" else None
        prompt = add_prompt(session, TURNS, "served")
        make_task(session, kind, prompt, [MARKDOWN, MARKDOWN + "?"][: EVERY[kind].n], rule_version_id=rule)
    sign_in(page)
    assert page.evaluate(MARKED) == []
    page.locator("#reply-0 .formatted li").first.click(click_count=3)
    press(page, ["b"] if kind == "rule_check" else ["a", "Space"])
    assert page.evaluate(MARKED) == [[False, "Find** a hedge"], [True, "Find a hedge."]]
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    assert [words for _, words in page.evaluate(MARKED)][1] == "Find a hedge."
    if kind == "rule_check":
        page.get_by_label("Words that show it").fill("not there")
        assert page.evaluate(MARKED) == []


@pytest.mark.parametrize(
    ("name", "width", "height", "scheme"),
    [("light", 1280, 800, "light"), ("dark", 1280, 800, "dark"), ("phone", 375, 740, "light")],
)
@kinds
def test_how_it_looks(
    open_page: Callable[..., Page], database: Database, people: dict[str, Person], kind: str, name: str, width: int,
    height: int, scheme: str,
) -> None:  # fmt: skip
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page = open_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened(page, database, kind, count=1)
    if width > 400:
        CASES[kind].mouse(page)
    page.mouse.move(0, 0)
    page.screenshot(path=ARTIFACTS / f"{kind}-{name}.png")
    check_accessible(page)
    sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert sideways <= 0, "the page scrolls sideways"
