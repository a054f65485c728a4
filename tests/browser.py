"""A real browser for tests: Chromium through Playwright, on a live server in a thread.

The browser is found by `DUNNOCK_CHROMIUM`, then on the PATH, then where `playwright install chromium` puts it.
Where there is none the tests fail and say what to install; they are not skipped.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect, sync_playwright
from werkzeug.serving import make_server

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 30_000  # a busy machine is slow; only a test that fails waits so long
ARTIFACTS = Path(__file__).parent.parent / "var" / "test-artifacts"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for the whole run."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        path = chromium(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


def chromium(playwrights_own: str) -> str:
    """Path of the browser to use."""
    candidates = [os.environ.get("DUNNOCK_CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome")]
    for candidate in [*candidates, playwrights_own]:
        if candidate and Path(candidate).exists():
            return candidate
    pytest.fail(
        "no Chromium for the browser tests: `apt-get install chromium`, or `playwright install chromium`, "
        "or name one with DUNNOCK_CHROMIUM=/path/to/chromium",
        pytrace=False,
    )


@pytest.fixture
def live_url(app: Flask) -> Iterator[str]:
    """The app on a free loopback port, with CSRF checks on; its URL without a trailing slash."""
    app.config["WTF_CSRF_ENABLED"] = True
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_page(browser: Browser, live_url: str) -> Iterator[Callable[..., Page]]:
    """A function that opens a page in a context of its own; errors on the page fail the test."""
    contexts = []
    errors: list[str] = []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(base_url=live_url, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors, f"the page reported errors: {errors}"


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """A page at 1280 × 800, not signed in."""
    return open_page(viewport={"width": 1280, "height": 800})
