"""The reward model with a tiny base: it learns a toy preference, and what is saved is what was trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import StageError
from core.messages import user
from core.settings import RewardSettings
from feedback.preferences import Preference
from reward.preference import (
    RewardScorer,
    check_reload,
    encode_pair,
    evaluate,
    length_only_accuracy,
    train_reward,
)
from tests.tiny import make_tiny_base

SMALL = RewardSettings(
    epochs=3.0, learning_rate=5e-3, batch_size=8, lora_rank=4, lora_top_layers=1, max_length_tokens=128
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
    assert {p.name for p in out.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "run.json"}
    saved = load_file(out / "adapter_model.safetensors")
    assert {name.split("layers.")[1][0] for name in saved if "layers." in name} == {"1"}
    assert [tuple(v.shape) for n, v in saved.items() if "score" in n] == [(1, 64)]


def test_scores_do_not_hang_on_their_neighbours(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    scorer = RewardScorer.load(trained[1], base, "cpu")
    items = [(p.prompt, text) for p in toy(0, 20) for text in (p.chosen, p.rejected * 3)]
    together = scorer.score(items)
    alone = [scorer.score([item])[0] for item in items]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) > 20
    assert scorer.score([]) == []


# --- evaluation


def test_length_only_accuracy_by_hand() -> None:
    def pair(chosen: int, rejected: int) -> Preference:
        return Preference([], "x" * chosen, "y" * rejected)

    longer, shorter, tie = pair(3, 1), pair(1, 3), pair(2, 2)
    assert length_only_accuracy([longer], [longer, longer, shorter, tie]) == 2.5 / 4
    assert length_only_accuracy([shorter], [longer, longer, shorter, tie]) == 1.5 / 4
    assert length_only_accuracy([longer, shorter], [shorter]) == 0.0  # undecided: the longer side
    assert length_only_accuracy([longer, tie, tie], [longer]) == 1.0
    assert length_only_accuracy([shorter, shorter, longer], [tie, tie]) == 0.5


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


@pytest.mark.parametrize("lost", ["fresh", "absent"])
def test_a_lost_head_is_noticed(base: Path, trained: tuple[dict[str, Any], Path], tmp_path: Path, lost: str) -> None:
    """A head that is as new as before training, and a file without one."""
    _, out = trained
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (head,) = [name for name in weights if "score" in name]
    trained_head = weights.pop(head)
    if lost == "fresh":
        weights[head] = torch.randn(trained_head.shape, generator=torch.Generator().manual_seed(1)) * 0.02
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    whole = RewardScorer.load(out, base, "cpu")
    if lost == "absent":
        with pytest.raises(KeyError, match="score"):
            RewardScorer.load(tmp_path, base, "cpu")
        return
    headless = RewardScorer.load(tmp_path, base, "cpu")
    with pytest.raises(StageError, match="scores changed by up to .* when the reward model was saved and loaded"):
        check_reload(whole, headless, toy(0, 8))


def test_scores_that_are_no_numbers_do_not_pass_as_equal(base: Path, trained: tuple[dict[str, Any], Path]) -> None:
    good, broken = (RewardScorer.load(trained[1], base, "cpu") for _ in range(2))
    with torch.no_grad():
        for name, parameter in broken.model.named_parameters():
            if "score" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(StageError, match="nan"):
        check_reload(good, broken, toy(0, 8))


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
    with pytest.raises(StageError, match="loss is nan"):
        train_reward(toy(0, 16), toy(100, 4), damaged, tmp_path / "work", tmp_path / "out", SMALL, device="cpu")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_run_goes_on_from_its_checkpoint(
    base: Path, tmp_path: Path, trained: tuple[dict[str, Any], Path]
) -> None:
    class Killed(BaseException):
        pass

    def kill(done: float, note: str) -> None:
        if note.startswith("step 12/"):
            raise Killed

    told: list[str] = []
    (tmp_path / "out").mkdir()
    given = (toy(0, 40), toy(100, 30), base, tmp_path / "work", tmp_path / "out", SMALL)
    with pytest.raises(Killed):
        train_reward(*given, device="cpu", progress=kill)
    train_reward(*given, device="cpu", progress=lambda _, note: told.append(note))
    assert told[0].startswith("step 11/15")
    found, wanted = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "out", trained[1]))
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-6


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
