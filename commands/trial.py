"""`make trial`: an update with other settings, measured on seed topics that were held out from it.

    python -m commands.trial                                    the deployment's settings
    python -m commands.trial --set update.beta=0.2 update.epochs=3

Settings are chosen here and never on the frozen part. A share of the seed topics takes the frozen part's
place, in suites of the trial's own; the rounds are real ones, by the same stages, on a database and
an engine of their own in a folder of `var/trial` that is named by the seed prompts. Completions are collected and
judged once; each trial is then snapshot, update and gate. One line of figures per trial is kept in its `trials.jsonl`.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import select

from commands import processes
from commands.database import prepare
from commands.demo import OVERRIDES
from commands.progress import run_with_progress
from core.artifacts import new_folder, write_text
from core.db import Database
from core.errors import DunnockError, StageError
from core.settings import Settings, get_settings
from evals.suites import rows
from finetune.cycle import request_cycle
from finetune.models import Cycle, StageRun
from policy.models import GateReport, PolicyVersion

HELDOUT_FRAC = 0.35
ENGINE_PORT = 8094


def main() -> int:
    """Run one trial; exit status 0 whatever the gate says of it."""
    parser = argparse.ArgumentParser(description="An update, measured on held-out seed topics.")
    parser.add_argument("--set", nargs="*", default=[], metavar="STAGE.NAME=VALUE", help="settings that differ")
    parser.add_argument("--reward", action="store_true", help="train a reward model too")
    parser.add_argument("--folder", type=Path, default=Path("var/trial"), help="where trials live")
    parser.add_argument("--engine-port", type=int, default=ENGINE_PORT, help="port of the trial's engine")
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    folder = options.folder.resolve() / _seed_name()
    suites = folder / "suites"
    if not suites.exists():
        with new_folder(suites) as made:
            _split_seed(made)
    os.environ |= {  # for this process's settings and those of the stages it starts
        "DUNNOCK_VAR_DIR": str(folder),
        "DUNNOCK_SUITES_DIR": str(suites),
        "DUNNOCK_ENGINE_PORT": str(options.engine_port),
        "DUNNOCK_ENGINE_URL": "",
        "DUNNOCK_DATABASE_URL": "",
    }
    get_settings.cache_clear()
    try:
        print(json.dumps(_trial(get_settings(), _overrides(options.set), options.reward), indent=1))
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _seed_name() -> str:
    """A name that changes with the seed prompts: what was collected of others is of no use."""
    found = [row for name in ("harmful", "benign") for row in rows(name) if row["part"] == "seed"]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]


def _split_seed(folder: Path) -> None:
    """Suites in which held-out seed topics are the frozen part, drawn with a fixed seed within each category."""
    for name in ("harmful", "benign"):
        seed = [r for r in rows(name) if r["part"] == "seed"]
        topics: dict[str, set[str]] = {}
        for row in seed:
            topics.setdefault(row["category"], set()).add(row["topic"])
        held: set[str] = set()
        for category, found in sorted(topics.items()):
            n = max(1, round(HELDOUT_FRAC * len(found)))
            held |= set(random.Random(f"{name} {category}").sample(sorted(found), n))
        _write(folder / f"{name}.jsonl", [r | {"part": "frozen" if r["topic"] in held else "seed"} for r in seed])
    _write(folder / "capability.jsonl", rows("capability_seed"))


def _write(path: Path, found: Any) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))


def _overrides(words: list[str]) -> dict[str, dict[str, Any]]:
    """`update.beta=0.2` words on top of the demo's own overrides; values are read as JSON."""
    found: dict[str, dict[str, Any]] = {stage: dict(values) for stage, values in OVERRIDES.items()}
    for word in words:
        name, _, value = word.partition("=")
        stage, _, field = name.partition(".")
        found.setdefault(stage, {})[field] = json.loads(value)
    return found


def _trial(settings: Settings, overrides: dict[str, dict[str, Any]], reward: bool) -> dict[str, Any]:
    db = Database(settings.db_url)
    prepare(db, settings)
    processes.require_free("engine", "127.0.0.1", settings.engine_port, "--engine-port")
    engine = processes.engine(settings)
    engine.start()
    try:
        processes.wait_ready(engine, processes.engine_health_url(settings), processes.ENGINE_START_S)
        with db.read() as session:
            collected = session.scalar(select(Cycle.id).where(Cycle.reason == "trial data", Cycle.state == "done"))
        if collected is None:
            _round(db, settings, "trial data", ("collect", "rate"), overrides)
        stages = ("snapshot", *(("reward",) if reward else ()), "update", "gate")
        cycle_id = _round(db, settings, "trial", stages, overrides)
    finally:
        engine.stop()
    figures = _figures(db, cycle_id) | {"settings": {k: v for k, v in overrides.items() if k != "collect"}}
    with (settings.var_dir / "trials.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
    return figures


def _round(
    db: Database, settings: Settings, reason: str, stages: tuple[str, ...], overrides: dict[str, dict[str, Any]]
) -> int:
    with db.session() as session:
        request_cycle(session, settings, reason, stages=stages, overrides=overrides)
    cycle = run_with_progress(db, settings)
    if cycle is None or cycle.state != "done":
        raise StageError(f"the trial failed: {cycle.outcome if cycle else 'another process runs it'}")
    return cycle.id


def _figures(db: Database, cycle_id: int) -> dict[str, Any]:
    with db.read() as session:
        runs = {r.name: r for r in session.scalars(select(StageRun).where(StageRun.cycle_id == cycle_id))}
        version = session.scalars(select(PolicyVersion).where(PolicyVersion.cycle_id == cycle_id)).one()
        report = session.scalars(select(GateReport).where(GateReport.policy_version_id == version.id)).one()
        evidence = report.evidence
        found: dict[str, Any] = {
            "pairs": (runs["update"].result or {}).get("n_pairs"),
            "candidate": evidence["candidate"],
            "base": evidence["base"],
            "likelihoods": evidence["likelihoods"],
            "heldout_raised": [evidence["heldout_raised"], evidence["heldout_n"]],
            "failed": [c["name"] for c in report.checks if not c["passed"]],
            "seconds": {name: round(run.seconds or 0, 1) for name, run in runs.items()},
        }
        if "reward" in runs:
            result = runs["reward"].result or {}
            found["reward"] = {k: result.get(k) for k in ("accuracy", "n", "low", "high", "length_only")}
        return found


if __name__ == "__main__":
    sys.exit(main())
