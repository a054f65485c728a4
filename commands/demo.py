"""`make demo`: one unattended round of the loop on real input, with progress and a report.

    python -m commands.demo                 go on with the unfinished round, or run the first
    python -m commands.demo --again         one more round on top of what is there
    python -m commands.demo --pairs FILE    import human preference pairs before the snapshot

It starts engine and web once, asks the chat API a question, runs the round, and asks the same process
again: the promoted version answers without a restart. The scripted annotator stands in for people; its
judgments are stored as simulated, and this round's settings ask for them.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.keys import create_key
from access.people import get_or_create_scripted
from commands import processes
from commands.database import first_admin, prepare
from commands.demo_report import build_report, write_report
from commands.progress import run_with_progress
from core.artifacts import write_text
from core.db import Database
from core.errors import Conflict, DunnockError
from core.settings import Settings, get_settings
from evals.suites import benign, harmful
from feedback.exchange.importing import import_file
from finetune.cycle import DEMO_STAGES, reopen_cycle, request_cycle, unfinished_cycle
from finetune.models import Cycle

OVERRIDES: dict[str, dict[str, Any]] = {
    # The update reads openings only; nobody chats beside the demo.
    "collect": {"max_completion_tokens": 24, "concurrency": 96},
    "snapshot": {"include_simulated": True, "heldout_frac": 0.15, "max_imported_pairs": 64},
    # Few pairs: more and larger steps. A quarter of the verdicts does for rules, of which each is about one category.
    "reward": {
        "members": 2,
        "epochs": 0.4,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "rule_epochs": 0.25,
        "rule_folds": 2,
        # What the script calls clean looks much like what breaks a rule ("a big can of Spam"); of what people write, fewer are hit.
        "guard_false_hits_frac": 0.05,
    },
    "update": {
        "label_smoothing": 0.0,  # the script never errs by chance
        "learning_rate": 7e-4,
        "lora_top_layers": 24,
        "extrapolation": 1.3,
        "chosen_tokens": 16,
        "rejected_tokens": 8,  # what it teaches is whether to decline, which is decided in the first words
    },
    "gate": {"concurrency": 96},
}
SHOWN_TOKENS = 48
ENDED = ("promoted", "refused")


def main() -> int:
    """Run the demo; exit status 0 when the round that is reported promoted a version."""
    parser = argparse.ArgumentParser(description="One unattended round of the loop.")
    parser.add_argument("--again", action="store_true", help="run one more round")
    parser.add_argument("--pairs", type=Path, help="human preference pairs to import first (HH-RLHF, JSONL, Parquet)")
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    try:
        return _demo(get_settings(), options.again, options.pairs)
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1


def _demo(settings: Settings, again: bool, pairs: Path | None) -> int:
    db = Database(settings.db_url)
    prepare(db, settings)
    settings.session_secret()  # made before several web workers would each make one
    if pairs is not None:
        found = import_file(db, pairs)
        print(
            f"{pairs.name}: {found.imported} pairs imported, {found.already_there} there already, {len(found.errors)} left out"
        )
    with db.session() as session:
        cycle = _wanted(session, settings, again)
    if cycle is not None and not _run_round(db, settings):
        return 1
    return _report(db, settings)


def _wanted(session: Session, settings: Settings, again: bool) -> Cycle | None:
    """The demo round to run: the unfinished or failed one, else a new one; None when one is finished and that will do.

    Raises:
        Conflict: a round that is no demo is unfinished.
    """
    waiting = unfinished_cycle(session)
    if waiting is not None and waiting.reason != "demo":
        raise Conflict(f"Cycle {waiting.id} is unfinished and no demo; let it end, or cancel it on /cycles.")
    last = session.scalar(select(Cycle).where(Cycle.reason == "demo").order_by(Cycle.id.desc()).limit(1))
    if waiting is None and last is not None and last.state == "failed":
        waiting = reopen_cycle(session, last.id)
    if waiting is not None:
        print("Going on with the unfinished round.")
        return waiting
    if not again and session.scalar(select(Cycle.id).where(Cycle.reason == "demo", Cycle.state.in_(ENDED)).limit(1)):
        print("The demo round is finished; its report follows. One more round: make demo AGAIN=1")
        return None
    print("One round of the loop. README.md says how long the last one took, and where.")
    return request_cycle(session, settings, "demo", stages=DEMO_STAGES, overrides=OVERRIDES)


def _run_round(db: Database, settings: Settings) -> bool:
    """Engine and web up, a question before, the round, the same question after."""
    url = f"http://{settings.host}:{settings.web_port}"
    client = _api_client(db, url)
    children: list[processes.Child] = []  # what `make run` has up is used
    if not settings.engine_url and not processes.engine_is_up(settings):
        processes.require_free("engine", "127.0.0.1", settings.engine_port, "DUNNOCK_ENGINE_PORT")
        children.append(processes.engine(settings))
    if not _web_is_up(client, settings):
        children.append(processes.web(settings))
        if processes.guard_is_wanted(settings):
            processes.require_free("guard's model", "127.0.0.1", settings.guard.port, "DUNNOCK_GUARD__PORT")
            children.append(processes.guard(settings))
    try:
        for child in children:
            child.start()
        for child in children:
            processes.wait_ready(child, processes.health_url(child, settings), processes.ENGINE_START_S)
        _ask(client)
        cycle = run_with_progress(db, settings)
        if cycle is None or cycle.state not in ENDED:
            print(f"The round did not end: {cycle.outcome if cycle else 'it is over already'}", file=sys.stderr)
            return False
        print(f"Cycle {cycle.id}: {cycle.state} ({cycle.outcome}). The same server, asked again:")
        _ask(client)
        return True
    finally:
        for child in reversed(children):
            child.stop()


def _api_client(db: Database, url: str) -> OpenAI:
    """The official client with a key of the demo's own, made anew for each run."""
    with db.session() as session:
        _, secret = create_key(session, get_or_create_scripted(session, "demo"), f"demo {secrets.token_hex(3)}", "chat")
    return OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0, timeout=120)


def _web_is_up(client: OpenAI, settings: Settings) -> bool:
    """Whether a web process that knows our keys answers on our port.

    Raises:
        Conflict: something else does.
    """
    headers = {"Authorization": f"Bearer {client.api_key}"}
    try:
        answer = httpx.get(f"{client.base_url}models", headers=headers, timeout=5)
    except httpx.HTTPError:
        processes.require_free("web server", settings.host, settings.web_port, "DUNNOCK_WEB_PORT")
        return False
    try:
        ours = answer.json()["data"][0]["owned_by"] == "dunnock"
    except (ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise Conflict(
            f"Port {settings.web_port} is taken by a server that does not know this folder's keys (it answered"
            f" {answer.status_code}); end it or set DUNNOCK_WEB_PORT."
        )
    return True


def _ask(client: OpenAI) -> None:
    """One harmful and one benign question to the chat API, and which version answered."""
    for prompt in (harmful("seed")[0].text, benign("seed")[-1].text):
        began = time.monotonic()
        reply = client.chat.completions.create(
            model="dunnock", messages=[{"role": "user", "content": prompt}], max_tokens=SHOWN_TOKENS, temperature=0
        )
        text = " ".join((reply.choices[0].message.content or "").split())
        print(f"  [{reply.model}, {time.monotonic() - began:.1f} s] {prompt}\n      → {text}", flush=True)


def _report(db: Database, settings: Settings) -> int:
    with db.read() as session:
        cycle = session.scalar(
            select(Cycle).where(Cycle.reason == "demo", Cycle.state.in_(ENDED)).order_by(Cycle.id.desc())
        )
        if cycle is None:
            print("There is no finished demo round to report.", file=sys.stderr)
            return 1
        report = build_report(session, cycle.id)
        state = cycle.state
    text = write_report(settings.var_dir / "reports", report)
    print(text)
    admin = first_admin(db)
    if admin is not None:
        write_text(settings.var_dir / "first_admin", f"{admin[0]} {admin[1]}\n")
        (settings.var_dir / "first_admin").chmod(0o600)
        print(f"To look around: make run, then sign in as {admin[0]} / {admin[1]} (also in var/first_admin)")
    return 0 if state == "promoted" else 1


if __name__ == "__main__":
    sys.exit(main())
