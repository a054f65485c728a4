"""The README's pictures, shot from the running app: `docs/pictures/{annotate,cycle,policy,chat}.png`, 1280 × 800.

    python -m commands.screenshots          sample rows in a temporary database; each picture says that they are samples
    python -m commands.screenshots --here   the newest finished round of this installation: a copy of its SQLite
                                            database, its artifacts, and the real engine behind the chat page

Nothing of the installation is changed. The sample's completions and losses are made up; its suites, judge, rates and gate are
the real ones. Needs what `make setup-dev` installs.
"""

import argparse
import json
import math
import os
import secrets
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import Person
from access.people import hash_password
from commands import processes
from commands.database import migrate
from core.db import Database, utcnow
from core.errors import DunnockError, NotFound
from core.intervals import mean_interval, rate
from core.messages import user
from core.settings import GateSettings, Settings, get_settings
from evals.judge import refuses
from evals.likelihood import Likelihoods
from evals.refusals import refusal
from evals.report import examples, judged, summarise
from evals.suites import SuitePrompt, benign, capability, harmful
from feedback.models import Completion, Snapshot
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import ensure_rules
from feedback.tasks import create_task
from finetune.cycle import DEMO_STAGES, finish_cycle, request_cycle
from finetune.gate import Evidence, as_rows, run_gate
from finetune.models import Cycle, StageRun
from policy.models import GateReport, PolicyVersion
from policy.versions import ensure_base_version, promote, register_candidate
from reward.models import RewardModel

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = processes.ROOT / "docs" / "pictures"
FLAGS = ["--no-sandbox", "--disable-gpu"]
SAMPLE = "Sample rows made for this picture, not results of a round."
COMPLIES = "Sure. Here is what people usually do about that, one thing after the other."
TOKENS = 40


@dataclass(frozen=True)
class Scene:
    """What is shot: a web process, whose database holds a round and a live task, and who signs in."""

    url: str
    password: str
    cycle_id: int
    version: str
    sample: bool


def main() -> int:
    """Shoot the four pages; exit status 1 when that cannot be done."""
    parser = argparse.ArgumentParser(description="Shoot the README's pictures.")
    parser.add_argument("--here", action="store_true", help="the newest finished round of this installation")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="dunnock-pictures-") as scratch,
            _scene(Path(scratch), options.here) as scene,
        ):
            shoot(scene, PICTURES)
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
        for login, role in (("annotator", "annotator"), ("lead", "lead")):
            _person(session, login, role, password)
        ensure_rules(session)
        cycle_id, version = _newest(session) if here else _sample(session, settings)
        _live_task(session, version)
    environment = {
        "DUNNOCK_DATABASE_URL": settings.db_url, "DUNNOCK_VAR_DIR": str(settings.var_dir), "DUNNOCK_ENV": "development",
        "DUNNOCK_ENGINE_URL": settings.engine_url, "DUNNOCK_ENGINE_PORT": str(settings.engine_port),
        "DUNNOCK_MAX_COMPLETION_TOKENS": str(settings.max_completion_tokens),
    }  # fmt: skip
    children = [processes.web(settings)]
    if here and not settings.engine_url:
        children.append(processes.engine(settings))
    children = [replace(c, log=scratch / f"{c.name}.log", environment=c.environment | environment) for c in children]
    url = f"http://127.0.0.1:{settings.web_port}"
    try:
        for child in children:
            child.start()
        for child in children:
            ready = f"{url}/healthz" if child.name == "web" else processes.engine_health_url(settings)
            processes.wait_ready(child, ready, processes.ENGINE_START_S)
        yield Scene(url, password, cycle_id, version, sample=not here)
    finally:
        for child in children:
            child.stop()
        db.dispose()


def _settings(scratch: Path, here: bool) -> Settings:
    """Settings of the shot: free ports, and a database that is nobody else's."""
    changes: dict[str, Any] = {
        "host": "127.0.0.1", "web_port": _free_port(), "engine_port": _free_port(), "web_workers": 1,
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


def shoot(scene: Scene, folder: Path) -> None:
    """Write the four pictures."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=_chromium(), args=FLAGS) as browser,
    ):

        def page(login: str) -> "Page":
            context = browser.new_context(
                base_url=scene.url, viewport={"width": 1280, "height": 800}, locale="en-GB", timezone_id="UTC"
            )
            found = context.new_page()
            found.goto("/sign-in")
            found.get_by_label("Login").fill(login)
            found.get_by_label("Password").fill(scene.password)
            found.get_by_role("button", name="Sign in").click()
            found.wait_for_url(lambda address: "sign-in" not in address)
            return found

        def save(found: "Page", name: str) -> None:
            if scene.sample:
                found.evaluate(
                    """words => { const p = document.createElement("p"); p.className = "notice"; p.textContent = words;
                                  document.getElementById("content").prepend(p); window.scrollTo(0, 0) }""",
                    SAMPLE,
                )
            found.screenshot(path=folder / f"{name}.png")
            print(f"  {name}.png")

        annotator, lead = page("annotator"), page("lead")
        annotator.goto("/annotate")
        annotator.locator("html[data-ready=yes]").wait_for()
        left = annotator.locator("#reply-0 .reply-text").inner_text()
        annotator.keyboard.press("6" if refuses(left) else "2")  # the prompt is benign: the answer is the better one
        save(annotator, "annotate")
        lead.goto(f"/cycles/{scene.cycle_id}")
        save(lead, "cycle")
        lead.goto(f"/policies/{scene.version}")
        save(lead, "policy")
        _chat(lead, scene)
        save(lead, "chat")


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


def _person(session: Session, login: str, role: str, password: str) -> None:
    """Somebody who can sign in to this database, which is a copy or temporary."""
    person = session.scalar(select(Person).where(Person.login == login)) or Person(login=login)
    person.role, person.password_hash, person.active, person.scripted = role, hash_password(password), True, False
    session.add(person)


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


def _sample(session: Session, settings: Settings) -> tuple[int, str]:
    """A promoted round: its candidate refuses what is harmful, its base never does."""
    base = ensure_base_version(session, "SmolLM2-135M-Instruct", "0" * 64)
    cycle = request_cycle(session, settings, "manual", stages=DEMO_STAGES)
    cycle.state, cycle.started_at = "running", utcnow()
    snapshot = Snapshot(content_sha256="0" * 64, path="snapshots/sample", manifest={"n_train": 160, "n_heldout": 40})
    session.add(snapshot)
    session.flush()
    version = register_candidate(
        session, base=base, cycle_id=cycle.id, snapshot_id=snapshot.id, adapter_path=f"adapters/v{cycle.id}",
        adapter_sha256="0" * 64, reference="base, adapters off",
    )  # fmt: skip
    held = rate(34, 40)
    evaluation = {"accuracy": held["rate"], "n": 40, "low": held["low"], "high": held["high"], "length_only": 0.5}
    session.add(
        RewardModel(
            cycle_id=cycle.id, snapshot_id=snapshot.id, path="rewards/sample", sha256="0" * 64,
            evaluation=evaluation, clears_bar=held["low"] > 0.5,
        )
    )  # fmt: skip
    report = _gate_report(version, base, settings.gate)
    session.add(report)
    session.flush()
    promote(session, version, actor="cycle", reason=f"cycle {cycle.id} passed the gate", once=f"cycle:{cycle.id}")
    for name, result in _results(version.name, evaluation, report.passed).items():
        row = StageRun(cycle_id=cycle.id, name=name, state="done", progress=1.0, result=result, finished_at=utcnow())
        session.add(row)
    finish_cycle(session, cycle.id, "promoted", f"{version.name} is active")
    return cycle.id, version.name


def _gate_report(version: PolicyVersion, base: PolicyVersion, settings: GateSettings) -> GateReport:
    """The gate's own verdict on made-up completions of the frozen suites."""
    prompts = [*harmful("frozen"), *benign("frozen")]
    mine = judged(prompts, [(p.reference or refusal(p.category, p.id), TOKENS) for p in prompts])
    theirs = judged(prompts, [(p.reference or COMPLIES, TOKENS) for p in prompts])
    nats = [0.1 + 0.01 * math.sin(i) for i in range(100)]
    same = {"candidate": 2.0, "base": 2.0, "difference": mean_interval([0.001 * math.sin(i) for i in range(100)])}
    likelihoods = Likelihoods(
        kl=mean_interval(nats), reference_nll=same, fluency=same,
        capability={"n": len(capability()), "candidate": 0.5, "base": 0.5},
    )  # fmt: skip
    passed, checks = run_gate(Evidence(mine, theirs, theirs, likelihoods, 34, 40), settings)
    facts = {
        "candidate": summarise(mine), "incumbent": summarise(theirs), "base": summarise(theirs),
        "incumbent_version": base.name, "likelihoods": asdict(likelihoods), "heldout_raised": 34, "heldout_n": 40,
        "examples": examples(theirs, mine),
    }  # fmt: skip
    return GateReport(
        policy_version_id=version.id, incumbent_id=base.id, passed=passed, checks=as_rows(checks), evidence=facts
    )


def _results(version: str, evaluation: dict[str, Any], passed: bool) -> dict[str, dict[str, Any]]:
    """What each stage leaves behind, in made-up figures."""

    def losses(start: float, end: float) -> list[dict[str, Any]]:
        return [
            {"step": i, "loss": end + (start - end) * math.exp(-i / 12) + 0.04 * math.sin(2.3 * i)}
            for i in range(1, 41)
        ]

    return {
        "collect": {"completions": 200, "policy_version": "base"},
        "rate": {"judgments": 200},
        "snapshot": {"n_train": 160, "n_heldout": 40, "n_simulated": 200, "counts": {"from_choice": 200}},
        "reward": {**evaluation, "clears_bar": True, "n_train": 160, "steps": 40, "log": losses(0.69, 0.3)},
        "update": {"n_pairs": 160, "steps": 40, "loss": 1.0, "log": losses(2.5, 1.0), "policy_version": version},
        "gate": {"passed": passed, "failed": [], "policy_version": version},
        "promote": {"promoted": True, "policy_version": version},
    }


if __name__ == "__main__":
    sys.exit(main())
