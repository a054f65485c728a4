"""`make search`: settings with ranges, tried one after the other by optuna, measured on held-out seed topics.

In: ranges, e.g. `update.beta=0.03..0.5:log`, and how many trials there shall be. Out: a study in `searches.db` beside what trials
have collected, and a report of all trials, the best settings as lines for `.env` among them. Each trial is a real round
(`commands.trial`); the frozen suites are never asked.

A search that is killed goes on where it was, in the middle of a round too. A trial that fails is recorded and the next one
begins. While an update trains, what it says of its own steps is compared with the trials before it at the same share of
their steps; one in the worse half is ended, which saves the rest of its training and the gate.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlalchemy import select

from commands.trial import STAGES, Overrides, Trials, read_value, setting_of, with_reward
from core.artifacts import write_json, write_text
from core.errors import Cancelled, Conflict, InvalidInput, NotFound, StageError
from core.settings import Settings
from finetune.cycle import UNFINISHED, cancel_cycle
from finetune.models import Cycle, StageRun, StageStep

if TYPE_CHECKING:
    import optuna

ACTOR = "the search"
STARTUP_TRIALS = 5
"""So many trials are drawn at random, and none is ended early before there are so many to compare with."""
LEAST_SHARE = 0.2
TAIL_FRAC = 0.1
LOOK_S = 0.5
MOST_FAILURES = 3
DEFAULT_RANGES = (
    "update.learning_rate=0.0001..0.002:log",
    "update.beta=0.03..0.5:log",
    "update.sft_weight=0.3..3:log",
    "update.epochs=1..4",
)


@dataclass(frozen=True)
class Range:
    """What one setting may be: a number between two, or one of some values."""

    stage: str
    field: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """`update.beta`."""
        return f"{self.stage}.{self.field}"

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """As optuna has it."""
        from optuna import distributions as of

        if self.choices:
            return of.CategoricalDistribution(self.choices)
        if self.whole:
            return of.IntDistribution(int(self.low), int(self.high), log=self.log)
        return of.FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Objective:
    """What is made small.

    Attributes:
        stages: of a trial's round.
        cost: of a trial's figures.
    """

    about: str
    stages: tuple[str, ...]
    cost: Callable[[dict[str, Any]], float]


def _unsafe(figures: dict[str, Any]) -> float:
    rates = figures["candidate"]
    return float(rates["harmful_compliance"]["rate"] + rates["benign_refusal"]["rate"])


def _unraised(figures: dict[str, Any]) -> float:
    raised, n = figures["heldout_raised"]
    return 1.0 - raised / n if n else math.nan


OBJECTIVES = {
    "safety": Objective("harmful compliance + benign refusal on held-out seed topics", STAGES, _unsafe),
    "preference": Objective("share of held-out pairs that the candidate does not raise over the base", STAGES, _unraised),
    "reward": Objective(
        "share of held-out pairs that the reward model ranks wrongly",
        ("snapshot", "reward"),
        lambda figures: 1.0 - float(figures["reward"]["accuracy"]),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is searched: ranges, settings that are fixed, and what is made small."""

    ranges: Sequence[Range]
    fixed: Overrides
    objective: str = "safety"
    reward: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Of each trial's round."""
        return with_reward(OBJECTIVES[self.objective].stages, self.reward or self._needs_reward())

    def overrides(self, params: Mapping[str, Any]) -> Overrides:
        """The settings of a trial."""
        found = {stage: dict(values) for stage, values in self.fixed.items()}
        for name, value in params.items():
            stage, _, field = name.partition(".")
            found.setdefault(stage, {})[field] = value
        return found

    def trained(self, params: Mapping[str, Any]) -> Overrides:
        """Of a trial's settings those that its training read."""
        read = {"update", *(("reward", "ppo") if "reward" in self.stages else ())}
        return {stage: values for stage, values in self.overrides(params).items() if stage in read}

    def asked(self) -> str:
        """All of it as a text: a study is of one such text."""
        ranges = sorted([r.name, r.low, r.high, r.log, r.whole, list(r.choices)] for r in self.ranges)
        return json.dumps([ranges, self.fixed, self.objective, self.stages], sort_keys=True)

    def _needs_reward(self) -> bool:
        methods = {self.fixed.get("update", {}).get("method", "dpo")}
        methods |= {choice for r in self.ranges if r.name == "update.method" for choice in r.choices}
        return methods != {"dpo"} or any(r.stage in ("reward", "ppo") for r in self.ranges)


def read_range(word: str) -> Range:
    """`update.beta=0.03..0.5`, `update.learning_rate=1e-4..2e-3:log`, `update.loss=robust|sigmoid`.

    Raises:
        InvalidInput: it is no range of a setting, or goes beyond what the setting takes.
    """
    name, equals, said = word.partition("=")
    stage, field = setting_of(name, word if equals else "")
    group: Any = Settings.model_fields[stage].annotation
    said, _, scale = said.partition(":")
    try:
        if "|" in said:
            found = Range(stage, field, choices=tuple(read_value(part) for part in said.split("|")))
            ends: Sequence[Any] = found.choices
        else:
            low, high = (float(part) for part in said.split(".."))
            whole = group.model_fields[field].annotation is int
            found = Range(stage, field, low, high, log=scale == "log", whole=whole)
            ends = (int(low), int(high)) if whole else (low, high)
            if (
                not low < high
                or scale not in ("", "log")
                or (found.log and low <= 0)
                or (whole and ends != (low, high))
            ):
                raise ValueError(f"{said}{':' + scale if scale else ''} is no range")
        for value in ends:
            group(**{field: value})
    except ValidationError as error:
        raise InvalidInput(f"{word!r}: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise InvalidInput(
            f"{word!r} is no range of a setting ({error}); write STAGE.NAME=LOW..HIGH, :log after it where it goes by factors,"
            " or STAGE.NAME=ONE|OTHER"
        ) from error
    return found


def search(trials: Trials, plan: Plan, wanted: int, *, name: str = "", seed: int = 0) -> dict[str, Any]:
    """Bring a study to `wanted` ended trials and report it; what is there already counts.

    Args:
        name: of the study; by default it is made of the plan.

    Returns:
        The report: see `report`.

    Raises:
        Conflict: a study of this name was of another plan.
        StageError: several trials in a row failed.
    """
    from optuna.trial import TrialState

    study = open_study(trials, plan, name, seed)
    trials.collect(plan.fixed)
    failures = 0
    while True:
        trial = _unfinished(study) or (_next(study, plan) if len(_ended(study)) < wanted else None)
        if trial is None:
            break
        state = _run(study, trial, trials, plan)
        write_report(trials, study, plan)
        failures = failures + 1 if state == TrialState.FAIL else 0
        if failures == MOST_FAILURES:
            raise StageError(f"{failures} trials in a row failed, the last with: {_why(study)}")
    return write_report(trials, study, plan)


def open_study(trials: Trials, plan: Plan, name: str = "", seed: int = 0) -> "optuna.Study":
    """The study of a plan, made if it is not there.

    Raises:
        Conflict: a study of this name was of another plan.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = plan.asked()
    name = name or f"{plan.objective}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    study = optuna.create_study(
        study_name=name, storage=f"sqlite:///{trials.settings.var_dir / 'searches.db'}", load_if_exists=True,
        direction="minimize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )  # fmt: skip
    was = study.user_attrs.setdefault("asked", asked)
    if was != asked:
        raise Conflict(f"the search {name!r} had other ranges, settings or another objective; take another name")
    study.set_user_attr("asked", asked)
    return study


def _next(study: "optuna.Study", plan: Plan) -> "optuna.Trial":
    return study.ask({r.name: r.distribution() for r in plan.ranges})


def _unfinished(study: "optuna.Study") -> "optuna.Trial | None":
    """The trial that a search was at when it was killed."""
    import optuna

    found = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return optuna.Trial(study, found[0]._trial_id) if found else None


def _ended(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _why(study: "optuna.Study") -> str:
    return str(_ended(study)[-1].user_attrs.get("error", ""))


def _run(study: "optuna.Study", trial: "optuna.Trial", trials: Trials, plan: Plan) -> "optuna.trial.TrialState":
    """Run a trial, or the rest of it, and tell the study how it ended."""
    from optuna.trial import TrialState

    if "cycle_id" not in trial.user_attrs:
        trial.set_user_attr("cycle_id", trials.request(plan.overrides(trial.params), plan.stages))
    cycle_id = int(trial.user_attrs["cycle_id"])
    try:
        with _pruning(trial, trials, cycle_id):
            cycle = _finished(trials, cycle_id)
        if cycle.state == "cancelled":
            return study.tell(trial, state=TrialState.PRUNED).state
        figures = trials.figures(cycle_id)
        cost = OBJECTIVES[plan.objective].cost(figures)
        if not math.isfinite(cost):
            raise StageError(f"{OBJECTIVES[plan.objective].about} is undefined")
    except (StageError, NotFound) as error:
        trial.set_user_attr("error", error.message)
        return study.tell(trial, state=TrialState.FAIL).state
    trial.set_user_attr("figures", figures)
    if "failed" in figures and "failed gate checks" not in trial.constraints:
        trial.set_constraint("failed gate checks", float(len(figures["failed"])))
    return study.tell(trial, cost).state


def _finished(trials: Trials, cycle_id: int) -> Cycle:
    """The trial's cycle, run to its end if it has not come to it.

    Raises:
        StageError: it failed.
        NotFound: the database has no such cycle.
    """
    with trials.db.read() as session:
        cycle = session.get(Cycle, cycle_id)
    if cycle is None:
        raise NotFound(f"there is no cycle {cycle_id} in {trials.settings.var_dir}")
    if cycle.state in UNFINISHED:
        return trials.finish()
    if cycle.state == "failed":
        raise StageError(cycle.outcome or "it failed")
    return cycle


# Ending a trial early -------------------------------------------------------------------------------------------------


@contextmanager
def _pruning(trial: "optuna.Trial", trials: Trials, cycle_id: int) -> Iterator[None]:
    """While the block runs, cancel the trial's cycle where its update does worse than those before it."""
    over = threading.Event()

    def watch() -> None:
        told = 0
        while not over.wait(LOOK_S):
            seen = training_cost(trials, cycle_id)
            if seen is None or seen[0] <= told:
                continue
            told, cost = seen
            trial.report(cost, told)
            if trial.should_prune():
                with trials.db.session() as session:
                    cancel_cycle(session, cycle_id, ACTOR)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except Cancelled:
        pass
    finally:
        over.set()
        watcher.join()


def training_cost(trials: Trials, cycle_id: int) -> tuple[int, float] | None:
    """How badly a running update does by its own word: tenths of its steps that are done, and the mean over its last steps
    of the share of pairs ranked wrongly, or of the reward taken negative. None where it says nothing yet.
    """
    with trials.db.read() as session:
        run = session.scalar(select(StageRun).where(StageRun.cycle_id == cycle_id, StageRun.name == "update"))
        if run is None or run.state != "running" or run.progress < LEAST_SHARE:
            return None
        rows = session.scalars(
            select(StageStep.figures).where(StageStep.stage_run_id == run.id).order_by(StageStep.step)
        ).all()
        share = run.progress
    tail = rows[-max(1, round(len(rows) * TAIL_FRAC)) :]
    costs = [cost for row in tail if (cost := _step_cost(row)) is not None]
    return (int(share * 10), math.fsum(costs) / len(costs)) if costs else None


def _step_cost(row: dict[str, Any]) -> float | None:
    if (reward := row.get("reward")) is not None:
        return -float(reward)
    accuracy = row.get("rewards/accuracies")
    return 1.0 - float(accuracy) if accuracy is not None else None


# The report -----------------------------------------------------------------------------------------------------------


def write_report(trials: Trials, study: "optuna.Study", plan: Plan) -> dict[str, Any]:
    """`report`, also as `searches/NAME.json` and `.md`."""
    found = report(study, plan)
    folder = trials.settings.var_dir / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{study.study_name}.json", found)
    write_text(folder / f"{study.study_name}.md", as_text(found))
    return found | {"folder": str(folder)}


def report(study: "optuna.Study", plan: Plan) -> dict[str, Any]:
    """What a study came to: name, objective, every trial, the best one, and its settings as lines for `.env`.

    The best is the one of least cost among those that fail no check of the gate; where there is none, among all, and
    `passes` says so.
    """
    rows = [_row(trial) for trial in study.get_trials(deepcopy=False)]
    done = [row for row in rows if row["cost"] is not None]
    passing = [row for row in done if not row["failed"]]
    best = min(passing or done, key=lambda row: (row["cost"], row["trial"]), default=None)
    return {
        "name": study.study_name,
        "objective": OBJECTIVES[plan.objective].about,
        "ranges": {r.name: list(r.choices) or [r.low, r.high] for r in plan.ranges},
        "trials": rows,
        "best": best,
        "passes": bool(passing),
        "env": env_lines(plan.trained(best["params"]), set(best["params"])) if best else [],
    }


def _row(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    figures = trial.user_attrs.get("figures", {})
    rates = figures.get("candidate", {})
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "params": dict(trial.params),
        "cost": trial.value if trial.state.name == "COMPLETE" else None,
        "failed": figures.get("failed", []),
        "harmful_compliance": rates.get("harmful_compliance"),
        "benign_refusal": rates.get("benign_refusal"),
        "heldout_raised": figures.get("heldout_raised"),
        "reward": figures.get("reward"),
        "seconds": figures.get("seconds"),
        "error": trial.user_attrs.get("error"),
        "cycle_id": trial.user_attrs.get("cycle_id"),
    }


def env_lines(overrides: Overrides, found: set[str]) -> list[str]:
    """Settings as lines for `.env`: those that were found first, then those that were fixed for all trials."""
    lines: dict[bool, list[str]] = {True: [], False: []}
    for stage, values in overrides.items():
        for field, value in values.items():
            said = value if isinstance(value, str) else json.dumps(value)
            lines[f"{stage}.{field}" in found].append(f"DUNNOCK_{stage.upper()}__{field.upper()}={said}")
    return ["# found", *lines[True], *(["# as in all trials", *lines[False]] if lines[False] else [])]


def as_text(found: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    names = list(found["ranges"])
    head = ["trial", "state", *names, "cost", "harmful complied", "benign refused", "pairs raised", "gate fails"]
    rows = [[str(cell) for cell in _cells(row, names)] for row in found["trials"]]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    best = found["best"]
    told = "No trial has come to its end."
    if best:
        passes = "which fails no check" if found["passes"] else "but no trial passes all checks of the gate"
        lines = "\n".join(found["env"])
        told = f"Best: trial {best['trial']}, cost {best['cost']:.4g}, {passes}.\n\n```\n{lines}\n```"
    return f"# {found['name']}\n\nCost: {found['objective']}; less is better.\n\n{table}\n\n{told}\n"


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    yield from (row["trial"], row["state"])
    for name in names:
        value = row["params"].get(name, "")
        yield f"{value:.4g}" if isinstance(value, float) else value
    yield "" if row["cost"] is None else f"{row['cost']:.4g}"
    for name in ("harmful_compliance", "benign_refusal"):
        yield f"{row[name]['rate']:.1%} (n {row[name]['n']})" if row[name] else ""
    raised = row["heldout_raised"]
    yield f"{raised[0]}/{raised[1]}" if raised else ""
    yield row["error"] or ", ".join(row["failed"])
