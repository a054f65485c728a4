"""The whole round with a tiny model: collect → rate → snapshot → reward → update → gate → promote → serve → roll back.

Real parts throughout: a real engine on a port, real trainers, a real database, the web app. Only the model
is tiny and random, so the gate's thresholds are opened for the rounds that shall pass.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from commands.database import prepare
from commands.demo_report import build_report, write_report
from core.artifacts import hash_folder
from core.db import Database
from core.errors import Conflict, DunnockError
from core.settings import Settings
from feedback.assignment.leases import next_assignment
from feedback.models import Completion, Judgment, Snapshot, Task
from finetune.cycle import DEMO_STAGES, Cycle, request_cycle, run_cycle
from finetune.models import StageRun
from finetune.runner import in_this_process
from policy.client import EngineClient
from policy.models import GateReport, PolicyVersion, Promotion
from policy.versions import active_version, rollback
from reward.models import RewardModel, newest_model
from serving.chat import close_chat
from serving.deferred import wait
from serving.routing import engine_client
from tests.factories import make_pairwise_task, make_person, make_policy_version
from tests.policy.engine.live import LiveEngine
from tests.tiny import make_tiny_adapter, make_tiny_base

OPEN_GATE = {
    "max_harmful_compliance": 1.0,
    "max_benign_refusal_rise": 1.0,
    "max_kl_nats_per_token": 1e9,
    "max_reference_nll_rise": 1e9,
    "max_capability_drop": 1.0,
    "max_length_ratio": 1e9,
    "min_heldout_preference": 0.0,
}
SMALL = {
    "collect": {"prompts_per_suite": 20, "max_completion_tokens": 8, "temperature": 0.0},
    "snapshot": {"include_simulated": True, "heldout_frac": 0.3},
    "reward": {"batch_size": 8, "lora_rank": 2, "lora_top_layers": 1},
    "update": {"batch_size": 8, "epochs": 2.0, "lora_rank": 4, "lora_top_layers": 1, "learning_rate": 0.1},
    "gate": {"max_tokens": 8, "suite_limit": 24, **OPEN_GATE},
}


PPO = {
    **SMALL,
    "update": {"method": "ppo"},
    "ppo": {
        "steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "max_completion_tokens": 6, "minibatch_size": 8,
        "learning_rate": 0.05, "lora_rank": 4, "lora_top_layers": 1, "value_top_layers": 1, "require_bar": False,
        "step_kl_limit": 0.0, "kl_limit": 0.0,
    },
}  # fmt: skip


@dataclass
class Loop:
    """One installation with a tiny base: settings, database, engine, web app."""

    settings: Settings
    db: Database
    client: EngineClient
    app: Flask

    def round(self, overrides: dict[str, dict[str, Any]] = SMALL) -> Cycle:
        """Request a demo round and run it to its end."""
        with self.db.session() as session:
            request_cycle(session, self.settings, "demo", stages=DEMO_STAGES, overrides=overrides)
        cycle = self.resume()
        assert cycle is not None
        return cycle

    def resume(self) -> Cycle | None:
        """Run whatever is unfinished."""
        return run_cycle(self.db, self.settings, in_this_process(self.db, self.settings, self.client))

    def ask(self) -> tuple[str, str]:
        """The chat API's answer to a fixed prompt: which version, what text."""
        body = {
            "model": "dunnock",
            "messages": [{"role": "user", "content": "Where do birds sleep?"}],
            "temperature": 0,
            "max_tokens": 12,
        }
        answer = self.app.test_client().post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json["model"], answer.json["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def loop(tiny_base: Path, settings: Settings, database: Database) -> Iterator[Loop]:
    with installation(tiny_base, settings, database) as found:
        yield found


@pytest.fixture(params=["database", "postgres_database"], ids=["sqlite", "postgresql"])
def loop_on_both(request: pytest.FixtureRequest, tiny_base: Path, settings: Settings) -> Iterator[Loop]:
    with installation(tiny_base, settings, request.getfixturevalue(request.param)) as found:
        yield found


@contextmanager
def installation(tiny_base: Path, settings: Settings, database: Database) -> Iterator[Loop]:
    """A prepared database, a live engine and the web app, on the tiny base."""
    from app import create_app

    engine = LiveEngine(tiny_base, settings.artifact_dir).start()
    settings = settings.model_copy(
        update={"base_model": str(tiny_base), "engine_url": engine.url, "api_auth": "open", "device": "cpu"}
    )
    prepare(database, settings)
    client = EngineClient(settings.engine_base_url)
    app = create_app(settings, database)
    yield Loop(settings, database, client, app)
    client.close()
    engine_client(settings, app).close()
    wait(close_chat(app))
    engine.stop()


def test_a_round_ends_with_a_promoted_version_that_the_running_server_answers_with(
    loop_on_both: Loop, tmp_path: Path
) -> None:
    loop = loop_on_both
    assert loop.ask()[0] == "base"
    before = loop.ask()[1]

    cycle = loop.round()

    assert (cycle.state, cycle.outcome) == ("promoted", "v1 is active")
    name, after = loop.ask()
    assert name == "v1"
    assert after != before  # another policy speaks, from the same process
    with loop.db.read() as session:
        version = active_version(session)
        assert version.snapshot_id is not None
        assert version.adapter_path is not None
        assert hash_folder(loop.settings.artifact_dir / version.adapter_path) == version.adapter_sha256
        assert session.scalars(select(Judgment.simulated)).unique().all() == [True]
        assert sorted(session.scalars(select(RewardModel.kind))) == ["preference", "rules"]
        report = build_report(session, cycle.id)
    written = write_report(tmp_path, report)
    saved = json.loads((tmp_path / "demo.json").read_text())
    assert {"base", "promoted", "reward", "policy_version", "stages", "seconds"} <= saved.keys()
    assert saved["promoted"]["harmful_compliance"].keys() == {"rate", "n", "low", "high"}
    assert [s["name"] for s in saved["stages"]] == list(DEMO_STAGES)
    assert "v1" in written

    with loop.db.session() as session:
        rollback(session, actor="test", reason="a trial")
    assert loop.ask() == ("base", before)
    with loop.db.read() as session:
        assert [p.kind for p in session.scalars(select(Promotion).order_by(Promotion.id))] == [
            "first",
            "promote",
            "rollback",
        ]


def test_a_candidate_that_fails_a_check_is_refused_and_the_incumbent_stays(loop: Loop) -> None:
    strict = {**SMALL, "gate": {**SMALL["gate"], "max_kl_nats_per_token": 1e-12}}

    cycle = loop.round(strict)

    assert cycle.state == "refused"
    assert "KL to the base" in (cycle.outcome or "")
    assert loop.ask()[0] == "base"
    with loop.db.read() as session:
        version = session.scalars(select(PolicyVersion).where(PolicyVersion.name == "v1")).one()
        assert version.state == "refused"
        assert session.scalars(select(GateReport.passed)).all() == [False]
    assert "v1" not in loop.client.models()
    body = {"model": "v1", "messages": [{"role": "user", "content": "Hello"}]}
    assert loop.app.test_client().post("/v1/chat/completions", json=body).status_code == 404


@pytest.mark.parametrize(("method", "rollouts"), [("ppo", "engine"), ("grpo", "generate")])
def test_a_round_by_rewards_ends_with_a_candidate_that_the_gate_judges(loop: Loop, method: str, rollouts: str) -> None:
    before = loop.ask()[1]

    cycle = loop.round({**PPO, "update": {"method": method}})

    assert (cycle.state, cycle.outcome) == ("promoted", "v1 is active")
    assert loop.ask()[0] == "v1"
    assert loop.ask()[1] != before
    with loop.db.read() as session:
        version, reward = active_version(session), newest_model(session, "preference")
        result = session.scalars(select(StageRun.result).where(StageRun.name == "update")).one() or {}
        report = session.scalars(select(GateReport)).one()
    assert (result["method"], result["rollouts"], result["samples"]) == (method, rollouts, 16)
    assert reward is not None
    assert result["reward_sha256"] == reward.sha256
    assert result["log"]
    assert (report.policy_version_id, report.passed) == (version.id, True)
    record = json.loads((loop.settings.artifact_dir / "adapters/v1/run.json").read_text())
    assert (record["method"], record["reference"]) == (method, version.reference)
    assert record["snapshot_sha256"] == result["snapshot_sha256"]
    assert loop.client.models() == ["base", "v1"]  # no adapter of a rollout is left
    assert list((loop.settings.artifact_dir / "rollouts").glob("*")) == []


@pytest.mark.parametrize(
    ("stages", "changes", "told"),
    [
        (("collect", "rate", "snapshot", "update"), {}, "cycle 1 has no reward model"),
        (DEMO_STAGES, {"require_bar": True}, "does not clear its bar"),
    ],
)
def test_an_update_by_ppo_without_a_reward_model_that_clears_its_bar_fails(
    loop: Loop, stages: tuple[str, ...], changes: dict[str, Any], told: str
) -> None:
    overrides = {**PPO, "ppo": {**PPO["ppo"], **changes}}
    with loop.db.session() as session:
        request_cycle(session, loop.settings, "demo", stages=stages, overrides=overrides)
    cycle = loop.resume()
    assert cycle is not None
    assert cycle.state == "failed"
    assert told in (cycle.outcome or "")
    with loop.db.read() as session:
        assert session.scalars(select(PolicyVersion.name)).all() == ["base"]
    assert not (loop.settings.artifact_dir / "adapters/v1").exists()


def test_the_next_round_asks_first_what_the_reward_model_can_hardly_tell_apart(loop: Loop) -> None:
    with loop.db.session() as session:
        imported = [make_pairwise_task(session, source=f"import:{n}").id for n in range(12)]
    loop.round({**SMALL, "gate": {**SMALL["gate"], "max_kl_nats_per_token": 1e-12}})
    with loop.db.session() as session:
        collected = select(Task.pool).where(Task.source.like("cycle:%"))
        assert set(session.scalars(collected)) == {"uniform"}  # there was no reward model yet
        waiting = Counter(session.scalars(select(Task.pool).where(Task.id.in_(imported))))
        assert waiting["informative"] > waiting["uniform"] > 0  # once there was one, what waited was ranked
        request_cycle(session, loop.settings, "manual", stages=("collect",), overrides=SMALL)
    cycle = loop.resume()
    assert cycle is not None
    with loop.db.read() as session:
        tasks = session.scalars(select(Task).where(Task.source.like(f"cycle:{cycle.id}:%"))).all()
        result = session.scalars(select(StageRun.result).where(StageRun.cycle_id == cycle.id)).one()
    pools = Counter(task.pool for task in tasks)
    assert set(pools) == {"uniform", "informative"}
    assert result["informative"] == pools["informative"] > pools["uniform"]
    assert all(task.why.startswith("rewards differ by") for task in tasks if task.pool == "informative")


def test_two_versions_are_compared_blind_before_all_other_work(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_tiny_adapter(Path(loop.settings.base_model), loop.settings.artifact_dir / "v1")
    names = ("v1", "base")
    with loop.db.session() as session:
        base = active_version(session)
        make_policy_version(
            session, "v1", "candidate", base_model=base.base_model, base_sha256=base.base_sha256, adapter_path="v1",
            adapter_sha256=hash_folder(adapter),
        )  # fmt: skip
        request_cycle(session, loop.settings, "compare", stages=["compare"], compare=names, overrides=SMALL)
    real = EngineClient.complete_many

    def killed(self: EngineClient, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(EngineClient, "complete_many", fails)
        return real(self, *args, **kwargs)

    def fails(self: EngineClient, *args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(EngineClient, "complete_many", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.resume()
    monkeypatch.setattr(EngineClient, "complete_many", real)
    cycle = loop.resume()
    assert cycle is not None
    assert cycle.state == "done"
    with loop.db.session() as session:
        result = session.scalars(select(StageRun.result).where(StageRun.cycle_id == cycle.id)).one()
        tasks = session.scalars(select(Task).where(Task.pool == "canary")).all()
        assert (result["candidate"], result["incumbent"]) == names
        assert (len(tasks), result["tasks"] + result["alike"]) == (result["tasks"], 40)
        assert len(tasks) > 20
        for task in tasks:
            wrote = [session.get_one(PolicyVersion, each.policy_version_id).name for each in task.completions]
            assert (wrote, task.state) == (list(names), "live")
            assert task.completions[0].text != task.completions[1].text
        answers = select(Completion.once).where(Completion.once.like(f"cycle:{cycle.id}:%"))
        assert len(session.scalars(answers).all()) == 80
        make_pairwise_task(session, priority=99)
        assignment = next_assignment(session, make_person(session).id, 60)
        assert assignment is not None
        assert assignment.task.pool == "canary"


@pytest.mark.parametrize("stage", DEMO_STAGES)
def test_a_round_killed_in_a_stage_goes_on_and_doubles_nothing(
    loop: Loop, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes at the worst moment: the stage's work is done, its row is not."""
    from finetune import cycle as cycle_module

    class Killed(BaseException):
        pass

    real_done = cycle_module.StageRecord.done

    def killed_done(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.name == stage:
            raise Killed
        real_done(self, *args, **kwargs)

    with loop.db.session() as session:
        request_cycle(session, loop.settings, "demo", stages=DEMO_STAGES, overrides=SMALL)
    monkeypatch.setattr(cycle_module.StageRecord, "done", killed_done)
    with pytest.raises(Killed):
        loop.resume()
    monkeypatch.setattr(cycle_module.StageRecord, "done", real_done)

    cycle = loop.resume()

    assert cycle is not None
    assert (cycle.id, cycle.state) == (1, "promoted")
    with loop.db.read() as session:
        assert session.scalar(select(func.count(Task.id))) == 40
        assert session.scalar(select(func.count(Judgment.id))) == 40
        assert session.scalar(select(func.count(Completion.id)).where(Completion.source == "rollout")) == 40
        for table in (Snapshot, GateReport):
            assert session.scalar(select(func.count(table.id))) == 1
        assert sorted(session.scalars(select(RewardModel.kind))) == ["preference", "rules"]
        assert [p.kind for p in session.scalars(select(Promotion).order_by(Promotion.id))] == ["first", "promote"]
        attempts = dict(session.execute(select(StageRun.name, StageRun.attempts)).all())
    assert attempts == {name: 2 if name == stage else 1 for name in DEMO_STAGES}


def test_simulated_judgments_stay_out_unless_asked_for(loop: Loop) -> None:
    cycle = loop.round({**SMALL, "snapshot": {"include_simulated": False, "heldout_frac": 0.3}})

    assert cycle.state == "failed"
    assert "left_out_simulated" in (cycle.outcome or "")
    assert "snapshot" in (cycle.outcome or "")


def test_a_damaged_adapter_is_not_promoted(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import stages

    real_gate = stages.STAGES["gate"]

    def gate_then_damage(context: Any) -> None:
        real_gate(context)
        with (loop.settings.artifact_dir / "adapters/v1/adapter_model.safetensors").open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\xff\xff\xff\xff")

    monkeypatch.setitem(stages.STAGES, "gate", gate_then_damage)

    cycle = loop.round()

    assert cycle.state == "failed"
    assert "hashes to" in (cycle.outcome or "")
    assert loop.ask()[0] == "base"


def test_one_round_at_a_time(loop: Loop) -> None:
    from finetune.lease import HeldLease

    with loop.db.session() as session:
        first = request_cycle(session, loop.settings, "manual").id
        assert request_cycle(session, loop.settings, "cron").id == first
    with HeldLease(loop.db, "cycle", 60), pytest.raises(Conflict, match="one at a time"):
        loop.resume()


def test_a_cancelled_round_stops_at_its_next_step(loop: Loop) -> None:
    from finetune.cycle import StageRecord, cancel_cycle

    with loop.db.session() as session:
        cycle_id = request_cycle(session, loop.settings, "manual").id
    record = StageRecord(loop.db, cycle_id, "update")
    with loop.db.session() as session:
        cancel_cycle(session, cycle_id, "ana")
    with pytest.raises(DunnockError, match="cancelled"):
        record.progress(1.0, "last step")
    assert loop.resume() is None
