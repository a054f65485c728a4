"""One browser and filled databases for all tests of this folder: with harmless texts, with hostile ones, and an empty one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page

from app import create_app
from core.db import Database
from core.settings import OidcSettings, Settings
from tests.browser import PATIENCE_MS, LiveServer
from tests.factories import PASSWORD
from tests.pages.places import NOBODY, Place
from tests.pages.rows import Filled, fill, fill_empty
from tests.pages.texts import Texts

WIDE = {"width": 1280, "height": 800}
WATCH = """window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile ?? ""} ${event.sample}`));"""
POST = """([path, fields]) => {
  const form = Object.assign(document.createElement("form"), { method: "post", action: path });
  const token = document.querySelector("meta[name=csrf-token]").content;
  for (const [name, value] of [["csrf_token", token], ...fields]) {
    form.append(Object.assign(document.createElement("textarea"), { name, value }));
  }
  document.body.append(form);
  form.submit();
}"""


def settings_in(folder: Path) -> Settings:
    """Settings of a test, with a provider of sign-in and an engine that do not answer."""
    return Settings(
        _env_file=None, var_dir=folder / "var", cache_dir=folder / "cache", secret_key="tests-only-" + "k" * 32,
        engine_port=9, oidc=OidcSettings(issuer="http://127.0.0.1:9", client_id="dunnock", client_secret="s" * 32),
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


class Site:
    """A live app on a filled database, with a browser page for each person, signed in once."""

    def __init__(self, browser: Browser, folder: Path, template: Path, texts: Texts | None) -> None:
        self.browser = browser
        self.settings = Settings(
            _env_file=None, var_dir=folder / "var", cache_dir=folder / "cache", secret_key="tests-only-" + "k" * 32,
            engine_port=9, oidc=OidcSettings(issuer="http://127.0.0.1:9", client_id="dunnock", client_secret="s" * 32),
        )  # fmt: skip
        self.settings.var_dir.mkdir(parents=True)
        shutil.copy(template, self.settings.var_dir / "dunnock.db")
        self.database = Database(self.settings.db_url)
        with self.database.session() as session:
            self.filled: Filled = fill(session, self.settings, texts) if texts else fill_empty(session)
        self.app = create_app(self.settings, self.database)
        self.server = LiveServer(self.app)
        self.troubles: list[str] = []
        self.sizes: dict[str, int] = {}
        self._pages: dict[tuple[str, bool], Page] = {}

    def open(self, place: Place, *, script: bool = True) -> Page:
        """The place in its person's browser, ready for use, at `WIDE` and light."""
        page = self._page(place.who, script)
        page.set_viewport_size(WIDE)  # type: ignore[arg-type]  # a plain dict is one
        page.emulate_media(color_scheme="light")
        path = place.path.format(**self.filled.address)
        if place.form is None:
            answer = page.goto(path)
        else:
            page.goto("/sign-in")
            with page.expect_navigation():
                page.evaluate(POST, [path, place.form])
            answer = None
        if answer is not None:
            assert answer.status == place.status, f"{path} answered {answer.status}"
        if script and page.locator("#judgment").count():
            page.locator("html[data-ready=yes]").wait_for()
        return page

    def _page(self, who: str, script: bool) -> Page:
        if (who, script) not in self._pages:
            context = self.browser.new_context(
                base_url=self.server.url, viewport=WIDE, device_scale_factor=2, java_script_enabled=script  # type: ignore[arg-type]
            )  # fmt: skip
            self._pages[who, script] = self._sign_in(context, who)
        return self._pages[who, script]

    def _sign_in(self, context: BrowserContext, who: str) -> Page:
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("pageerror", lambda error: self.troubles.append(f"an error of a script: {error}"))
        page.on("console", self._read)
        page.on("dialog", self._close)
        page.on("response", lambda answer: self._check(answer.url, answer.status))
        page.on("download", lambda download: self.troubles.append(f"a download: {download.url}"))
        if who != NOBODY:
            page.goto("/sign-in?next=/annotate/care")
            page.locator("input[name=login]").fill(self.filled.logins[who])
            page.locator("input[name=password]").fill(PASSWORD)
            page.locator("main button[type=submit]").click()
            page.wait_for_url("**/annotate/care")
        return page

    def _close(self, dialog: Dialog) -> None:
        if dialog.type != "beforeunload":  # a form that was typed in asks before it is left
            self.troubles.append(f"a dialog: {dialog.message}")
        dialog.accept()

    def _read(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.troubles.append(f"in the console: {message.text}")

    def _check(self, url: str, status: int) -> None:
        if not url.startswith((self.server.url, "data:")):
            self.troubles.append(f"something from elsewhere: {url}")
        elif "/static" in url and status >= 400:
            self.troubles.append(f"{url} answered {status}")

    def close(self) -> None:
        """Stop everything."""
        for page in self._pages.values():
            page.context.close()
        self.server.stop()
        self.database.dispose()


def _site(browser: Browser, tmp_path_factory: Any, template: Path, texts: Texts | None) -> Iterator[Site]:
    site = Site(browser, tmp_path_factory.mktemp("site"), template, texts)
    yield site
    site.close()


@pytest.fixture(scope="package")
def texts() -> Texts:
    """The hostile texts; it knows in which fields they stand."""
    return Texts(hostile=True)


@pytest.fixture(scope="package")
def hostile(browser: Browser, tmp_path_factory: Any, migrated_file: Path, texts: Texts) -> Iterator[Site]:
    """A site full of hostile texts."""
    yield from _site(browser, tmp_path_factory, migrated_file, texts)


@pytest.fixture(scope="package")
def harmless(browser: Browser, tmp_path_factory: Any, migrated_file: Path) -> Iterator[Site]:
    """The same rows with harmless texts."""
    yield from _site(browser, tmp_path_factory, migrated_file, Texts(hostile=False))


@pytest.fixture(scope="package")
def empty(browser: Browser, tmp_path_factory: Any, migrated_file: Path) -> Iterator[Site]:
    """A site on an empty database, with one admin."""
    yield from _site(browser, tmp_path_factory, migrated_file, None)
