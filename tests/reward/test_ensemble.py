"""What members learn from, and how their words become one."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ArtifactError
from core.messages import user
from core.settings import RewardSettings
from feedback.dataset import Preference, Vote
from reward.ensemble import bootstrap_by, penalised, resample
from reward.members import Members
from reward.preference import encode_pair, train_reward
from reward.scoring import RewardScorer
from tests.reward.test_preference import SMALL, clustered, toy
from tests.tiny import make_tiny_base

THREE = SMALL.model_copy(update={"members": 3, "epochs": 2.0})


def voted(n: int, annotators: int, seed: int = 0) -> list[Preference]:
    """Pairs that three of the annotators judged, mostly alike."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        who = rng.sample(range(annotators), 3)
        votes = [Vote(a, s) for a, s in zip(who, (2.0, 1.0, rng.choice([1.0, -1.0])), strict=True)]
        found.append(Preference(user(f"prompt {i}"), f"good {i}", f"bad {i}", 1.0, cluster=f"{i:016x}", votes=votes))
    return found


# --- resamples


def test_an_annotators_judgments_are_in_or_out_together() -> None:
    pairs = voted(200, 8)
    drawn: list[dict[int, set[float]]] = []
    for seed in range(6):
        times: dict[int, set[float]] = {a: set() for a in range(8)}
        for pair, found in zip(pairs, resample(pairs, seed), strict=True):
            left = {v.annotator: v.weight for v in found.votes} if found else {}
            for vote in pair.votes:
                times[vote.annotator].add(left.get(vote.annotator, 0.0))
        assert all(len(seen) == 1 for seen in times.values())  # as often in one pair as in any other
        assert sum(next(iter(seen)) for seen in times.values()) == 8  # drawn with replacement
        drawn.append(times)
    assert all(a != b for a, b in itertools.combinations(drawn, 2))
    assert any(0.0 in seen for times in drawn for seen in times.values())


def test_a_pair_is_what_those_drawn_say() -> None:
    others = [Preference([], "x", "y", cluster="0", votes=[Vote(a, 1.0)]) for a in range(2, 8)]
    pair = Preference(
        user("p"), "a", "b", 0.5, votes=[Vote(0, 2.0), Vote(1, -1.0)], target=2 / 3, chosen_complete=False
    )
    seen = set()
    for seed in range(60):
        found = resample([pair, *others], seed)[0]
        if found is None:
            seen.add("out")
            continue
        n = {v.annotator: v.weight for v in found.votes}
        if set(n) == {1}:
            assert (found.chosen, found.rejected, found.margin, found.target) == ("b", "a", 1.0, 1.0)
            assert (found.chosen_complete, found.rejected_complete) == (True, False)
            assert found.weight == n[1] / 2
            seen.add("turned")
        elif set(n) == {0}:
            assert (found.chosen, found.margin, found.target, found.weight) == ("a", 2.0, 1.0, n[0] / 2)
            seen.add("sharper")
        elif n == {0: 1.0, 1: 2.0}:
            assert (found.margin, found.target, found.tie, found.weight) == (0.0, 0.5, True, 1.5)
            seen.add("tie")
    assert {"out", "turned", "sharper", "tie"} <= seen


def test_few_annotators_and_foreign_pairs_are_drawn_by_cluster() -> None:
    few = [replace(p, cluster=f"{i // 2:016x}") for i, p in enumerate(voted(40, 4))]
    assert bootstrap_by(few) == "prompt cluster"
    found = resample(few, 3)
    assert all((a is None) == (b is None) for a, b in zip(found[::2], found[1::2], strict=True))  # clusters of two
    assert 10 < sum(p is None for p in found) < 30
    assert sum(p.weight for p in found if p) == 40

    foreign = [Preference(user(f"f {i}"), "a", "b", cluster=f"{i:016x}") for i in range(40)]
    mixed = [*voted(40, 8), *foreign]
    assert bootstrap_by(mixed) == "annotator"
    assert sum(p.weight for p in resample(mixed, 1)[40:] if p) == 40
    assert any(p is None for p in resample(mixed, 1)[40:])


def test_equal_seeds_draw_alike() -> None:
    pairs = voted(30, 6)
    assert resample(pairs, 5) == resample(pairs, 5) != resample(pairs, 6)


# --- one score out of several


def test_the_spread_is_taken_off_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    assert penalised(scores, 0.5).tolist() == [1.5, 2.0, 2.0]
    assert penalised(scores, 0.0).tolist() == [2.0, 2.0, 3.0]
    assert penalised(scores[:1], 0.5).tolist() == [1.0, 2.0, 5.0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("reward")
    (folder / "out").mkdir()
    facts = train_reward(
        clustered(toy(0, 40)), clustered(toy(100, 30)), base, folder / "work", folder / "out", THREE, device="cpu"
    )
    return facts, folder / "out"


def test_members_are_trained_kept_and_told(trained: tuple[dict[str, Any], Path]) -> None:
    facts, out = trained
    assert {p.name for p in out.iterdir()} == {"member-0", "member-1", "member-2", "run.json"}
    assert (facts["members"], facts["bootstrap"], len(facts["member_accuracies"])) == (3, "prompt cluster", 3)
    assert facts["accuracy"] >= 0.9
    assert facts["member_sd"] > 0.01
    assert [row["step"] for row in facts["log"]] == list(range(1, facts["steps"] + 1))
    assert {row["member"] for row in facts["log"]} == {0, 1, 2}
    heads = [load_file(out / f"member-{k}" / "adapter_model.safetensors") for k in range(3)]
    for name in heads[0]:
        assert not torch.equal(heads[0][name], heads[1][name]), name


def test_together_they_score_as_each_alone(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    """Members on one base, the lower layers once, against each loaded alone by PEFT and run on one text at a time."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    scorer = RewardScorer.load(trained[1], base, "cpu")
    rows = [encode_pair(scorer.tokenizer, p) for p in toy(100, 6)]
    ids = [side for row in rows for side in row.values()]
    assert scorer.members.trunk is not None
    scorer.members.trunk.hits = scorer.members.trunk.misses = 0
    together = scorer.members.scores(ids)
    assert scorer.members.trunk.misses == len(ids)
    assert scorer.members.trunk.hits == 2 * len(ids)
    assert scorer.members.trunk.states == {}
    for k in range(3):
        folder = trained[1] / f"member-{k}"
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model.score = torch.nn.Linear(2 * model.config.hidden_size, 1)
        alone = PeftModel.from_pretrained(model, str(folder)).eval().get_base_model().model
        saved = load_file(folder / "adapter_model.safetensors")
        weight, bias = (next(v for n, v in saved.items() if n.endswith(f"score.{part}")) for part in ("weight", "bias"))
        expected = []
        for row in ids:
            with torch.no_grad():
                states = alone(torch.tensor([row])).last_hidden_state[0]
            expected.append((weight[0] @ torch.cat([states[-1], states.mean(0)]) + bias[0]).item())
        assert together[k].tolist() == pytest.approx(expected, abs=1e-4)
    record = json.loads((trained[1] / "run.json").read_text())
    offset = torch.tensor(record["offsets"])[:, None]
    assert scorer.score_ids(ids) == pytest.approx(penalised(together - offset, THREE.sd_weight).tolist(), abs=1e-5)


def test_a_missing_member_is_refused(base: Path, trained: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained[1], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "member-1")
    with pytest.raises(ArtifactError, match="cannot be put on the base"):
        RewardScorer.load(tmp_path / "copy", base, "cpu")


def test_the_average_is_that_of_the_weights(base: Path, tmp_path: Path) -> None:
    """One adapter of three times the rank, whose change of each layer is the mean of the members'."""
    settings: RewardSettings = THREE.model_copy(update={"combine": "averaged"})
    facts = train_reward(
        clustered(toy(0, 40)), clustered(toy(100, 30)), base, tmp_path / "work", tmp_path, settings, device="cpu"
    )
    assert facts["accuracy"] >= 0.9
    assert facts["member_accuracies"] == [pytest.approx(facts["accuracy"])]
    config = json.loads((tmp_path / "averaged" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 24)
    parts = [load_file(tmp_path / f"member-{k}" / "adapter_model.safetensors") for k in range(3)]
    mean = load_file(tmp_path / "averaged" / "adapter_model.safetensors")
    below = [name for name in mean if ".lora_A." in name]
    assert below
    for a in below:
        b = a.replace(".lora_A.", ".lora_B.")
        expected = sum(part[b] @ part[a] for part in parts) / 3
        assert torch.allclose(mean[b] @ mean[a], expected, atol=1e-6)
    heads = [name for name in mean if "score" in name]
    assert len(heads) == 2
    for head in heads:
        assert torch.allclose(mean[head], sum(part[head] for part in parts) / 3)
    scorer = RewardScorer.load(tmp_path, base, "cpu")
    assert scorer.members.names == ["averaged"]


def test_members_begin_as_one_function(base: Path) -> None:
    members = Members.fresh(base, 3, RewardSettings(lora_rank=4, lora_top_layers=1), "cpu")
    rows = [encode_pair(members.tokenizer, p)["chosen_ids"] for p in toy(0, 5)]
    scores = members.scores(rows)
    assert torch.equal(scores[0], scores[1])
    assert scores[0].std() > 0
    first = [p for n, p in members.model.named_parameters() if ".lora_A.member-" in n and "q_proj" in n]
    assert not torch.equal(first[0], first[1])


def test_heads_and_adapters_stay_fp32_on_a_base_of_bf16(base: Path, tmp_path: Path) -> None:
    """As on a GPU: steps that bf16 would lose are kept, and what is saved scores as what was trained."""
    settings = THREE.model_copy(update={"members": 2, "precision": "bfloat16"})
    facts = train_reward(
        clustered(toy(0, 40)), clustered(toy(100, 30)), base, tmp_path / "work", tmp_path, settings, device="cpu"
    )
    assert facts["accuracy"] >= 0.8
    scorer = RewardScorer.load(tmp_path, base, "cpu")
    own = {n: p.dtype for n, p in scorer.members.model.named_parameters() if ".member-" in n}
    assert set(own.values()) == {torch.float32}
    assert any("score" in name for name in own)
    assert scorer.members.decoder.embed_tokens.weight.dtype == torch.bfloat16
