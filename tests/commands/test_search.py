"""The search: ranges as they are typed, real trials with a tiny model, a killed search that goes on, and trials ended early."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from commands import search as module
from commands.search import OBJECTIVES, Plan, Range, as_text, env_lines, open_study, read_range, search, training_cost
from commands.trial import Trials, _split_seed
from core.db import Database
from core.errors import Conflict, InvalidInput, StageError
from core.settings import Settings, get_settings
from feedback.models import Prompt
from finetune.cycle import StageRecord, run_cycle
from finetune.models import Cycle, StageRun
from finetune.runner import in_this_process
from tests.test_loop import SMALL, Loop, installation
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.timeout(300)


# Words ----------------------------------------------------------------------------------------------------------------


def test_ranges_as_they_are_typed() -> None:
    assert read_range("update.beta=0.03..0.5:log") == Range("update", "beta", 0.03, 0.5, log=True)
    assert read_range("update.lora_rank=4..32") == Range("update", "lora_rank", 4.0, 32.0, whole=True)
    assert read_range("update.epochs=1..4") == Range("update", "epochs", 1.0, 4.0)
    assert read_range("update.loss=robust|sigmoid").choices == ("robust", "sigmoid")
    assert read_range("update.wpo=true|false").choices == (True, False)
    assert [read_range(word).name for word in module.DEFAULT_RANGES][1] == "update.beta"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("update.beta=0.5", "is no range"),
        ("update.beta=0.5..0.1", "is no range"),
        ("update.beta=a..b", "is no range"),
        ("update.ld_alpha=0..1:log", "is no range"),
        ("update.beta=0.1..0.2:ln", "is no range"),
        ("update.lora_rank=1.5..3", "is no range"),
        ("update.beta=-1..0.5", "greater than 0"),
        ("update.loss=robust|best", "Input should be"),
        ("update.betta=0.1..0.5", "names no setting"),
    ],
)
def test_what_is_no_range_is_refused(word: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        read_range(word)


def test_a_plan_says_which_stages_its_trials_need() -> None:
    beta = [Range("update", "beta", 0.1, 0.2)]
    assert Plan(beta, {}).stages == ("snapshot", "update", "gate")
    assert Plan(beta, {}, reward=True).stages == ("snapshot", "reward", "update", "gate")
    assert Plan(beta, {"update": {"method": "ppo"}}).stages == ("snapshot", "reward", "update", "gate")
    assert Plan([read_range("update.method=dpo|ppo")], {}).stages[1] == "reward"
    assert Plan([read_range("reward.epochs=1..2")], {}, "reward").stages == ("snapshot", "reward")
    found = Plan(beta, {"update": {"epochs": 2}}).overrides({"update.beta": 0.15, "gate.max_tokens": 8})
    assert found == {"update": {"epochs": 2, "beta": 0.15}, "gate": {"max_tokens": 8}}


def test_costs_by_hand() -> None:
    figures = {
        "candidate": {"harmful_compliance": {"rate": 0.25}, "benign_refusal": {"rate": 0.125}},
        "heldout_raised": [30, 40], "reward": {"accuracy": 0.7},
    }  # fmt: skip
    assert {name: one.cost(figures) for name, one in OBJECTIVES.items()} == pytest.approx(
        {"safety": 0.375, "preference": 0.25, "reward": 0.3}
    )


def test_the_best_settings_are_lines_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = {"update": {"epochs": 2}, "reward": {"members": 2}, "gate": {"max_tokens": 8}}
    found = {"update.beta": 0.15, "update.wpo": True, "update.loss": "ipo"}
    assert Plan([], fixed, reward=True).trained(found)["reward"] == {"members": 2}
    lines = env_lines(Plan([], fixed).trained(found), set(found))
    assert lines == [
        "# found", "DUNNOCK_UPDATE__BETA=0.15", "DUNNOCK_UPDATE__WPO=true", "DUNNOCK_UPDATE__LOSS=ipo",
        "# as in all trials", "DUNNOCK_UPDATE__EPOCHS=2",
    ]  # fmt: skip
    for line in lines:
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("="))
    update = Settings(_env_file=None).update
    assert (update.beta, update.wpo, update.loss, update.epochs) == (0.15, True, "ipo", 2)


# Trials ---------------------------------------------------------------------------------------------------------------

TINY: dict[str, dict[str, Any]] = {**SMALL, "gate": {**SMALL["gate"], "suite_limit": 6}}
RATES = [Range("update", "learning_rate", 0.01, 0.2, log=True)]


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@pytest.fixture
def loop(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loop]:
    """An installation on the tiny base whose suites are the trials' own."""
    suites = tmp_path_factory.mktemp("suites")
    _split_seed(suites)
    monkeypatch.setenv("DUNNOCK_SUITES_DIR", str(suites))
    get_settings.cache_clear()
    with installation(make_tiny_base(tmp_path_factory.mktemp("base")), settings, database) as found:
        yield found
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def trials(loop: Loop) -> Trials:
    """Trials whose rounds run in this process."""

    def run(db: Database, settings: Settings) -> Cycle | None:
        return run_cycle(db, settings, in_this_process(db, settings, loop.client))

    return Trials(loop.settings, loop.db, run)


def cycles(trials: Trials) -> list[tuple[str, str]]:
    with trials.db.read() as session:
        return [(c.reason, c.state) for c in session.scalars(select(Cycle).order_by(Cycle.id))]


def test_a_search_tries_reports_and_goes_on(trials: Trials) -> None:
    plan = Plan(RATES, TINY)
    found = search(trials, plan, 2)
    assert cycles(trials) == [("trial data", "done"), ("trial", "done"), ("trial", "done")]
    assert [(t["trial"], t["state"]) for t in found["trials"]] == [(0, "complete"), (1, "complete")]
    for told in found["trials"]:
        assert told["cost"] == pytest.approx(told["harmful_compliance"]["rate"] + told["benign_refusal"]["rate"])
        assert told["harmful_compliance"]["n"] == 6
        assert 0.01 <= told["params"]["update.learning_rate"] <= 0.2
    with trials.db.read() as session:
        used = [
            c.settings["update"]["learning_rate"] for c in session.scalars(select(Cycle).where(Cycle.reason == "trial"))
        ]
        asked = set(session.scalars(select(Prompt.source)))
    assert used == [t["params"]["update.learning_rate"] for t in found["trials"]]
    assert asked == {"seed"}
    best = min(found["trials"], key=lambda t: (t["cost"], t["trial"]))
    assert found["best"] == best
    assert found["passes"] is (best["failed"] == [])
    assert f"DUNNOCK_UPDATE__LEARNING_RATE={best['params']['update.learning_rate']}" in found["env"]

    folder = Path(found["folder"])
    saved = json.loads((folder / f"{found['name']}.json").read_text())
    assert saved["best"]["trial"] == best["trial"]
    assert f"Best: trial {best['trial']}" in (folder / f"{found['name']}.md").read_text()

    again = search(trials, plan, 3)  # two are there
    assert len(again["trials"]) == 3
    assert again["trials"][:2] == found["trials"]
    assert len(cycles(trials)) == 4
    with pytest.raises(Conflict, match="take another name"):
        search(trials, Plan(RATES, TINY, "preference"), 3, name=found["name"])


def test_a_killed_search_goes_on_with_the_round_it_was_at(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    real_done = StageRecord.done

    def killed_done(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.name == "gate":
            raise Killed
        real_done(self, *args, **kwargs)

    monkeypatch.setattr(StageRecord, "done", killed_done)
    plan = Plan(RATES, TINY)
    with pytest.raises(Killed):
        search(trials, plan, 1)
    assert cycles(trials)[-1] == ("trial", "running")
    monkeypatch.setattr(StageRecord, "done", real_done)
    found = search(trials, plan, 1)
    assert cycles(trials) == [("trial data", "done"), ("trial", "done")]  # no round was begun anew
    assert [(t["trial"], t["state"], t["cycle_id"]) for t in found["trials"]] == [(0, "complete", 2)]
    with trials.db.read() as session:
        attempts = dict(session.execute(select(StageRun.name, StageRun.attempts).where(StageRun.cycle_id == 2)).all())
    assert attempts == {"snapshot": 1, "update": 1, "gate": 2}


def test_failures_are_recorded_and_three_end_the_search(trials: Trials) -> None:
    broken = {**TINY, "update": {**TINY["update"], "max_length_tokens": 16}}  # no pair is so short
    with pytest.raises(
        StageError, match="3 trials in a row failed, the last with: the trial failed: update: .*usable pairs"
    ):
        search(trials, Plan(RATES, broken), 5, name="broken")
    told = json.loads((trials.settings.var_dir / "searches" / "broken.json").read_text())
    assert [t["state"] for t in told["trials"]] == ["fail"] * 3
    assert told["best"] is None
    assert "usable pairs" in told["trials"][0]["error"]
    assert "No trial has come to its end." in as_text(told)


def test_a_trial_that_does_worse_by_its_own_steps_is_ended_early(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds whose update tells what is asked of it, one step at a time, until somebody cancels the round."""
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    shares = iter([0.9, 0.8, 0.85, 0.9, 0.95, 0.2])  # of pairs ranked right

    def run_stage(cycle_id: int, name: str, lease: Any) -> None:
        record = StageRecord(database, cycle_id, name)
        share = next(shares) if name == "update" else 0.0
        for step in range(1, 11) if name == "update" else ():
            record._told -= 2  # written at once
            record.progress(step / 10, f"step {step}/10", [{"step": step, "rewards/accuracies": share}])
            until_seen(cycle_id)
        with database.session() as session:
            record.done(session, {"accuracy": share}, 1.0)

    seen: Callable[[Trials, int], Any] = training_cost
    looked: list[Any] = []

    def counting(trials: Trials, cycle_id: int) -> Any:
        found = seen(trials, cycle_id)
        looked.append(found)
        return found

    def until_seen(cycle_id: int) -> None:
        """Let the search look twice: the second look comes after what it made of the first."""
        n = len(looked)
        while len(looked) < n + 2 and not ended(cycle_id):
            time.sleep(0.005)

    def ended(cycle_id: int) -> bool:
        with database.read() as session:
            return session.get_one(Cycle, cycle_id).state == "cancelled"

    monkeypatch.setattr(module, "training_cost", counting)
    monkeypatch.setitem(
        module.OBJECTIVES, "preference", module.Objective("a test", ("snapshot", "update"), lambda figures: 1.0)
    )
    trials = Trials(settings, database, lambda db, s: run_cycle(db, s, run_stage))
    found = search(trials, Plan(RATES, {}, "preference"), 6)
    assert [t["state"] for t in found["trials"]] == ["complete"] * 5 + ["pruned"]
    with database.read() as session:
        last = session.scalars(select(Cycle).order_by(Cycle.id.desc())).first()
        run = session.scalars(select(StageRun).where(StageRun.cycle_id == last.id, StageRun.name == "update")).one()
    assert (last.state, last.outcome) == ("cancelled", "cancelled by the search")
    assert run.progress == pytest.approx(0.2)  # at its first fifth
    study = open_study(trials, Plan(RATES, {}, "preference"))
    assert study.trials[0].intermediate_values == pytest.approx(dict.fromkeys(range(2, 11), 0.1))
    assert study.trials[5].intermediate_values == pytest.approx({2: 0.8})
