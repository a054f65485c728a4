"""The rule reward model with a tiny base: it learns toy rules, and what it makes of unseen ones is measured without them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ArtifactError, StageError
from core.messages import user
from feedback.dataset import RuleExample
from reward.members import Members
from reward.rules import FINAL, RuleScorer, _clears, _on_unseen, _parts, encode_question, train_rules, why_not
from tests.reward.test_preference import NAMES, SMALL
from tests.tiny import make_tiny_base

SETTINGS = SMALL.model_copy(update={"rule_epochs": 4.0, "rule_folds": 2, "max_length_tokens": 256})
RULES = ["bread", "butter", "Paris", "garden"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def examples(start: int, n: int) -> list[RuleExample]:
    """A reply that shouts breaks every rule; one that does not keeps it. Two rules are asked of each reply."""
    found = []
    for i in range(start, start + n):
        name = NAMES[i % len(NAMES)]
        shouts = i % 2 == 0
        text = f"HELP {name}!!!" if shouts else f"Here is that for {name}."
        cluster = hashlib.sha256(str(i).encode()).hexdigest()[:16]
        for rule in (RULES[i % 4], RULES[(i + 1) % 4]):
            found.append(
                RuleExample(
                    user(f"How do I keep a {name} {i}?"), text, rule, f"Do not shout about {rule}.",
                    0.95 if shouts else 0.05, cluster=cluster,
                )
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "out").mkdir()
    facts = train_rules(
        examples(0, 40), examples(100, 20), base, folder / "work", folder / "out", SETTINGS, device="cpu",
        snapshot_sha256="5" * 64,
    )  # fmt: skip
    return facts, folder / "out"


def test_it_tells_what_breaks_rules_that_it_saw_and_rules_that_it_did_not(trained: tuple[dict[str, Any], Path]) -> None:
    facts, _ = trained
    assert facts["seen"]["n"] == 40
    assert facts["seen"]["auc"]["value"] > 0.9
    unseen = facts["unseen"]
    assert unseen["rules"] == 4  # every rule was held out once
    assert unseen["n"] == unseen["auc"]["n"] == 80  # 40 of held-out prompts, 40 whose two rules are in the same part
    assert unseen["auc"]["low"] > 0.5
    assert unseen["brier"] < unseen["brier_of_mean"]
    assert {"ece_scaled", "brier_scaled", "bins_scaled"} <= unseen.keys()
    assert facts["clears_bar"]
    assert [row["rule"] for row in facts["per_rule"]] == sorted(RULES)
    assert all((row["seen"]["n"], row["unseen"]["n"]) == (10, 20) for row in facts["per_rule"])


def test_the_record_and_the_folder(trained: tuple[dict[str, Any], Path]) -> None:
    facts, out = trained
    assert {p.name for p in out.iterdir()} == {FINAL, "run.json"}
    record = json.loads((out / "run.json").read_text())
    assert (record["stage"], record["snapshot_sha256"], record["scored_by"]) == ("rules", "5" * 64, [FINAL])
    assert record["unseen"] == facts["unseen"]
    assert (facts["n_train"], facts["rules"], facts["dropped_long"]) == (80, 4, 0)
    assert {row["member"] for row in facts["log"]} == {0, 1, 2}  # two parts, and the one that is kept


def test_a_rule_that_nobody_judged_is_asked_about(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    scorer = RuleScorer.load(trained[1], base, "cpu")
    items = [(e.prompt, e.completion) for e in examples(200, 8)[::2]]
    found = scorer.p_broken(items, ["Do not shout about winter.", "Do not shout about bread."])
    assert [len(row) for row in found] == [2] * 8
    assert all(0 < p < 1 for row in found for p in row)
    assert min(min(row) for row in found[::2]) > max(max(row) for row in found[1::2])
    assert scorer.p_broken(items, []) == [[]] * 8
    assert scorer.p_broken([], ["A rule."]) == []
    alone = [scorer.p_broken([item], ["Do not shout about winter."])[0][0] for item in items]
    assert [row[0] for row in found] == pytest.approx(alone, abs=1e-5)


def test_the_temperature_is_applied(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    scorer = RuleScorer.load(trained[1], base, "cpu")
    assert scorer.temperature == trained[0]["temperature"]
    item = (examples(200, 1)[0].prompt, "HELP bread!!!")
    (logit,) = scorer.logits([(item, "Do not shout about bread.")])
    scorer.temperature = 2.5
    assert scorer.p_broken([item], ["Do not shout about bread."])[0][0] == pytest.approx(
        torch.sigmoid(torch.tensor(logit / 2.5)).item(), abs=1e-6
    )


def test_the_question_stands_after_the_reply(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    one, other = (
        encode_question(tokenizer, user("Hi"), "bread and butter", rule) for rule in ("Do not shout.", "Be safe.")
    )
    text = tokenizer.decode(one)
    assert text.index("bread and butter") < text.index("Do not shout.")
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert "bread and butter" in tokenizer.decode(one[:shared])


# --- parts


def test_a_part_sees_neither_its_rules_nor_its_prompts() -> None:
    every = [*examples(0, 30), *examples(100, 10)]
    parts = _parts(every, 60, 3)
    assert len(parts) == 3
    assert sorted({every[i].rule for p in parts for i in p.asked}) == sorted(RULES)
    for part in parts:
        assert not {every[i].rule for i in part.train} & {every[i].rule for i in part.asked}
        assert not {every[i].cluster for i in part.train} & {every[i].cluster for i in part.asked}
        assert max(part.train) < 60
    asked = [i for part in parts for i in part.asked]
    assert len(asked) == len(set(asked))


def test_one_rule_is_trained_on_and_its_bar_is_not_cleared(base: Path, tmp_path: Path) -> None:
    one = [replace(e, rule="bread") for e in examples(0, 16)]
    settings = SETTINGS.model_copy(update={"rule_epochs": 1.0})
    facts = train_rules(
        one, [replace(e, cluster="0" * 16) for e in one[:4]], base, tmp_path / "work", tmp_path, settings, device="cpu"
    )
    assert facts["unseen"]["undefined"] == "only 1 rule has verdicts; at least two are needed to hold one out"
    assert (facts["unseen"]["n"], facts["temperature"], facts["clears_bar"]) == (0, 1.0, False)


def test_the_saved_model_is_compared_with_what_it_computes_anew(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training keeps of the frozen layers was rounded in other batches; in bf16 that is seen."""

    def rounded_otherwise(members: Members, *given: Any) -> Any:
        found = _on_unseen(members, *given)
        assert members.trunk is not None
        assert members.trunk.states
        for states in members.trunk.states.values():
            states.add_(0.1)
        return found

    monkeypatch.setattr("reward.rules._on_unseen", rounded_otherwise)
    settings = SETTINGS.model_copy(update={"rule_epochs": 1.0})
    (tmp_path / "out").mkdir()
    train_rules(examples(0, 60), examples(60, 12), base, tmp_path / "work", tmp_path / "out", settings, device="cpu")


def test_the_bar() -> None:
    good = {"auc": {"low": 0.6}, "brier": 0.1, "brier_of_mean": 0.2}
    assert _clears(good)
    assert not _clears(good | {"auc": {"low": 0.5}})
    assert not _clears(good | {"brier_scaled": 0.21})
    assert not _clears(good | {"auc": {"undefined": "all on one side"}})


# --- what is refused


def test_why_not() -> None:
    assert why_not(examples(0, 5)) == "only 10 verdicts on rules are to be trained on; at least 16 are needed"
    assert why_not(examples(0, 20)[::4]) is not None
    same = [replace(e, broken=0.1) for e in examples(0, 20)]
    assert why_not(same) == "all 40 verdicts say the same, so there is nothing to tell apart"
    assert why_not(examples(0, 20)) is None


def test_too_few_that_fit_stop_it(base: Path, tmp_path: Path) -> None:
    long = [replace(e, completion="a b c d " * 80) for e in examples(0, 20)]
    with pytest.raises(StageError, match="only 4 verdicts.*40 verdicts were dropped for their length"):
        train_rules([*long, *examples(0, 2)], [], base, tmp_path / "w", tmp_path / "o", SETTINGS, device="cpu")


def test_a_preference_model_is_no_rule_model(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    from reward.scoring import RewardScorer

    with pytest.raises(ArtifactError, match="made by the stage 'rules'; one of 'reward' was expected"):
        RewardScorer.load(trained[1], base, "cpu")


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    base: Path, tmp_path: Path, trained: tuple[dict[str, Any], Path]
) -> None:
    class Killed(BaseException):
        pass

    def kill(done: float, note: str, rows: object = ()) -> None:
        if note.startswith("step 45/"):
            raise Killed

    (tmp_path / "out").mkdir()
    given = (examples(0, 40), examples(100, 20), base, tmp_path / "work", tmp_path / "out", SETTINGS)
    with pytest.raises(Killed):
        train_rules(*given, device="cpu", snapshot_sha256="5" * 64, progress=kill)
    train_rules(*given, device="cpu", snapshot_sha256="5" * 64)
    found, wanted = (load_file(f / FINAL / "adapter_model.safetensors") for f in (tmp_path / "out", trained[1]))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
