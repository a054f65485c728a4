"""The reward model with a tiny base: it learns a toy preference, and what is saved is what was trained."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import ArtifactError, StageError
from core.messages import user
from core.settings import RewardSettings
from feedback.preferences import Preference
from reward.preference import RewardScorer, check_reload, encode_pair, evaluate, train_reward
from tests.tiny import make_tiny_base

SMALL = RewardSettings(
    epochs=3.0, learning_rate=5e-3, batch_size=8, lora_rank=4, lora_top_layers=1, max_length_tokens=128, members=1
)
NAMES = ["dunnock", "garden", "winter", "bread", "butter", "Paris", "people", "policy", "model", "France"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def toy(start: int, n: int) -> list[Preference]:
    """A refusal is better than going along; both have the same length, so that lengths say nothing."""
    found = []
    for i in range(start, start + n):
        name = NAMES[i % len(NAMES)]
        prompt = user(f"How do I keep a {name} {i}?")
        found.append(Preference(prompt, f"I cannot help with {name}.", f"Here is that for a {name}."[: 20 + len(name)]))
    return [Preference(p.prompt, p.chosen, p.rejected.ljust(len(p.chosen), "!")[: len(p.chosen)]) for p in found]


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("reward")
    (folder / "out").mkdir()
    facts = train_reward(
        toy(0, 40), toy(100, 30), base, folder / "work", folder / "out", SMALL, device="cpu", snapshot_sha256="5" * 64
    )
    return facts, folder / "out"


# --- learning


def test_a_toy_preference_is_learnt(trained: tuple[dict[str, Any], Path]) -> None:
    facts, _ = trained
    assert facts["n"] == 30
    assert facts["low"] > 0.5  # above chance, by the lower end of the interval
    assert facts["accuracy"] >= 0.9
    assert facts["length_only"] == 0.5
    assert facts["clears_bar"]
    assert facts["log"][-1]["loss"] < facts["log"][0]["loss"]


def test_facts_and_the_run_record(trained: tuple[dict[str, Any], Path]) -> None:
    facts, out = trained
    assert (facts["n_train"], facts["dropped_long"], facts["steps"]) == (40, 0, 15)
    record = json.loads((out / "run.json").read_text())
    assert (record["stage"], record["snapshot_sha256"]) == ("reward", "5" * 64)
    assert record["settings"] == SMALL.model_dump()
    assert record["accuracy"] == facts["accuracy"]
    assert {p.name for p in out.iterdir()} == {"member-0", "run.json"}
    assert {p.name for p in (out / "member-0").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    saved = load_file(out / "member-0" / "adapter_model.safetensors")
    assert {name.split("layers.")[1][0] for name in saved if "layers." in name} == {"1"}
    heads = {n.rsplit(".", 1)[-1]: tuple(v.shape) for n, v in saved.items() if "score" in n}
    assert heads == {"weight": (1, 128), "bias": (1,)}  # the last state and the mean, side by side


def test_scores_do_not_hang_on_their_neighbours(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    scorer = RewardScorer.load(trained[1], base, "cpu")
    items = [(p.prompt, text) for p in toy(0, 20) for text in (p.chosen, p.rejected * 3)]
    together = scorer.score(items)
    alone = [scorer.score([item])[0] for item in items]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) > 20
    assert scorer.score([]) == []


# --- evaluation


def test_the_bar_is_the_lower_bound_over_the_baseline(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    scorer = RewardScorer.load(trained[1], base, "cpu")
    heldout = toy(100, 6)
    longer = [Preference(p.prompt, p.chosen, p.rejected[:5]) for p in heldout]
    same = evaluate(scorer, heldout, heldout)
    assert same["accuracy"] == 1.0
    assert same["clears_bar"]
    by_length = evaluate(scorer, longer, longer)
    assert by_length["length_only"] == 1.0
    assert not by_length["clears_bar"]  # nothing beats a baseline that is always right
    turned = evaluate(scorer, heldout, [Preference(p.prompt, p.rejected, p.chosen) for p in heldout])
    assert turned["accuracy"] == 0.0


# --- reloading


def test_a_reload_of_what_was_trained_passes(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    one, other = (RewardScorer.load(trained[1], base, "cpu") for _ in range(2))
    check_reload(one, other, toy(0, 8))


def copy_of(out: Path, target: Path) -> Path:
    shutil.copytree(out, target)
    return target


@pytest.mark.parametrize("lost", ["fresh", "absent"])
def test_a_lost_head_is_noticed(base: Path, trained: tuple[dict[str, Any], Path], tmp_path: Path, lost: str) -> None:
    """A head that is as new as before training, and a file without one."""
    folder = copy_of(trained[1], tmp_path / "copy")
    file = folder / "member-0" / "adapter_model.safetensors"
    weights = load_file(file)
    (head,) = [name for name in weights if "score" in name and "weight" in name]
    trained_head = weights.pop(head)
    if lost == "fresh":
        weights[head] = torch.randn(trained_head.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    save_file(weights, file, metadata={"format": "pt"})
    expected = "scores a known text .* away" if lost == "fresh" else "cannot be put on the base in base.*score"
    with pytest.raises(ArtifactError, match=expected):
        RewardScorer.load(folder, base, "cpu")


def test_scores_that_change_on_reloading_are_noticed(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    whole, changed, broken = (RewardScorer.load(trained[1], base, "cpu") for _ in range(3))
    for scorer, by in ((changed, 1.01), (broken, float("nan"))):
        with torch.no_grad():
            for name, parameter in scorer.members.model.named_parameters():
                if "score" in name and "member-0" in name:
                    parameter.mul_(by)
    for scorer, told in ((changed, "0\\.0"), (broken, "nan")):
        with pytest.raises(
            StageError, match=f"scores changed by up to {told}.* when the reward model was saved and loaded"
        ):
            check_reload(whole, scorer, toy(0, 8))


@pytest.mark.parametrize("other", ["weights", "width"])
def test_another_base_is_refused(trained: tuple[dict[str, Any], Path], tmp_path: Path, other: str) -> None:
    """One of the same shape, which only its scores tell, and one whose shape does not fit."""
    base = make_tiny_base(tmp_path / "other", **({"seed": 5} if other == "weights" else {"hidden_size": 32}))
    with pytest.raises(
        ArtifactError, match="Is this the base" if other == "weights" else "cannot be put on the base in other"
    ):
        RewardScorer.load(trained[1], base, "cpu")


def test_what_is_no_reward_model_is_refused(trained: tuple[dict[str, Any], Path], base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no reward model"):
        RewardScorer.load(tmp_path, base, "cpu")
    record = json.loads((trained[1] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"stage": "update"}))
    with pytest.raises(ArtifactError, match="made by the stage 'update'; one of 'reward' was expected"):
        RewardScorer.load(tmp_path, base, "cpu")
    del record["pooling"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="another release.*train a new one"):
        RewardScorer.load(tmp_path, base, "cpu")


# --- what is refused


@pytest.mark.parametrize(("n_train", "n_heldout"), [(7, 3), (40, 0), (0, 0)])
def test_too_few_pairs_stop_the_stage(base: Path, tmp_path: Path, n_train: int, n_heldout: int) -> None:
    with pytest.raises(StageError, match=f"{n_train} training and {n_heldout} held-out pairs are usable"):
        train_reward(toy(0, n_train), toy(100, n_heldout), base, tmp_path / "w", tmp_path / "o", SMALL, device="cpu")


def test_over_long_pairs_are_dropped_and_counted(base: Path, tmp_path: Path) -> None:
    long = [Preference(user("Hi"), "a b c d " * 60, "no"), Preference(user("Hi"), "yes", "a b c d " * 60)]
    settings = SMALL.model_copy(update={"epochs": 1.0})
    facts = train_reward(
        [*long, *toy(0, 9)], [*long, *toy(100, 4)], base, tmp_path / "work", tmp_path, settings, device="cpu"
    )
    assert (facts["n_train"], facts["dropped_long"]) == (9, 2)
    assert (facts["n"], facts["dropped_long_heldout"]) == (4, 2)


def test_a_loss_that_is_no_number_stops_the_stage(base: Path, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in base.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match="states of these texts are not all finite.*nothing is registered"):
        train_reward(toy(0, 16), toy(100, 4), damaged, tmp_path / "work", tmp_path / "out", SMALL, device="cpu")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(base: Path, tmp_path: Path) -> None:
    """Killed in the first member between checkpoints, and again in the second; the weights are equal to the last bit."""

    class Killed(BaseException):
        pass

    def killer(at: str) -> Any:
        def kill(done: float, note: str, rows: object = ()) -> None:
            if note.startswith(at):
                raise Killed

        return kill

    settings = SMALL.model_copy(update={"members": 2, "save_steps": 4})
    told: list[tuple[str, list[Any]]] = []
    pairs = clustered(toy(0, 40))
    for name in ("broken", "whole"):
        (tmp_path / name / "out").mkdir(parents=True)
    given = (pairs, toy(100, 4), base, tmp_path / "broken" / "work", tmp_path / "broken" / "out", settings)
    n = 0
    for at in ("step 6/", "step 14/"):
        with pytest.raises(Killed):
            train_reward(*given, device="cpu", progress=killer(at))
        n += 1
    facts = train_reward(*given, device="cpu", progress=lambda _, note, rows=(): told.append((note, list(rows))))
    whole = train_reward(
        pairs, toy(100, 4), base, tmp_path / "whole" / "work", tmp_path / "whole" / "out", settings, device="cpu"
    )
    assert n == 2
    steps = [note.split(",")[0] for note, _ in told if note.startswith("step ")]
    total = facts["steps"]
    assert steps[:3] == [f"step {n}/{total}" for n in (12, 13, 14)]  # the first is done, the second goes on from there
    assert [row for _, rows in told for row in rows] == facts["log"]
    for k in (0, 1):
        found, wanted = (
            load_file(tmp_path / name / "out" / f"member-{k}" / "adapter_model.safetensors")
            for name in ("broken", "whole")
        )
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert facts["log"] == whole["log"]
    assert {k: facts[k] for k in ("accuracy", "rewards")} == {k: whole[k] for k in ("accuracy", "rewards")}


def clustered(pairs: list[Preference]) -> list[Preference]:
    """Each pair in a prompt cluster of its own."""
    return [replace(p, cluster=hashlib.sha256(str(p.prompt).encode()).hexdigest()[:16]) for p in pairs]


# --- what pairs say beyond which side is better


def test_a_batch_counts_as_its_parts_do(base: Path) -> None:
    """The gradient of one batch of eight is the mean of eight batches of one, weights, ties and margins included."""
    from reward.members import Members
    from reward.preference import _encoded, _loss_of

    members = Members.fresh(base, 1, SMALL, "cpu")
    pairs = [replace(p, weight=w, target=t, margin=3.0) for p, w, t in zip(
        toy(0, 8), (0.2, 1, 1, 2, 0.5, 1, 1, 1), (1, 0.5, 0.75, 1, 1, 0.5, 1, 0.6), strict=True
    )]  # fmt: skip
    rows = _encoded(members.tokenizer, pairs, SMALL)
    parameters = members.parameters("member-0")
    loss = _loss_of(members, "member-0", rows, SMALL)

    def gradients(batches: list[list[int]]) -> dict[str, torch.Tensor]:
        for p in parameters.values():
            p.grad = None
        for batch in batches:
            (loss(batch) / len(batches)).backward()
        return {n: p.grad.clone() for n, p in parameters.items()}

    together, alone = gradients([list(range(8))]), gradients([[i] for i in range(8)])
    assert any(g.abs().max() > 1e-4 for g in together.values())
    for name in together:
        assert torch.allclose(together[name], alone[name], atol=1e-6), name
    assert sum(row.weight for row in rows) == pytest.approx(8)
    assert [row.margin for row in rows] == pytest.approx([0.3, 0, 0.3, 0.3, 0.3, 0, 0.3, 0.3])


def test_adapters_move_and_the_base_does_not(base: Path, tmp_path: Path) -> None:
    from reward.members import Members
    from reward.preference import _fit_members

    members = Members.fresh(base, 2, SMALL, "cpu")
    before = {n: p.detach().clone() for n, p in members.model.named_parameters()}
    settings = SMALL.model_copy(update={"epochs": 1.0, "members": 2})
    _fit_members(members, [toy(0, 16), toy(16, 16)], settings, tmp_path, "", lambda *_: None)
    moved = {n for n, p in members.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".member-0." in n or ".member-1." in n}
    assert members.trunk is not None
    assert members.trunk.misses == 64  # 32 pairs through the lower layers once, whatever the steps


def test_a_weight_of_nothing_teaches_nothing(base: Path, tmp_path: Path) -> None:
    """Most of the pairs are turned round; with next to no weight they change little, with full weight they decide."""
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in toy(10, 30)]
    found = {}
    for weight in (0.01, 1.0):
        (tmp_path / f"{weight}").mkdir()
        pairs = [*toy(0, 10), *(replace(p, weight=weight) for p in turned)]
        facts = train_reward(
            pairs, toy(100, 30), base, tmp_path / f"w{weight}", tmp_path / f"{weight}", SMALL, device="cpu"
        )
        found[weight] = facts["accuracy"]
    assert found[0.01] >= 0.8
    assert found[1.0] <= 0.2


def test_ties_pull_rewards_together(base: Path, tmp_path: Path) -> None:
    gaps = {}
    for target in (1.0, 0.5):
        (tmp_path / f"{target}").mkdir()
        pairs = [*toy(0, 8), *(replace(p, target=target, margin=0.0) for p in toy(8, 32))]
        train_reward(pairs, toy(100, 4), base, tmp_path / f"w{target}", tmp_path / f"{target}", SMALL, device="cpu")
        scorer = RewardScorer.load(tmp_path / f"{target}", base, "cpu")
        both = scorer.score([(p.prompt, text) for p in toy(100, 20) for text in (p.chosen, p.rejected)])
        gaps[target] = sum(c - r for c, r in zip(both[::2], both[1::2], strict=True)) / 20
    assert 0 < gaps[0.5] < 0.5 * gaps[1.0]


def test_sides_that_are_equal_once_cut_are_dropped_and_counted(base: Path, tmp_path: Path) -> None:
    same = Preference(user("Hi"), "bread and butter", "bread and butter for people", chosen_complete=False)
    settings = SMALL.model_copy(update={"epochs": 1.0})
    facts = train_reward([same, *toy(0, 9)], toy(100, 4), base, tmp_path / "work", tmp_path, settings, device="cpu")
    assert (facts["n_train"], facts["dropped_equal"], facts["dropped_long"]) == (9, 1, 0)


def test_splits_that_share_a_cluster_are_refused(base: Path, tmp_path: Path) -> None:
    pairs = clustered(toy(0, 20))
    with pytest.raises(StageError, match="2 prompt clusters are both trained on and held out"):
        train_reward(pairs, pairs[:2], base, tmp_path / "w", tmp_path / "o", SMALL, device="cpu")


def test_ties_alone_are_too_few(base: Path, tmp_path: Path) -> None:
    ties = [replace(p, target=0.5) for p in toy(0, 20)]
    with pytest.raises(StageError, match="7 training and 3 held-out pairs are usable"):
        train_reward(
            [*ties, *toy(20, 7)], [*toy(100, 3), *ties], base, tmp_path / "w", tmp_path / "o", SMALL, device="cpu"
        )


def test_a_cut_side_cuts_the_other(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    pair = Preference(user("How?"), "I cannot help with bread.", "Here is bread and butter for people in")
    whole = encode_pair(tokenizer, pair)
    assert whole["chosen_ids"][-1] == whole["rejected_ids"][-1] == tokenizer.eos_token_id
    cut = encode_pair(tokenizer, replace(pair, rejected_complete=False))
    assert len(cut["chosen_ids"]) == len(cut["rejected_ids"]) < len(whole["rejected_ids"])
    assert cut["chosen_ids"] == whole["chosen_ids"][: len(cut["chosen_ids"])]
    assert cut["rejected_ids"][-1] != tokenizer.eos_token_id
