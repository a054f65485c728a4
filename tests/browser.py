"""A real browser for tests: Chromium through Playwright, on a live server in a thread.

The browser is found by `DUNNOCK_CHROMIUM`, then on the PATH, then where `playwright install chromium` puts it.
Where there is none the tests fail and say what to install; they are not skipped.
"""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from serving.chat import close_chat
from serving.deferred import Gateway

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


class LiveServer:
    """The app in a thread, on a port that it keeps when it is started again."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            Gateway(self.app, 8, [partial(close_chat, self.app)]),
            log_level="error",
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def live_server(app: Flask) -> Iterator[LiveServer]:
    """The app on a free loopback port, with CSRF checks on."""
    app.config["WTF_CSRF_ENABLED"] = True
    server = LiveServer(app)
    yield server
    server.stop()


@pytest.fixture
def live_url(live_server: LiveServer) -> str:
    """The live app's URL without a trailing slash."""
    return live_server.url


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
        page.on("console", lambda message: errors.append(message.text) if _is_error(message) else None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors, f"the page reported errors: {errors}"


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """A page at 1280 × 800, not signed in."""
    return open_page(viewport={"width": 1280, "height": 800})


def _is_error(message: ConsoleMessage) -> bool:
    """Requests that fail are told to the person on the page, and are no error of the page."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def axe_findings(page: Page, only: Sequence[str] = ()) -> list[str]:
    """What axe finds to be serious or critical, a line each; by these rules of its, or by all."""
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(only)} if only else {})
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{v['id']}: {v['help']} at {v['nodes'][0]['target']}" for v in found if v["impact"] in ("serious", "critical")
    ]


def check_accessible(page: Page) -> None:
    """What axe finds to be serious or critical fails the test."""
    serious = axe_findings(page)
    assert not serious, "\n".join(serious)
