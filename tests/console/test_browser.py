"""The cycle page in a real browser: it follows a running cycle without being loaded again."""

from collections.abc import Callable, Iterable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import Person
from core.db import Database, utcnow
from core.settings import Settings
from finetune.cycle import finish_cycle
from finetune.models import StageRun, StageStep
from tests.console.rows import make_cycle, make_stages, stage_results
from tests.factories import PASSWORD

pytestmark = pytest.mark.timeout(120)


def tell_steps(session: Session, run_id: int, steps: Iterable[int]) -> None:
    for step in steps:
        figures = {"loss": 1 / step, "learning_rate": 5e-4, "member": 0}
        session.add(StageStep(stage_run_id=run_id, part="preference", step=step, figures=figures))


def test_a_running_cycle_is_followed_live(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database, settings: Settings
) -> None:
    with database.session() as session:
        cycle = make_cycle(session, settings, "running")
        cycle.settings = cycle.settings | {"stages": ["snapshot", "reward"]}
        make_stages(session, cycle, ("snapshot",))
        run = StageRun(cycle_id=cycle.id, name="reward", progress=0.1, note="step 4/39")
        session.add(run)
        session.flush()
        run_id = run.id
    page = open_page(viewport={"width": 375, "height": 800}, timezone_id="Asia/Tokyo")
    page.goto("/cycles/1")
    page.get_by_label("Login").fill(people["lead"].login)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#stage-reward progress")).to_have_attribute("value", "0.1")
    assert "Asia/Tokyo" in (page.locator("time").first.get_attribute("title") or "")
    page.evaluate("window.kept = 1")

    with database.session() as session:
        row = session.scalars(select(StageRun).where(StageRun.name == "reward")).one()
        row.progress, row.note = 0.5, "step 20/39"
        row.left_s, row.told_at = 125.0, utcnow()
        tell_steps(session, run_id, range(1, 21))
    expect(page.locator("#stage-reward .stage-note")).to_contain_text("step 20/39")
    expect(page.locator("#stage-reward .stage-note")).to_contain_text("about 2\u202fmin")
    expect(page.locator("#stage-reward svg")).to_be_visible()  # drawn while it runs
    page.get_by_text("The figures of 20 steps").click()
    expect(page.locator("#steps-reward-preference tbody tr").first).to_contain_text("20")
    with database.session() as session:
        tell_steps(session, run_id, range(21, 31))
    expect(page.get_by_text("The figures of 30 steps")).to_be_visible()
    expect(page.locator("#steps-reward-preference")).to_have_attribute("open", "")
    expect(page.locator("#steps-reward-preference tbody tr").first).to_contain_text("30")
    assert page.evaluate("document.activeElement.textContent") == "The figures of 30 steps"  # the keyboard stays there

    with database.session() as session:
        row = session.scalars(select(StageRun).where(StageRun.name == "reward")).one()
        row.state, row.progress, row.result = "done", 1.0, stage_results("v1")["reward"]
    expect(page.locator("#stage-reward svg")).to_be_visible()

    with database.session() as session:
        finish_cycle(session, 1, "failed", "the lights went out")
    expect(page.get_by_text("the lights went out")).to_be_visible()
    expect(page.locator("#steps-reward-preference")).to_have_attribute("open", "")  # what was open stays open
    expect(page.get_by_role("button", name="Cancel this cycle")).to_have_count(0)
    assert page.evaluate("window.kept") == 1  # never loaded again
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
