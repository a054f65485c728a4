"""A trial: an update with other settings, measured on seed topics that were held out from it.

Settings are chosen here and never on the frozen part. A share of the seed topics takes the frozen part's
place, in suites of the trial's own; the rounds are real ones, by the same stages, on a database and
an engine of their own in a folder of `var/trial` that is named by the seed prompts. Completions are collected and
judged once; each trial is then snapshot, update and gate, and more where it is asked for.

`flask trial` runs one; `commands.search` runs many.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from commands import processes
from commands.database import prepare
from commands.demo import OVERRIDES
from commands.progress import run_with_progress
from core.artifacts import new_folder, write_text
from core.db import Database
from core.errors import InvalidInput, StageError
from core.settings import Settings, get_settings
from evals.suites import rows
from finetune.cycle import request_cycle
from finetune.models import Cycle, StageRun
from policy.models import GateReport, PolicyVersion

HELDOUT_FRAC = 0.35
ENGINE_PORT = 8094
FOLDER = Path("var/trial")
STAGES = ("snapshot", "update", "gate")

Overrides = dict[str, dict[str, Any]]
"""Settings by stage that differ from the deployment's."""


@dataclass(frozen=True)
class Trials:
    """Where trials run: settings and database of their own, completions that were collected and judged.

    Attributes:
        run: runs the oldest unfinished cycle to its end.
    """

    settings: Settings
    db: Database
    run: Callable[[Database, Settings], Cycle | None] = run_with_progress

    def collect(self, overrides: Overrides) -> None:
        """Have the base answer and the script judge, once for all trials.

        Raises:
            StageError: that failed.
        """
        with self.db.read() as session:
            there = session.scalar(select(Cycle.id).where(Cycle.reason == "trial data", Cycle.state == "done"))
        if there is None:
            with self.db.session() as session:
                request_cycle(session, self.settings, "trial data", stages=("collect", "rate"), overrides=overrides)
            self.finish()

    def request(self, overrides: Overrides, stages: Sequence[str]) -> int:
        """Ask for the round of a trial; its cycle's id."""
        with self.db.session() as session:
            return request_cycle(session, self.settings, "trial", stages=stages, overrides=overrides).id

    def finish(self) -> Cycle:
        """Run what was asked for to its end.

        Raises:
            StageError: it failed, or somebody else runs it.
        """
        cycle = self.run(self.db, self.settings)
        if cycle is None or cycle.state == "failed":
            raise StageError(f"the trial failed: {cycle.outcome if cycle else 'another process runs it'}")
        return cycle

    def figures(self, cycle_id: int) -> dict[str, Any]:
        """What a finished trial came to: of the held-out topics, of held-out pairs, and its seconds by stage."""
        with self.db.read() as session:
            runs = {r.name: r for r in session.scalars(select(StageRun).where(StageRun.cycle_id == cycle_id))}
            found: dict[str, Any] = {"seconds": {name: round(run.seconds or 0, 1) for name, run in runs.items()}}
            if "reward" in runs:
                result = runs["reward"].result or {}
                found["reward"] = {k: result.get(k) for k in ("accuracy", "n", "low", "high", "length_only")}
            if "gate" in runs:
                version = session.scalars(select(PolicyVersion).where(PolicyVersion.cycle_id == cycle_id)).one()
                report = session.scalars(select(GateReport).where(GateReport.policy_version_id == version.id)).one()
                evidence = report.evidence
                found |= {
                    "pairs": (runs["update"].result or {}).get("n_pairs"),
                    "candidate": evidence["candidate"],
                    "base": evidence["base"],
                    "likelihoods": evidence["likelihoods"],
                    "heldout_raised": [evidence["heldout_raised"], evidence["heldout_n"]],
                    "failed": [c["name"] for c in report.checks if not c["passed"]],
                }
        return found


@contextmanager
def open_trials(folder: Path, engine_port: int) -> Iterator[Trials]:
    """The place of trials below `folder`, with its engine up. This process's settings become those of the trials.

    Raises:
        Conflict: the port is taken.
        EngineError: the engine does not start.
    """
    place = folder.resolve() / _seed_name()
    suites = place / "suites"
    if not suites.exists():
        with new_folder(suites) as made:
            _split_seed(made)
    os.environ |= {  # for this process's settings and those of the stages it starts
        "DUNNOCK_VAR_DIR": str(place),
        "DUNNOCK_SUITES_DIR": str(suites),
        "DUNNOCK_ENGINE_PORT": str(engine_port),
        "DUNNOCK_ENGINE_URL": "",
        "DUNNOCK_DATABASE_URL": "",
    }
    get_settings.cache_clear()
    settings = get_settings()
    db = Database(settings.db_url)
    prepare(db, settings)
    processes.end_children_on_sigterm()
    processes.require_free("engine", "127.0.0.1", settings.engine_port, "--engine-port")
    engine = processes.engine(settings)
    engine.start()
    try:
        processes.wait_ready(engine, processes.engine_health_url(settings), processes.ENGINE_START_S)
        yield Trials(settings, db)
    finally:
        engine.stop()
        db.dispose()


def run_trial(trials: Trials, overrides: Overrides, *, reward: bool) -> dict[str, Any]:
    """One trial; its figures with its settings, which also become a line of `trials.jsonl`."""
    trials.collect(overrides)
    trials.request(overrides, with_reward(STAGES, reward))
    figures = trials.figures(trials.finish().id)
    figures |= {"settings": {k: v for k, v in overrides.items() if k != "collect"}}
    with (trials.settings.var_dir / "trials.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
    return figures


def with_reward(stages: Sequence[str], reward: bool) -> tuple[str, ...]:
    """The stages, with a reward model before the update where it is wanted."""
    return tuple(s for stage in stages for s in (("reward", stage) if stage == "update" and reward else (stage,)))


def overrides_of(words: Sequence[str]) -> Overrides:
    """`update.beta=0.2` words on top of the demo's own overrides; values are read as JSON, else as text.

    Raises:
        InvalidInput: a word is no such setting.
    """
    found: Overrides = {stage: dict(values) for stage, values in OVERRIDES.items()}
    for word in words:
        name, equals, value = word.partition("=")
        stage, field = setting_of(name, word if equals else "")
        found.setdefault(stage, {})[field] = read_value(value)
    return found


def setting_of(name: str, word: str) -> tuple[str, str]:
    """Stage and field of `update.beta`.

    Raises:
        InvalidInput: there is no such setting, or `word` is empty.
    """
    stage, _, field = name.partition(".")
    group = Settings.model_fields.get(stage)
    if not word or group is None or field not in getattr(group.annotation, "model_fields", {}):
        raise InvalidInput(
            f"{word or name!r} names no setting of a stage; write STAGE.NAME=VALUE, e.g. update.beta=0.2"
        )
    return stage, field


def read_value(value: str) -> Any:
    """A value as JSON has it; what is none is a text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


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
