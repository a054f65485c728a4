"""The page of a task in Chromium: how soon after a submit the next one can be acted on, and what it weighs."""

import shutil
from statistics import median
from typing import Any

from playwright.sync_api import Page, Response, sync_playwright

SUBMITS = 40
THINKING_MS = 400  # an annotator who needs no longer is a fast one; the next task is fetched meanwhile
# The time from the submit to the moment that another task is on the page and its keys work.
WATCH = """() => {
  window.waits = [];
  let since = 0;
  document.addEventListener("submit", () => (since = performance.now()), true);
  let token = document.getElementById("judgment").dataset.token;
  new MutationObserver(() => {
    const form = document.getElementById("judgment");
    if (!form || form.dataset.token === token) return;
    token = form.dataset.token;
    queueMicrotask(() => window.waits.push(performance.now() - since));
  }).observe(document.body, { childList: true, subtree: true });
}"""


def measure_page(url: str, login: str, password: str) -> dict[str, Any]:
    """Figures of one annotator who works by keyboard.

    Returns:
        ready_ms: p50 and max of the time from submit to the next task, n; weight_kb: what the first page transfers,
        with all it loads, uncompressed; seconds a page needs from the first request until its keys work.
    """
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(base_url=url)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto("/sign-in?next=/annotate")
        page.get_by_label("Login").fill(login)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.locator("html[data-ready=yes]").wait_for()
        fresh = browser.new_context(base_url=url, storage_state=context.storage_state())  # with nothing in its cache
        weight = _weight(fresh.new_page())
        first_ms = page.evaluate("performance.now()")
        page.evaluate(WATCH)
        for done in range(SUBMITS):
            page.wait_for_timeout(THINKING_MS)
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            page.wait_for_function("n => window.waits.length > n", arg=done)
        waits = page.evaluate("window.waits")
        browser.close()
    return {
        "ready_ms": {"n": len(waits), "p50": round(median(waits), 1), "max": round(max(waits), 1)},
        "weight_kb": round(weight / 1000, 1), "first_page_ms": round(first_ms),
    }  # fmt: skip


def _weight(page: Page) -> float:
    """Bytes of the page of a task, with its styles and scripts."""
    seen: list[Response] = []
    page.on("response", lambda response: seen.append(response))  # noqa: PLW0108 (Playwright marks its handlers)
    page.goto("/annotate")
    page.locator("html[data-ready=yes]").wait_for()
    page.wait_for_load_state("networkidle")
    own = [each for each in seen if each.ok and "beside=" not in each.url]  # not the next page, fetched ahead
    return sum(len(response.body()) for response in own)
