"""A probe in a real browser, against a live engine: talk, judge each reply, reload in the middle, submit."""

import datetime as dt

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from core.db import Database, utcnow
from core.settings import Settings
from feedback.assignment.leases import claim_task, release_expired
from feedback.models import Assignment, Completion, Draft, Judgment, RuleJudgment
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_task
from tests.browser import ARTIFACTS, LiveServer, check_accessible
from tests.factories import make_person
from tests.feedback.test_browser import sign_in, stored, wait_for
from tests.serving.conftest import Served

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Short replies: the tiny model takes no long talk."""
    return settings.model_copy(update={"max_completion_tokens": 8})


@pytest.fixture
def probe(served: Served, database: Database) -> int:
    """The id of a probe of the first rule."""
    with database.session() as session:
        ensure_rules(session)
        make_person(session, "annotator")
        rule = active_rules(session)[0]
        return create_task(session, "probe", None, [], source="probe:1", rule_version_id=rule.id).id


def say(page: Page, words: str, turns: int) -> None:
    page.keyboard.press("t")
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    expect(page.locator("#probe-state")).to_have_text("")
    expect(page.locator(".probe-turn")).to_have_count(turns)
    page.keyboard.press("Escape")


def test_talk_judge_reload_and_submit_by_keyboard(page: Page, database: Database, probe: int) -> None:
    sign_in(page)
    page.keyboard.press("Space")  # a probe may show anything, so it begins blurred
    page.keyboard.press("Enter")  # nothing was said yet
    expect(page.get_by_role("alert").or_(page.locator(".notice-bad")).first).to_contain_text("talk to the policy first")
    page.locator("html[data-ready=yes]").wait_for()
    page.keyboard.press("Space")
    say(page, "b k u: how?", 1)  # no key fires while typing
    page.keyboard.press("k")
    say(page, "Really?", 2)
    page.keyboard.press("b")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    expect(page.locator(".probe-turn")).to_have_count(2)
    expect(page.locator('.probe-turn input[value="kept"]:checked')).to_have_count(1)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.keyboard.press("Space")
    page.screenshot(path=ARTIFACTS / "probe.png")
    check_accessible(page)
    say(page, "Now?", 3)
    page.keyboard.press("u")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert [judgment.kind for judgment in wait_for(database, Judgment, 1)] == ["probe"]
    assert [verdict.verdict for verdict in stored(database, RuleJudgment)] == ["kept", "broken", "unsure"]
    with database.read() as session:
        last = session.scalars(
            select(Completion).where(Completion.source == "served").order_by(Completion.created_at)
        ).all()[-1]
        assert [message["role"] for message in last.prompt.messages] == ["user", "assistant"] * 2 + ["user"]
        judged = {row.completion_id for row in stored(database, RuleJudgment)}
        assert last.id in judged


def test_a_reply_is_found_whatever_the_token_of_the_task_spells(
    page: Page, database: Database, probe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address ends with a placeholder that a drawn token may hold too."""
    monkeypatch.setattr("feedback.assignment.leases.secrets.token_urlsafe", lambda _: "L8IDtVXID0oxWrUIRwezpOOID")
    sign_in(page)
    page.keyboard.press("Space")
    say(page, "How?", 1)


def test_what_is_typed_while_the_model_writes_stays(page: Page, database: Database, probe: int) -> None:
    sign_in(page)
    page.keyboard.press("Space")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/chat/completions", hold)
    page.keyboard.press("t")
    page.keyboard.type("How?")
    page.keyboard.press("Enter")
    expect(page.locator("#probe-state")).to_contain_text("The model is writing")
    page.keyboard.type("And then?")
    held[0].continue_()
    expect(page.locator(".probe-turn")).to_have_count(1)
    expect(page.locator("#talk")).to_have_value("And then?")
    assert page.locator(".asked").inner_text() == "How?"


def test_by_mouse(page: Page, database: Database, probe: int) -> None:
    sign_in(page)
    page.locator(".reveal-label").click()
    page.locator("#talk").click()
    page.locator("#talk").fill("How?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".probe-turn")).to_have_count(1)
    page.locator(".probe-turn .step-broken").click()
    page.get_by_role("button", name="Submit and next").click()
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert [verdict.verdict for verdict in stored(database, RuleJudgment)] == ["broken"]


def test_a_new_start_of_the_server_keeps_verdicts_and_the_message_not_sent(
    page: Page, database: Database, probe: int, live_server: LiveServer
) -> None:
    sign_in(page)
    page.keyboard.press("Space")
    say(page, "How?", 1)
    page.keyboard.press("k")
    page.keyboard.press("t")
    page.keyboard.type("And if nobody")
    expect(page.locator("#saved")).to_contain_text("draft saved")
    live_server.stop()
    live_server.start()
    page.reload()
    page.locator("html[data-ready=yes]").wait_for()
    assert page.locator("#talk").input_value() == "And if nobody"
    page.keyboard.press("Space")
    say(page, "", 2)  # it can be sent as it is
    assert page.locator("#talk").input_value() == ""
    page.keyboard.press("u")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert [verdict.verdict for verdict in stored(database, RuleJudgment)] == ["kept", "unsure"]
    assert stored(database, Draft) == []


def test_a_lease_that_ran_out_loses_nothing(page: Page, database: Database, probe: int) -> None:
    sign_in(page)
    page.keyboard.press("Space")
    say(page, "How?", 1)
    page.keyboard.press("b")
    with database.session() as session:
        session.scalars(select(Assignment)).one().expires_at = utcnow() - dt.timedelta(seconds=1)
        session.flush()
        release_expired(session, utcnow())
        assert claim_task(session, probe, make_person(session).id, 60) is not None
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to judge right now")).to_be_visible()
    assert [judgment.surplus for judgment in wait_for(database, Judgment, 1)] == [True]
    assert [verdict.verdict for verdict in stored(database, RuleJudgment)] == ["broken"]


def test_replies_of_others_are_no_part_of_it(page: Page, database: Database, probe: int, served: Served) -> None:
    """A completion from before the task was handed out, or that is none, cannot be judged in it."""
    sign_in(page)
    token = page.locator("#judgment").get_attribute("data-token")
    assert page.request.get(f"/annotate/{token}/turns/chatcmpl-none").status == 404
    assert page.request.get("/annotate/somebody-elses/turns/chatcmpl-none").status == 404
