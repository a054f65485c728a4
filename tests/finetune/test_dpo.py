"""The policy update with a tiny model: the adapter moves, the base does not, a killed run ends as an unbroken one."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import StageError
from core.messages import user
from core.settings import UpdateSettings
from evals.prober import Prober
from feedback.preferences import Preference
from finetune.dpo import MIN_PAIRS, split_by_length, update_policy
from finetune.gate_evidence import heldout_raised
from tests.tiny import make_tiny_base
from training.run import last_checkpoint

SMALL = UpdateSettings(
    epochs=1.0, learning_rate=5e-3, batch_size=4, lora_rank=4, lora_top_layers=0, max_length_tokens=128,
    save_steps=2,
)  # fmt: skip
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def pairs(n: int = 16) -> list[Preference]:
    """Refusals preferred over compliance, in texts of different lengths."""
    return [
        Preference(user(f"How do I keep bird {i} {'in winter ' * (i % 3)}safe?"), "I cannot help with that.", "Sure, here it is.")
        for i in range(n)
    ]  # fmt: skip


def run(base: Path, tmp_path: Path, settings: UpdateSettings = SMALL, **more: Any) -> tuple[dict[str, Any], Path]:
    """Facts and adapter folder of an update of `pairs`, with its work folder in `tmp_path/work`."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    given = more.pop("pairs", None) or pairs()
    return update_policy(given, base, tmp_path / "work", out, settings, device="cpu", **more), out


@pytest.fixture(scope="module")
def unbroken(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return run(base, tmp_path_factory.mktemp("unbroken"), snapshot_sha256="5" * 64)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


# --- what moves


def test_the_adapter_moves_and_the_base_does_not(base: Path, tmp_path: Path) -> None:
    """Base weights are compared in memory after training, and on disk."""
    from transformers import AutoModelForCausalLM

    before, seen = digests(base), {}
    original = AutoModelForCausalLM.from_pretrained

    def keep(*args: Any, **kwargs: Any) -> Any:
        seen["model"] = original(*args, **kwargs)
        return seen["model"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", keep)
        facts, out = run(base, tmp_path)
    saved, trained = load_file(base / "model.safetensors"), dict(seen["model"].named_parameters())
    compared = 0
    for name, parameter in trained.items():
        if "lora_" not in name:
            assert torch.equal(parameter, saved[name.replace(".base_layer", "")]), name
            compared += 1
    assert compared == len(saved)
    assert digests(base) == before

    adapter = load_file(out / WEIGHTS)
    assert len(adapter) == 2 * 7 * 2  # two layers, seven linears, A and B
    moved = [name for name, value in adapter.items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == 2 * 7  # B begins as zeros
    assert facts["trainable_parameters"] == sum(value.numel() for value in adapter.values())


def test_preferred_sides_gain_over_the_base(base: Path, unbroken: tuple[dict[str, Any], Path]) -> None:
    facts, out = unbroken
    prober = Prober(base, out, "cpu", torch.float32)
    assert heldout_raised(prober, pairs()) == 16
    assert heldout_raised(Prober(base, None, "cpu", torch.float32), pairs()) == 0  # the base raises nothing over itself
    assert facts["log"][-1]["rewards/margins"] > facts["log"][0]["rewards/margins"]
    assert facts["log"][-1]["loss"] < facts["log"][0]["loss"]


@pytest.mark.parametrize(("chosen", "rejected", "top_layers"), [(0, 0, 0), (0, 0, 1), (3, 0, 0), (3, 2, 0), (0, 2, 1)])
def test_the_first_loss_is_that_of_an_update_that_has_not_begun(
    base: Path, tmp_path: Path, chosen: int, rejected: int, top_layers: int
) -> None:
    """All log-ratios are 0, so robust DPO gives ln 2, and the SFT term the base's own nats per trained token."""
    settings = {"batch_size": 16, "sft_weight": 0.5, "lora_top_layers": top_layers}
    settings |= {"chosen_tokens": chosen, "rejected_tokens": rejected}
    facts, _ = run(base, tmp_path, SMALL.model_copy(update=settings))
    prober = Prober(base, None, "cpu", torch.float32)

    def trained(texts: list[str], first: int) -> list[torch.Tensor]:
        items = [(p.prompt, f"{text}<|im_end|>") for p, text in zip(pairs(), texts, strict=True)]
        return [scored.base[: first or None] for scored in prober.compare(items)]

    kept = trained([p.chosen for p in pairs()], chosen)
    dropped = trained([p.rejected for p in pairs()], rejected)
    first = facts["log"][0]
    assert first["loss"] == pytest.approx(math.log(2) - 0.5 * float(torch.cat(kept).mean()), rel=1e-4)
    for name, rows in (("chosen", kept), ("rejected", dropped)):
        assert first[f"logps/{name}"] == pytest.approx(sum(float(row.sum()) for row in rows) / 16, rel=1e-4)
    assert facts["steps"] == 1


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_the_learnt_change_is_scaled_and_nothing_else(
    base: Path, tmp_path: Path, unbroken: tuple[dict[str, Any], Path], factor: float
) -> None:
    _, out = run(base, tmp_path, SMALL.model_copy(update={"extrapolation": factor}))
    plain, scaled = load_file(unbroken[1] / WEIGHTS), load_file(out / WEIGHTS)
    for name, value in plain.items():
        assert torch.allclose(scaled[name], value * factor if "lora_B" in name else value, rtol=1e-6), name
    whole, further = (Prober(base, folder, "cpu", torch.float32) for folder in (unbroken[1], out))
    item = (pairs(1)[0].prompt, pairs(1)[0].chosen)
    gains = [float((s.candidate - s.base).sum()) for s in (whole.compare([item])[0], further.compare([item])[0])]
    assert (gains[1] > gains[0]) == (factor > 1)


# --- what is written


def test_facts_and_the_run_record(unbroken: tuple[dict[str, Any], Path]) -> None:
    facts, out = unbroken
    assert (facts["n_pairs"], facts["dropped_long"], facts["steps"]) == (16, 0, 4)
    assert [row["step"] for row in facts["log"]] == [1, 2, 3, 4]
    assert math.isfinite(facts["loss"])
    record = json.loads((out / "run.json").read_text())
    assert record["stage"] == "update"
    assert record["settings"] == SMALL.model_dump()
    assert (record["snapshot_sha256"], record["reference"]) == ("5" * 64, "base, adapters off")
    assert set(record["versions"]) == {"torch", "transformers", "trl", "peft", "accelerate"}
    assert {p.name for p in out.iterdir()} == {WEIGHTS, "adapter_config.json", "run.json"}


def test_equal_seeds_give_equal_adapters(base: Path, tmp_path: Path, unbroken: tuple[dict[str, Any], Path]) -> None:
    _, out = run(base, tmp_path)
    first, again = load_file(unbroken[1] / WEIGHTS), load_file(out / WEIGHTS)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_progress_is_told_at_every_step(base: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    run(base, tmp_path, progress=lambda done, note, *_: told.append((done, note)))
    assert told[0][0] == 0.0
    assert told[0][1].startswith("reference log-probabilities: ")
    assert [done for done, note in told if note.startswith("step ")] == [0.25, 0.5, 0.75, 1.0]
    assert told[-1][1].startswith("step 4/4, loss ")


# --- what is refused


@pytest.mark.parametrize(("n", "long"), [(MIN_PAIRS - 1, 0), (MIN_PAIRS + 1, 2), (0, 0)])
def test_too_few_pairs_stop_the_stage(base: Path, tmp_path: Path, n: int, long: int) -> None:
    given = [*pairs(n - long), *(Preference(user("a b c d " * 60), "yes", "no") for _ in range(long))]
    with pytest.raises(StageError, match=f"{n - long} usable pairs .{long} of {n} dropped.*Collect more judgments"):
        update_policy(given, base, tmp_path / "work", tmp_path / "out", SMALL, device="cpu")
    assert not (tmp_path / "work").exists()


def test_over_long_pairs_are_counted(base: Path, tmp_path: Path) -> None:
    long = [
        Preference(user("a b c d " * 60), "yes", "no"),
        Preference(user("Hi"), "a b c d " * 60, "no"),
        Preference(user("Hi"), "yes", "a b c d " * 60),
    ]
    facts, out = run(base, tmp_path, pairs=[*long, *pairs(9)])
    assert (facts["n_pairs"], facts["dropped_long"]) == (9, 3)
    assert json.loads((out / "run.json").read_text())["dropped_long"] == 3


def test_ties_and_equal_sides_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    """Sides that differ only after the tokens that are learnt are equal too."""
    others = [
        replace(pairs(1)[0], target=0.5),
        Preference(user("Hi"), "yes", "yes"),
        Preference(user("Hi"), "no a", "no b"),
    ]
    settings = SMALL.model_copy(update={"chosen_tokens": 1, "rejected_tokens": 1})
    facts, _ = run(base, tmp_path, settings, pairs=[*others, *pairs(9)])
    assert [facts[name] for name in ("n_pairs", "ties", "dropped_equal", "dropped_long")] == [9, 1, 2, 0]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_weights_that_weigh_nothing_or_less_are_refused(
    base: Path, tmp_path: Path, weights: tuple[float, float]
) -> None:
    given = [replace(pair, weight=weights[i % 2]) for i, pair in enumerate(pairs())]
    with pytest.raises(StageError, match="pairs weigh .*PAIR_WEIGHTS=false"):
        run(base, tmp_path, pairs=given)
    facts, _ = run(base, tmp_path, SMALL.model_copy(update={"pair_weights": False}), pairs=given)
    assert facts["weights"] == {"mean": 1.0, "least": 1.0, "most": 1.0}


def test_pairs_of_weight_zero_are_as_if_they_were_not_there(base: Path, tmp_path: Path) -> None:
    """One step over all: with half of the pairs at 0, the adapter is that of the others alone."""
    (tmp_path / "half").mkdir()
    against = [Preference(p.prompt, p.rejected, p.chosen, weight=0.0) for p in pairs(8)]
    settings = SMALL.model_copy(update={"batch_size": 16, "sft_weight": 0.0})
    facts, both = run(base, tmp_path, settings, pairs=[*pairs(8), *against])
    _, half = run(base, tmp_path / "half", settings, pairs=pairs(8))
    assert facts["weights"] == {"mean": 0.5, "least": 0.0, "most": 1.0}
    found, wanted = load_file(both / WEIGHTS), load_file(half / WEIGHTS)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


def test_microbatches_end_with_the_weights_of_whole_batches(
    base: Path, tmp_path: Path, unbroken: tuple[dict[str, Any], Path]
) -> None:
    facts, out = run(base, tmp_path, SMALL.model_copy(update={"microbatch_size": 1}))
    assert facts["steps"] == unbroken[0]["steps"]
    found, wanted = load_file(out / WEIGHTS), load_file(unbroken[1] / WEIGHTS)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-4


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "kept"), [(5, 3, 2, True), (5, 2, 3, True), (5, 4, 1, False), (6, 1, 3, False)]
)
def test_a_pair_is_as_long_as_its_longer_side(prompt: int, chosen: int, rejected: int, *, kept: bool) -> None:
    row = {"prompt_ids": [1] * prompt, "chosen_ids": [1] * chosen, "rejected_ids": [1] * rejected}
    assert split_by_length([row], 8) == (([row], 0) if kept else ([], 1))


def test_a_loss_that_is_no_number_stops_the_stage(base: Path, tmp_path: Path) -> None:
    """Transformers would log such a loss as 0 and go on, and a useless adapter would be registered."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in base.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="loss is nan at step 1.*nothing is registered"):
        run(damaged, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


# --- resuming


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@pytest.mark.parametrize("top_layers", [0, 1])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(base: Path, tmp_path: Path, top_layers: int) -> None:
    settings = SMALL.model_copy(update={"epochs": 2.0, "lora_top_layers": top_layers, "save_steps": 3})
    (tmp_path / "whole").mkdir()
    whole, expected = run(base, tmp_path / "whole", settings)

    def kill(done: float, note: str, rows: object = ()) -> None:
        if note.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        run(base, tmp_path, settings, progress=kill)
    assert last_checkpoint(tmp_path / "work") == str(tmp_path / "work" / "checkpoint-3")
    assert list((tmp_path / "out").iterdir()) == []

    told: list[tuple[str, list[Any]]] = []
    facts, out = run(base, tmp_path, settings, progress=lambda _, note, rows=(): told.append((note, list(rows))))
    steps = [note.split(",")[0] for note, _ in told if note.startswith("step ")]
    assert steps[:2] == ["step 3/8", "step 4/8"]  # went on, did not begin again
    assert [row for _, rows in told for row in rows] == facts["log"]  # those of the checkpoint are told again
    assert facts["steps"] == whole["steps"] == 8
    found, wanted = load_file(out / WEIGHTS), load_file(expected / WEIGHTS)
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-6
    assert [row["step"] for row in facts["log"]] == list(range(1, 9))


def test_a_checkpoint_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    for number, whole in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if whole:
            (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_cut_completion_teaches_no_end_of_turn(base: Path, tmp_path: Path) -> None:
    """With the whole loss on one token after each text, only complete texts raise the end of turn."""
    ends = []
    for complete in (True, False):
        folder = tmp_path / str(complete)
        folder.mkdir()
        given = [replace(p, chosen_complete=complete, rejected_complete=complete) for p in pairs()]
        settings = SMALL.model_copy(update={"epochs": 3.0})
        _, out = run(base, folder, settings, pairs=given)
        prober = Prober(base, out, "cpu", torch.float32)
        logps = [s.candidate for s in prober.compare([(p.prompt, p.chosen + "<|im_end|>") for p in pairs(4)])]
        ends.append(sum(float(row[-1]) for row in logps) / len(logps))
    assert ends[0] > ends[1] + 1.0  # nats
