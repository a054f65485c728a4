"""The scoring service: all models heard, each text scored once, from several threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

import finetune.models  # noqa: F401  # tables that reward models point to
import policy.models  # noqa: F401
from core.artifacts import hash_folder
from core.errors import ArtifactError, InvalidInput
from core.messages import user
from feedback.models import Snapshot
from reward.models import RewardModel, newest_model
from reward.preference import RewardScorer, train_reward
from reward.rules import RuleScorer, train_rules
from reward.service import RewardService, RuleWeight
from tests.reward.test_preference import SMALL, clustered, toy
from tests.reward.test_rules import SETTINGS, examples
from tests.tiny import make_tiny_base

BREAD = RuleWeight("bread", "Do not shout about bread.", 2.0)
PARIS = RuleWeight("paris", "Do not shout about Paris.", 0.5)
ITEMS = [(p.prompt, text) for p in toy(300, 6) for text in (p.chosen, p.rejected)]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a reward model of each kind."""
    root = tmp_path_factory.mktemp("artifacts")
    make_tiny_base(root / "base")
    for name in ("pairs", "rules"):
        (root / name).mkdir()
    two = SMALL.model_copy(update={"members": 2, "epochs": 1.0})
    train_reward(clustered(toy(0, 24)), toy(100, 4), root / "base", root / "w", root / "pairs", two, device="cpu")
    one = SETTINGS.model_copy(update={"rule_epochs": 1.0})
    train_rules(examples(0, 20), examples(100, 4), root / "base", root / "w2", root / "rules", one, device="cpu")
    return root


def row(artifacts: Path, kind: str, path: str, **more: Any) -> RewardModel:
    sha256 = hash_folder(artifacts / path)
    return RewardModel(id=1, kind=kind, path=path, sha256=sha256, evaluation={}, clears_bar=True, **more)


@pytest.fixture
def service(artifacts: Path) -> RewardService:
    return RewardService.open(
        artifacts, artifacts / "base", row(artifacts, "preference", "pairs"), row(artifacts, "rules", "rules"),
        [BREAD, PARIS], device="cpu",
    )  # fmt: skip


def test_a_score_is_made_of_all_models(artifacts: Path, service: RewardService) -> None:
    """On one base together, as each alone."""
    pairs = RewardScorer.load(artifacts / "pairs", artifacts / "base", "cpu")
    rules = RuleScorer.load(artifacts / "rules", artifacts / "base", "cpu")
    broken = rules.p_broken(ITEMS, [BREAD.text, PARIS.text])
    expected = [r - 2.0 * b - 0.5 * p for r, (b, p) in zip(pairs.score(ITEMS), broken, strict=True)]
    assert service.score(ITEMS) == pytest.approx(expected, abs=1e-4)
    for found, (b, p) in zip(service.explain(ITEMS), broken, strict=True):
        assert found.broken == pytest.approx({"bread": b, "paris": p}, abs=1e-5)
        assert found.sd > 0
        assert found.value == pytest.approx(
            found.mean - SMALL.sd_weight * found.sd - 2.0 * found.broken["bread"] - 0.5 * found.broken["paris"]
        )


def test_without_rules_it_is_the_ensemble(artifacts: Path) -> None:
    alone = RewardService.open(artifacts, artifacts / "base", row(artifacts, "preference", "pairs"), device="cpu")
    pairs = RewardScorer.load(artifacts / "pairs", artifacts / "base", "cpu")
    assert alone.score(ITEMS) == pytest.approx(pairs.score(ITEMS), abs=1e-5)
    assert alone.explain(ITEMS)[0].broken == {}
    assert RewardService(pairs, None, [BREAD]).weights == []


def counting(service: RewardService) -> list[int]:
    """How many texts the model is asked for each time it runs."""
    asked: list[int] = []
    run = service._run

    def counted(items: Any) -> Any:
        asked.append(len(items))
        return run(items)

    service._run = counted  # type: ignore[method-assign]
    return asked


def test_a_text_is_scored_once(service: RewardService) -> None:
    asked = counting(service)
    first = service.score([*ITEMS, ITEMS[0]])
    assert first[-1] == first[0]
    assert service.score(ITEMS[3:8]) == first[3:8]
    new = (user("What is the capital of France?"), "Paris.")
    assert service.score([ITEMS[1], new])[0] == first[1]
    assert asked == [12, 1]
    assert (service.hits, service.misses) == (0 + 5 + 1, 13 + 0 + 1)
    assert service.score([]) == []
    other_role = ([{"role": "system", "content": ITEMS[0][0][0]["content"]}, *ITEMS[0][0]], ITEMS[0][1])
    assert service.score([other_role])[0] != first[0]


def test_memory_is_bounded(artifacts: Path, service: RewardService) -> None:
    small = RewardService(service.preference, kept=4)
    asked = counting(small)
    whole = small.score(ITEMS)
    assert len(whole) == 12
    assert len(small._scores) == 4
    small.score(ITEMS[-4:])
    assert asked == [12]
    small.score([ITEMS[8]])
    small.score([ITEMS[0]])  # the least used of the four makes room
    small.score([ITEMS[8]])
    assert asked == [12, 1]


def test_other_rules_are_other_scores(service: RewardService) -> None:
    same = RewardService(service.preference, service.rules, [BREAD, PARIS])
    heavier = RewardService(service.preference, service.rules, [BREAD, RuleWeight("paris", PARIS.text, 3.0)])
    assert same._key(ITEMS[0]) != heavier._key(ITEMS[0])
    assert RewardService(service.preference, identity="other")._key(ITEMS[0]) != RewardService(service.preference)._key(
        ITEMS[0]
    )
    none = RewardService(service.preference, service.rules, [RuleWeight("paris", PARIS.text, 0.0)])
    assert none.explain(ITEMS[:1])[0].broken == {}


def test_threads_take_turns(service: RewardService) -> None:
    alone = service.score(ITEMS)
    again = RewardService(service.preference, service.rules, service.weights)
    asked = counting(again)
    barrier = threading.Barrier(6)

    def ask(n: int) -> list[float]:
        barrier.wait()
        return again.score(ITEMS[n:] + ITEMS[:n])

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    for n, scores in enumerate(found):
        assert scores == pytest.approx(alone[n:] + alone[:n], abs=1e-5)
    assert sum(asked) == 12


def test_what_cannot_be_scored_is_refused(artifacts: Path, service: RewardService) -> None:
    with pytest.raises(InvalidInput, match="at least one turn"):
        service.score([([], "hello")])
    damaged = row(artifacts, "preference", "pairs")
    damaged.sha256 = "0" * 64
    with pytest.raises(ArtifactError, match="changed or damaged"):
        RewardService.open(artifacts, artifacts / "base", damaged, device="cpu")
    with pytest.raises(ArtifactError, match="one of 'reward' was expected"):
        RewardService.open(artifacts, artifacts / "base", row(artifacts, "preference", "rules"), device="cpu")


# --- which model may be used


def add(session: Session, kind: str, *, clears: bool = True) -> RewardModel:
    snapshot = Snapshot(content_sha256=f"{session.query(Snapshot).count():064d}", path="x", manifest={})
    session.add(snapshot)
    session.flush()
    evaluation = {"low": 0.5, "length_only": 0.6}
    model = RewardModel(
        kind=kind, snapshot_id=snapshot.id, path="x", sha256="0" * 64, evaluation=evaluation, clears_bar=clears
    )
    session.add(model)
    session.flush()
    return model


def test_the_newest_of_a_kind(session: Session) -> None:
    assert newest_model(session, "preference") is None
    good = add(session, "preference")
    rules = add(session, "rules")
    assert newest_model(session, "preference") is good
    assert newest_model(session, "rules") is rules
