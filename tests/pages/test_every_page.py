"""Every page in Chromium, full of hostile texts: nothing runs, everything is text, nothing is reordered; axe, both schemes,
a phone, twice the zoom, the focus, the weight; and without a script, and empty."""

import difflib

import pytest
from flask import Flask

from tests.browser import axe_findings
from tests.pages import look
from tests.pages.conftest import Site
from tests.pages.places import AFTER_FORMS, NOT_FOUND, OTHERS, PAGES, PLACES, Place
from tests.pages.texts import Texts

pytestmark = pytest.mark.timeout(300)

EVERY = [pytest.param(place, id=place.name()) for place in [*PLACES, *AFTER_FORMS, NOT_FOUND]]
NOT_SHOWN = {"import.source", "task.source"}
"""Fields that no page shows; one that begins to is taken off this list."""

MAY_DIFFER = ("color-contrast", "scrollable-region-focusable", "target-size", "button-name", "link-name", "label")
"""Rules of axe that the width or the scheme may change; the whole set runs once for each page."""

seen: dict[str, set[str]] = {}
"""Fields that were seen, by page."""


def test_every_get_route_is_listed(app: Flask) -> None:
    found = {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    assert found - set(PAGES) - set(OTHERS) == set(), (
        "add these pages to PAGES in tests/pages/places.py, and rows for them to rows.py"
    )
    assert (set(PAGES) | set(OTHERS)) - found == set()
    assert set(PAGES) & set(OTHERS) == set()


@pytest.mark.parametrize("place", EVERY)
def test_a_page_full_of_hostile_texts(hostile: Site, harmless: Site, place: Place) -> None:
    expected = look.structure(harmless.open(place))
    harmless.troubles.clear()
    page = hostile.open(place)
    seen[place.name()] = look.fields_seen(page)
    wrong = [f"unexpected element: {line}" for line in _differing(expected, look.structure(page))]
    wrong += [f"unexpected element in a quote: {line}" for line in look.unexpected_in_quotes(page)]
    wrong += [f"leads elsewhere: {address}" for address in look.leading_elsewhere(page)]
    wrong += [f"may be reordered: {text}" for text in look.reordering(page)]
    size = look.weight(page, hostile.sizes)
    wrong += [f"the page has {size} bytes; at most {look.MAX_BYTES} are allowed"] if size > look.MAX_BYTES else []
    wrong += [f"axe, light: {found}" for found in axe_findings(page)]
    wrong += [f"focus: {found}" for found in look.unseen_focus(page)]
    page.set_viewport_size({"width": 640, "height": 400})  # 1280 × 800 at 200 %
    wrong += [f"sideways at 200 %: {found}" for found in look.wider(page)]
    page.set_viewport_size({"width": 375, "height": 740})
    page.emulate_media(color_scheme="dark")
    wrong += [f"sideways at 375 px: {found}" for found in look.wider(page)]
    wrong += [f"axe, dark at 375 px: {found}" for found in axe_findings(page, MAY_DIFFER)]
    wrong += [f"a script of the texts ran: {hit}" for hit in [page.evaluate("window.hit ?? null")] if hit is not None]
    wrong += [f"against the policy: {found}" for found in page.evaluate("window.violations")]
    wrong += hostile.troubles
    hostile.troubles.clear()
    _fail_for(wrong)


def test_every_field_was_seen(texts: Texts) -> None:
    """After all pages of the run above: the corpus really stood on them."""
    if len(seen) < len(EVERY):
        pytest.skip("not all pages were opened in this run")
    assert texts.fields - set().union(*seen.values()) == NOT_SHOWN


@pytest.mark.parametrize("place", [pytest.param(p, id=p.name()) for p in PLACES if p.empty])
def test_an_empty_page(empty: Site, place: Place) -> None:
    page = empty.open(place)
    wrong = [f"axe: {found}" for found in axe_findings(page)]
    page.set_viewport_size({"width": 375, "height": 740})
    wrong += [f"sideways at 375 px: {found}" for found in look.wider(page)]
    if place.who:
        wrong += [] if len(page.locator("main").inner_text()) > 40 else ["says nothing of what comes here"]
    wrong += empty.troubles
    empty.troubles.clear()
    _fail_for(wrong)


@pytest.mark.parametrize("place", [pytest.param(p, id=p.name()) for p in PLACES])
def test_a_page_without_script(hostile: Site, place: Place) -> None:
    """No control that does nothing, and nothing sideways."""
    page = hostile.open(place, script=False)
    wrong = [f"does nothing: {found}" for found in look.dead_controls(page)]
    if place.needs_script and not page.locator("noscript").first.is_visible():
        wrong.append("needs a script and does not say so")
    page.set_viewport_size({"width": 375, "height": 740})
    wrong += [f"sideways at 375 px: {found}" for found in look.wider(page)]
    _fail_for(wrong)


@pytest.mark.parametrize("script", [True, False])
def test_the_menu_of_a_narrow_page(harmless: Site, script: bool) -> None:
    """Links are in sight on a wide page, and behind one button on a narrow one; the browser opens and closes it."""
    page = harmless.open(Place("/people"), script=script)
    people, menu = page.get_by_role("link", name="People", exact=True), page.get_by_role("button", name="Menu")
    assert people.is_visible()
    assert people.get_attribute("aria-current") == "page"
    assert not menu.is_visible()
    page.set_viewport_size({"width": 375, "height": 740})
    assert not people.is_visible()
    menu.press("Enter")
    assert people.is_visible()
    assert look.wider(page) == []
    assert not script or axe_findings(page) == []
    page.keyboard.press("Escape")
    assert not people.is_visible()


def _fail_for(wrong: list[str]) -> None:
    """Fail with all that is wrong, a line each."""
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def _differing(expected: list[str], found: list[str]) -> list[str]:
    """Lines of a diff, a few of them."""
    lines = difflib.unified_diff(expected, found, lineterm="", n=1)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))][:8]
