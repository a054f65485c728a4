"""The reward stage of a round, with a tiny base: what it registers, what the bar stops, and what is not done twice."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from core.artifacts import hash_folder
from core.db import Database
from core.errors import ArtifactError, StageError
from core.settings import GuardSettings, Settings
from feedback.models import RuleVersion, Task
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import stays_uniform
from finetune.context import StageContext
from finetune.cycle import StageRecord, reopen_cycle, request_cycle, run_cycle
from finetune.guard import OFF
from finetune.informative import rank_waiting
from finetune.models import Cycle, StageRun
from finetune.rewards import open_rewards, rule_weights
from finetune.runner import in_this_process
from policy.client import EngineClient
from reward.guard.distil import BELOW_BAR
from reward.guard.encoder import Encoder
from reward.guard.student import Student
from reward.members import POOLING
from reward.models import RewardModel
from reward.service import RewardService
from tests.factories import NOUNS, make_pairwise_task, make_person, make_prompt, question
from tests.feedback.quality.rows import checks, choose
from tests.reward.conftest import make_tiny_encoder
from tests.tiny import make_tiny_base

SMALL = {
    "snapshot": {"heldout_frac": 0.4},
    "reward": {
        "members": 2, "epochs": 1.0, "rule_epochs": 1.0, "rule_folds": 2, "lora_rank": 2, "lora_top_layers": 1,
        "learning_rate": 5e-3,
    },
}  # fmt: skip
NO_ENGINE = cast(EngineClient, None)  # neither stage asks it


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny(settings: Settings, base: Path) -> Settings:
    return settings.model_copy(update={"base_model": str(base), "device": "cpu"})


def judge_pairs(db: Database, n: int = 40) -> None:
    """Pairs of two people who agree, and of one who guesses."""
    rng = random.Random(0)
    with db.session() as session:
        ana, ben, cleo = (make_person(session) for _ in range(3))
        for i in range(n):
            prompt = make_prompt(session, question(i))
            task = make_pairwise_task(session, prompt, a=f"I cannot help with {i}.", b=f"Here is that for {i}!")
            choose(session, task, {ana: "a", ben: "a", cleo: rng.choice(["a", "b", "tie"])})


def judge_rules(db: Database) -> None:
    """Verdicts on two rules: odd completions break them."""
    with db.session() as session:
        ensure_rules(session)
        ana, ben = make_person(session), make_person(session)
        for number, version in enumerate(active_rules(session)[:2]):
            for i in range(40):
                verdict = "broken" if i % 2 else "kept"
                prompt = make_prompt(session, f"{NOUNS[i % 15]}{i} with {NOUNS[(i * 7 + 2) % 15]}{number} on {i}?")
                (task,) = checks(session, version.id, [{ana: verdict, ben: verdict}])
                completion = task.completions[0]
                completion.prompt_id, completion.text = prompt.id, f"{'HELP' if i % 2 else 'Well'} {i} {number}."


def run(db: Database, settings: Settings, **reward: Any) -> Cycle:
    overrides = {**SMALL, "reward": SMALL["reward"] | reward}
    with db.session() as session:
        request_cycle(session, settings, "manual", stages=("snapshot", "reward"), overrides=overrides)
    return resume(db, settings)


def resume(db: Database, settings: Settings) -> Cycle:
    cycle = run_cycle(db, settings, in_this_process(db, settings, NO_ENGINE))
    assert cycle is not None
    return cycle


def models(db: Database) -> dict[str, RewardModel]:
    with db.read() as session:
        return {model.kind: model for model in session.scalars(select(RewardModel))}


def result(db: Database, cycle: Cycle) -> dict[str, Any]:
    with db.read() as session:
        query = select(StageRun.result).where(StageRun.cycle_id == cycle.id, StageRun.name == "reward")
        return session.scalar(query) or {}


def test_both_kinds_are_made_registered_and_asked(database: Database, tiny: Settings) -> None:
    judge_pairs(database)
    judge_rules(database)
    cycle = run(database, tiny)
    assert cycle.state == "done", cycle.outcome
    found = models(database)
    assert set(found) == {"preference", "rules"}
    for model in found.values():
        assert hash_folder(tiny.artifact_dir / model.path) == model.sha256
        assert model.cycle_id == cycle.id
    told = result(database, cycle)
    assert (told["members"], told["bootstrap"]) == (2, "prompt cluster")  # three annotators are too few to draw from
    assert told["rules"]["unseen"]["rules"] == 2
    assert "undefined" in told["guard"]  # the encoder is not in this test's cache folder, or the bar is not cleared
    assert told["rules"]["per_rule"] == found["rules"].evaluation["per_rule"]
    assert "log" in told
    assert "log" not in found["preference"].evaluation

    service = open_rewards(database, tiny)
    assert service is not None
    (score,) = service.explain([([{"role": "user", "content": "nest1?"}], "Here is that.")])
    assert score.sd > 0
    assert bool(score.broken) == found["rules"].clears_bar
    with database.session() as session:
        session.get_one(RewardModel, found["rules"].id).clears_bar = True
    service = open_rewards(database, tiny)
    assert service is not None
    (score,) = service.explain([([{"role": "user", "content": "nest1?"}], "Here is that.")])
    with database.read() as session:
        assert list(score.broken) == [version.rule.slug for version in active_rules(session)]


def test_without_verdicts_there_is_one_kind_and_the_reason(database: Database, tiny: Settings) -> None:
    judge_pairs(database)
    cycle = run(database, tiny)
    assert set(models(database)) == {"preference"}
    assert result(database, cycle)["rules"] == {
        "undefined": "only 0 verdicts on rules are to be trained on; at least 16 are needed"
    }


def test_below_its_bar_it_is_kept_and_ends_the_round(
    database: Database, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is not trained anew when the round is taken up again."""
    judge_pairs(database, 25)  # too few held out to show anything
    cycle = run(database, tiny, require_bar=True, epochs=0.1)
    assert cycle.state == "failed"
    assert "is kept, but may train no policy: its accuracy has a lower 95 % bound of" in (cycle.outcome or "")
    kept = models(database)["preference"]
    assert not kept.clears_bar
    assert (tiny.artifact_dir / kept.path / "run.json").exists()

    monkeypatch.setattr("reward.preference.train_reward", None)
    with database.session() as session:
        reopen_cycle(session, cycle.id)
    again = resume(database, tiny)
    assert (again.state, again.outcome) == (cycle.state, cycle.outcome)
    assert models(database)["preference"].sha256 == kept.sha256


def test_a_stage_that_fails_registers_nothing_half(
    database: Database, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preference model is done, that of rules breaks off; the next attempt makes that one alone."""
    judge_pairs(database)
    judge_rules(database)

    def full(*_: Any, **__: Any) -> None:
        raise StageError("a checkpoint could not be written: the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr("reward.rules.train_rules", full)
        cycle = run(database, tiny)
    assert cycle.state == "failed"
    assert "the disk is full" in (cycle.outcome or "")
    assert set(models(database)) == {"preference"}
    assert not (tiny.artifact_dir / f"rewards/cycle-{cycle.id}-rules").exists()
    with monkeypatch.context() as broken:
        broken.setattr("reward.preference.train_reward", None)
        with database.session() as session:
            reopen_cycle(session, cycle.id)
        assert resume(database, tiny).state == "done"
    assert set(models(database)) == {"preference", "rules"}
    assert result(database, cycle)["log"]


def test_the_guards_model_is_distilled_from_that_of_rules(database: Database, tiny: Settings, tmp_path: Path) -> None:
    """Where there is an encoder; a round without one says why, and one that is taken up again keeps it."""
    judge_pairs(database)
    judge_rules(database)
    no_encoder = run(database, tiny, guard="always")
    assert "the guard's encoder is not in" in result(database, no_encoder)["guard"]["undefined"]
    encoder = make_tiny_encoder(tmp_path / "encoder")
    given = tiny.model_copy(update={"guard": GuardSettings(encoder=str(encoder))})
    cycle = run(database, given, guard="always", rule_epochs=3.0)
    told = result(database, cycle)["guard"]
    with database.read() as session:
        model = session.scalar(select(RewardModel).where(RewardModel.kind == "guard"))
        teacher = session.scalar(
            select(RewardModel).where(RewardModel.kind == "rules", RewardModel.cycle_id == cycle.id)
        )
    assert model is not None
    assert teacher is not None
    assert told == model.evaluation
    assert hash_folder(tiny.artifact_dir / model.path) == model.sha256
    record = json.loads((tiny.artifact_dir / model.path / "run.json").read_text())
    assert record["teacher_sha256"] == teacher.sha256
    assert told["n_train"] > told["n_heldout"] > 0
    assert model.clears_bar <= teacher.clears_bar
    assert Student.load(tiny.artifact_dir / model.path, Encoder(encoder, "cpu")).p_broken(
        [("Hi", "HELP")], ["Be kind."]
    )


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_no_guards_model_where_it_is_off_or_its_teacher_below_the_bar(
    database: Database, tiny: Settings, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_pairs(database)
    judge_rules(database)
    monkeypatch.setattr("reward.rules._clears", lambda _: setting == "off")
    told = result(database, run(database, tiny, guard=setting))["guard"]
    assert told == {"undefined": BELOW_BAR if setting == "auto" else OFF}


def test_a_damaged_model_is_not_asked(database: Database, tiny: Settings) -> None:
    judge_pairs(database)
    run(database, tiny)
    folder = tiny.artifact_dir / models(database)["preference"].path
    (folder / "run.json").write_text(json.dumps({"stage": "reward", "pooling": POOLING, "scored_by": []}))
    with pytest.raises(ArtifactError, match="changed or damaged"):
        open_rewards(database, tiny)


def test_a_model_of_an_older_release_is_not_used(database: Database, tiny: Settings) -> None:
    judge_pairs(database)
    run(database, tiny)
    folder = tiny.artifact_dir / models(database)["preference"].path
    record = json.loads((folder / "run.json").read_text())
    del record["pooling"]
    (folder / "run.json").write_text(json.dumps(record))
    assert open_rewards(database, tiny) is None


def test_severity_is_what_a_rule_weighs(database: Database, tiny: Settings) -> None:
    with database.session() as session:
        ensure_rules(session)
        for severity, version in enumerate(session.scalars(select(RuleVersion).order_by(RuleVersion.id).limit(3)), 1):
            version.severity = severity
        session.flush()
        found = rule_weights(session, tiny.reward.model_copy(update={"rule_weight": 4.0}))
        assert [w.weight for w in found[:3]] == [2.0, 4.0, 6.0]
        assert [w.name for w in found] == [v.rule.slug for v in active_rules(session)]
        assert all(w.text for w in found)


def test_no_waiting_pair_is_scored_twice(database: Database, tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one at all that stays in the even sample whatever its score."""
    judge_pairs(database)
    with database.session() as session:
        waiting = [make_pairwise_task(session, a=f"Moss {i}.", b=f"Twigs {i}.").id for i in range(30)]
    scored: list[int] = []
    score = RewardService.score

    def counted(service: RewardService, items: Sequence[Any]) -> list[float]:
        scored.append(len(items))
        return score(service, items)

    monkeypatch.setattr(RewardService, "score", counted)
    cycle = run(database, tiny)
    with database.session() as session:
        informative = select(Task.id).where(Task.id.in_(waiting), Task.pool == "informative")
        ranked = len(session.scalars(informative).all())
        assert 0 < ranked < 30
        context = StageContext(database, tiny, NO_ENGINE, cycle.id, cast(StageRecord, None), {})
    assert scored == [2 * ranked]
    assert rank_waiting(context) == Counter(uniform=30 - ranked)
    assert scored == [2 * ranked]
    with database.session() as session:
        new = make_pairwise_task(session, a="Moss.", b="Twigs.", source=chosen_source()).id
    assert rank_waiting(context) == Counter(uniform=30 - ranked, informative=1)
    assert scored == [2 * ranked, 2]
    with database.read() as session:
        assert session.get_one(Task, new).why.startswith("rewards differ by")


def chosen_source() -> str:
    """A source whose task is not of the even sample."""
    return next(source for source in (f"new:{n}" for n in range(100)) if not stays_uniform(source, 0.9))
