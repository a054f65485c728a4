"""The overview in a real browser: plots are drawn under the policy of the app, follow the theme, and weigh little."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from access.models import Person
from core.db import Database
from tests.browser import ARTIFACTS
from tests.console.quality_rows import make_crowd
from tests.factories import PASSWORD

pytestmark = pytest.mark.timeout(300)

WEIGHT = """() => [...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]
    .reduce((sum, entry) => sum + entry.decodedBodySize, 0)"""
COLOURS = """canvas => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const found = new Set();
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) found.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
    return [...found];
}"""
LIGHT_ACCENT, DARK_ACCENT = "10,90,156", "134,189,255"


def sign_in(page: Page, path: str) -> None:
    page.goto(path)
    page.get_by_label("Login").fill("lead")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light")])
def test_plots_are_drawn_from_the_tables(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database, width: int, scheme: str
) -> None:
    with database.session() as session:
        make_crowd(session, hostile="<b onclick=alert(1)>\u202e")
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    sign_in(page, "/quality")
    plots = page.locator("figure[data-plot]")
    expect(plots).to_have_count(3)
    for n in range(3):
        plot = plots.nth(n)
        expect(plot).to_have_attribute("data-drawn", "yes")
        wanted = LIGHT_ACCENT if scheme == "light" else DARK_ACCENT
        assert wanted in plot.locator("canvas").evaluate(COLOURS)
        assert plot.locator(".plot-legend li").count() >= 1
        plot.locator("summary").click()
        expect(plot.locator("table")).to_be_visible()
        plot.locator("summary").click()
    assert page.evaluate(WEIGHT) < 300_000
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"quality-{width}-{scheme}.png", full_page=True)

    for path in ("/quality/annotators", "/quality/gold", "/quality/flags", "/quality/consensus"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert page.locator("[onclick]").count() == 0


def test_a_plot_tells_what_is_under_the_pointer_and_follows_the_theme(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database
) -> None:
    with database.session() as session:
        make_crowd(session)
    page = open_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
    sign_in(page, "/quality")
    plot = page.locator("#violations-by-version figure")
    expect(plot).to_have_attribute("data-drawn", "yes")
    box = plot.locator(".u-over").bounding_box()
    assert box is not None
    plot.locator(".u-over").hover(position={"x": box["width"] * 0.25, "y": box["height"] / 2})
    expect(plot.locator(".plot-readout")).to_contain_text("base: Rule checks")
    expect(plot.locator(".plot-readout")).to_contain_text("n\u00a048")
    canvas = plot.locator("canvas")
    assert LIGHT_ACCENT in canvas.evaluate(COLOURS)
    page.locator("#theme-switch").click()  # light
    page.locator("#theme-switch").click()  # dark
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert DARK_ACCENT in plot.locator("canvas").evaluate(COLOURS)
    page.set_viewport_size({"width": 700, "height": 800})
    page.wait_for_function(
        "() => { const h = document.querySelector('#violations-by-version .plot-canvas');"
        " return h.querySelector('.uplot').clientWidth === h.clientWidth }"
    )


def test_without_a_script_the_tables_are_there(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database
) -> None:
    with database.session() as session:
        make_crowd(session)
    page = open_page(java_script_enabled=False)
    sign_in(page, "/quality")
    plot = page.locator("#throughput figure")
    expect(plot.get_by_text("Plots need a script")).to_be_visible()
    plot.locator("summary").click()
    expect(plot.locator("tbody tr")).to_have_count(28)


def test_pausing_by_keyboard(open_page: Callable[..., Page], people: dict[str, Person], database: Database) -> None:
    with database.session() as session:
        make_crowd(session)
    page = open_page(viewport={"width": 1280, "height": 800})
    sign_in(page, "/quality/annotators?sort=gold")
    link = page.get_by_role("link", name="Pause cleo")
    link.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Reason").fill("too fast")
    page.keyboard.press("Enter")
    row = page.locator("tbody tr").filter(has_text="cleo")
    expect(row.get_by_text("paused", exact=True)).to_be_visible()
    expect(row.get_by_text("too fast")).to_be_visible()
    expect(row.get_by_role("link", name="Pause cleo")).to_have_count(0)
    expect(row.get_by_role("link", name="Let go on cleo")).to_be_visible()


def test_axe_finds_nothing_serious(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with database.session() as session:
        crowd = make_crowd(session)
    page = open_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    sign_in(page, "/quality")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for path in ("/quality", "/quality/annotators", "/quality/gold", f"/quality/annotators/{crowd.ana.id}/pause"):
            page.goto(path)
            found = Axe().run(page).response["violations"]
            serious = [v for v in found if v["impact"] in ("serious", "critical")]
            assert not serious, (path, scheme, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in serious])
