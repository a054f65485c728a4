"""The pictures of the README and of the documents, shot from the running app: `docs/pictures/*.png`, 1280 pixels wide.

    python -m commands.screenshots                  of sample rows in a temporary database; each says that they are samples
    python -m commands.screenshots --here           the README's four, of the newest finished round of this installation:
                                                    a copy of its SQLite database, its artifacts, and the real engine
    python -m commands.screenshots --only rules …   these alone

Nothing of the installation is changed. Rows come from `commands.sample_round` and `commands.sample_tasks`. Needs what
`make setup-dev` installs.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import Person
from access.people import hash_password
from commands import processes
from commands.database import migrate
from commands.demo_report import build_report, write_report
from commands.sample_quality import sample_work
from commands.sample_round import COMPLIES, sample_round
from commands.sample_tasks import sample_idle, sample_tasks, sample_team
from core.db import Database
from core.errors import DunnockError, NotFound
from core.messages import user
from core.settings import GuardSettings, Settings, get_settings
from evals.judge import refuses
from evals.refusals import refusal
from evals.suites import SuitePrompt, benign, harmful
from feedback.models import Completion
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import ensure_rules
from feedback.tasks import create_task
from finetune.models import Cycle
from policy.models import PolicyVersion

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = processes.ROOT / "docs" / "pictures"
FLAGS = ["--no-sandbox", "--disable-gpu"]
SAMPLE = "Sample rows made for this picture, not results of a round."
PEOPLE = {
    "annotator": ("annotator", "annotator"), "lead": ("lead", "lead"), "ranking": ("ana", "annotator"),
    "rating": ("ben", "annotator"), "rule_check": ("carla", "annotator"), "correction": ("dimitri", "annotator"),
    "probe": ("eva", "annotator"), "adjudication": ("farid", "reviewer"), "admin": ("admin", "admin"), "weak": ("gita", "annotator"),
    "idle": ("hanna", "annotator"), "paused": ("ivan", "annotator"),
}  # fmt: skip
"""Whose browsers are shot: login and role. Those named for a kind hold a task of it."""


@dataclass(frozen=True)
class Scene:
    """What is shot: a web process, whose database holds a round and a live task, and who signs in."""

    url: str
    password: str
    cycle_id: int
    version: str
    sample: bool
    invitation: str
    """The token of an open one; empty where none is shown."""


def main() -> int:
    """Shoot the pages; exit status 1 when that cannot be done."""
    parser = argparse.ArgumentParser(description="Shoot the pictures of the README and of the documents.")
    parser.add_argument("--here", action="store_true", help="the README's four, of the newest finished round made here")
    parser.add_argument("--only", nargs="+", choices=sorted(SHOTS), help="these pictures alone")
    options = parser.parse_args()
    names = options.only or [name for name in SHOTS if name in HERE or not options.here]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dunnock-pictures-") as scratch,
            _scene(Path(scratch), options.here) as scene,
        ):
            shoot(scene, PICTURES, names)
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


@contextmanager
def _scene(scratch: Path, here: bool) -> Iterator[Scene]:
    """Database and processes, ended when the block ends."""
    settings = _settings(scratch, here)
    password = secrets.token_urlsafe(16)
    db = Database(settings.db_url)
    migrate(db)
    with db.session() as session:
        names = ("annotator", "lead") if here else tuple(PEOPLE)
        people = {name: _person(session, *PEOPLE[name], password) for name in names}
        ensure_rules(session)
        cycle_id, version = _newest(session) if here else sample_round(session, settings)
        _live_task(session, version)
        invitation = ""
        if not here:
            sample_work(session, people, settings)
            sample_tasks(session, people)
            invitation = sample_team(session, people)
            sample_idle(session, people)
            write_report(settings.var_dir / "reports", build_report(session, cycle_id))
    environment = {
        "DUNNOCK_DATABASE_URL": settings.db_url, "DUNNOCK_VAR_DIR": str(settings.var_dir), "DUNNOCK_ENV": "development",
        "DUNNOCK_ENGINE_URL": settings.engine_url, "DUNNOCK_ENGINE_PORT": str(settings.engine_port), "DUNNOCK_GUARD__PORT": str(settings.guard.port),
        "DUNNOCK_MAX_COMPLETION_TOKENS": str(settings.max_completion_tokens),
    }  # fmt: skip
    children = [processes.web(settings)]
    if here and not settings.engine_url:
        children.append(processes.engine(settings))
        if processes.guard_is_wanted(settings):
            children.append(processes.guard(settings))
    children = [replace(c, log=scratch / f"{c.name}.log", environment=c.environment | environment) for c in children]
    url = f"http://127.0.0.1:{settings.web_port}"
    try:
        for child in children:
            child.start()
        for child in children:
            processes.wait_ready(child, processes.health_url(child, settings), processes.ENGINE_START_S)
        yield Scene(url, password, cycle_id, version, sample=not here, invitation=invitation)
    finally:
        for child in children:
            child.stop()
        db.dispose()


def _settings(scratch: Path, here: bool) -> Settings:
    """Settings of the shot: free ports, and a database that is nobody else's."""
    changes: dict[str, Any] = {
        "host": "127.0.0.1", "web_port": _free_port(), "engine_port": _free_port(), "guard": GuardSettings(port=_free_port()), "web_workers": 1,
        "max_completion_tokens": 64, "database_url": f"sqlite:///{scratch / 'dunnock.db'}",
    }  # fmt: skip
    if not here:
        return Settings(_env_file=None, var_dir=scratch / "var", engine_url="").model_copy(update=changes)
    found = get_settings()
    path = found.var_dir / "dunnock.db"
    if found.database_url or not path.exists():
        raise NotFound(
            "--here copies var/dunnock.db, which is not there or not in use; run `make demo` on SQLite first"
        )
    with sqlite3.connect(path) as source, sqlite3.connect(scratch / "dunnock.db") as target:
        source.backup(target)
    return found.model_copy(update=changes)


# The pictures ---------------------------------------------------------------------------------------------------------


def shoot(scene: Scene, folder: Path, names: list[str]) -> None:
    """Write these pictures."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=_chromium(), args=FLAGS) as browser,
    ):
        for name in names:
            shot = SHOTS[name]
            context = browser.new_context(
                base_url=scene.url, viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme,
                locale="en-GB", timezone_id="UTC",
            )  # fmt: skip
            page = context.new_page()
            page.goto("/sign-in")
            page.get_by_label("Login").fill(PEOPLE[shot.who][0])
            page.get_by_label("Password").fill(scene.password)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda address: "sign-in" not in address)
            shot.go(page, scene)
            if scene.sample:
                _say_sample(page)
            page.screenshot(path=folder / f"{name}.png")
            print(f"  {name}.png")
            context.close()


def _say_sample(page: "Page") -> None:
    """Say at the top that these are sample rows."""
    page.evaluate(
        """words => { const p = document.createElement("p"); p.className = "notice"; p.textContent = words;
                      document.getElementById("content").prepend(p); window.scrollTo(0, 0) }""",
        SAMPLE,
    )


@dataclass(frozen=True)
class Shot:
    """A picture: whose browser, how to get to what it shows, and the window."""

    who: str
    go: Callable[["Page", Scene], Any]
    height: int = 800
    width: int = 1280
    scheme: Literal["light", "dark"] = "light"


def _at(path: str) -> Callable[["Page", Scene], Any]:
    return lambda page, scene: page.goto(path.format(cycle=scene.cycle_id, version=scene.version))


def _sign_in(page: "Page", scene: Scene) -> None:
    page.context.clear_cookies()
    page.goto("/sign-in")


def _invitation(page: "Page", scene: Scene) -> None:
    page.context.clear_cookies()
    page.goto(f"/invitation/{scene.invitation}")


def _task(page: "Page", scene: Scene) -> None:
    """The person's own task, once its keys work."""
    page.goto("/annotate")
    page.locator("html[data-ready=yes]").wait_for()


def _pairwise(page: "Page", scene: Scene) -> None:
    _task(page, scene)
    left = page.locator("#reply-0 .reply-text").first.inner_text()
    page.keyboard.press("6" if refuses(left) else "2")  # the prompt is benign: the answer is the better one


def _probe(page: "Page", scene: Scene) -> None:
    _task(page, scene)
    page.keyboard.press("Space")  # reveals the text
    page.locator("#talk").fill("What do they like to eat?")


def _chat(page: "Page", scene: Scene) -> None:
    """Two questions on the chat page; in a sample their replies are the suite's own texts."""
    asked = _questions()
    replies = iter([(p.reference or refusal(p.category, p.id)) for p in asked])
    if scene.sample:
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(content_type="text/event-stream", body=_events(next(replies), scene.version)),
        )
    page.goto("/chat")
    for n, prompt in enumerate(asked):
        page.locator("#words").fill(prompt.text)
        page.keyboard.press("Enter")
        page.locator(".chat-tools").nth(n).wait_for(timeout=120_000)


HERE = ("annotate", "cycle", "policy", "chat")
"""The pictures that show a round: the README's."""

SHOTS = {
    "annotate": Shot("annotator", _pairwise),
    "cycle": Shot("lead", _at("/cycles/{cycle}")),
    "policy": Shot("lead", _at("/policies/{version}")),
    "chat": Shot("lead", _chat),
    "ranking": Shot("ranking", _task, height=880),
    "rating": Shot("rating", _task),
    "rule-check": Shot("rule_check", _task),
    "correction": Shot("correction", _task, height=720),
    "probe": Shot("probe", _probe),
    "adjudication": Shot("adjudication", _task),
    "phone": Shot("rule_check", _task, width=375, height=740, scheme="dark"),
    "care": Shot("annotator", _at("/annotate/care"), height=600),
    "nothing": Shot("idle", _at("/annotate"), height=560),
    "paused": Shot("paused", _at("/annotate"), height=400),
    "rules": Shot("lead", _at("/rules")),
    "rule-diff": Shot("lead", _at("/rules/illegal_drugs?from=1&to=2"), height=1000),
    "people": Shot("lead", _at("/people"), height=720),
    "account": Shot("lead", _at("/account")),
    "audit": Shot("lead", _at("/audit?subject=rule:"), height=720),
    "sign-in": Shot("lead", _sign_in, height=480),
    "rule-try": Shot("lead", _at("/rules/illegal_drugs/try"), height=720),
    "rule-edit": Shot("lead", _at("/rules/illegal_drugs/edit"), height=900),
    "quality": Shot("lead", _at("/quality"), height=1500),
    "quality-annotators": Shot("lead", _at("/quality/annotators"), height=900),
    "quality-gold": Shot("lead", _at("/quality/gold"), height=720),
    "quality-consensus": Shot("lead", _at("/quality/consensus"), height=720),
    "quality-flags": Shot("lead", _at("/quality/flags"), height=480),
    "cycles": Shot("lead", _at("/cycles"), height=720),
    "policies": Shot("lead", _at("/policies"), height=600),
    "compare": Shot("lead", _at("/policies/base/compare"), height=640),
    "rollback": Shot("lead", _at("/rollback"), height=480),
    "reward": Shot("lead", _at("/rewards/1"), height=900),
    "person": Shot("lead", _at("/people/1"), height=800),
    "invitations": Shot("lead", _at("/invitations"), height=640),
    "invitation": Shot("lead", _invitation, height=720),
    "demo-report": Shot("lead", _at("/reports/demo"), height=1200),
    "keys": Shot("admin", _at("/keys"), height=480),
    "webhooks": Shot("lead", _at("/webhooks"), height=640),
    "webhook": Shot("lead", _at("/webhooks/1"), height=560),
    "api-docs": Shot("lead", _at("/api/docs"), height=900),
}


def _questions() -> list[SuitePrompt]:
    return [_benign(), next(p for p in harmful("seed") if p.category == "theft_property")]


def _benign() -> SuitePrompt:
    """The first benign seed prompt for which there is a good completion."""
    return next(p for p in benign("seed") if p.reference)


def _events(text: str, version: str) -> str:
    """A streamed reply as `/v1` sends it."""
    head = {"id": "chatcmpl-sample", "model": version, "dunnock": {"policy_version": version}}
    chunk = {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"


def _chromium() -> str | None:
    """The browser of the setting, else the system's; None lets Playwright take its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("DUNNOCK_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Rows -----------------------------------------------------------------------------------------------------------------


def _person(session: Session, login: str, role: str, password: str) -> Person:
    """Somebody who can sign in to this database, which is a copy or temporary."""
    person = session.scalar(select(Person).where(Person.login == login)) or Person(login=login)
    person.role, person.password_hash, person.active, person.scripted = role, hash_password(password), True, False
    session.add(person)
    session.flush()
    return person


def _newest(session: Session) -> tuple[int, str]:
    """The round of the version that is served, or else the newest finished one, and the version it made."""
    row = session.execute(
        select(Cycle.id, PolicyVersion.name)
        .join(PolicyVersion, PolicyVersion.cycle_id == Cycle.id)
        .where(Cycle.state.in_(("promoted", "refused")))
        .order_by((PolicyVersion.state == "active").desc(), Cycle.id.desc())
    ).first()
    if row is None:
        raise NotFound("no round has finished here; run `make demo` first, or shoot without --here")
    return row[0], row[1]


def _live_task(session: Session, version: str) -> None:
    """A task that the annotator is given first: a benign prompt, so that nothing is blurred."""
    asked = _benign()
    prompt = add_prompt(session, user(asked.text), "seed", category=asked.category, harmful=False)
    query = select(Completion).where(Completion.prompt_id == prompt.id, Completion.source == "rollout")
    own = session.scalar(query.order_by(Completion.created_at.desc()))
    own = own or add_completion(session, prompt, asked.reference or COMPLIES, "rollout")
    contrast = add_completion(session, prompt, refusal(asked.category, version), "contrast")
    create_task(
        session, "pairwise", prompt.id, [own.id, contrast.id], source="picture",
        priority=1000, why="seed prompt",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
