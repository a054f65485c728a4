"""The whole update by PPO with a tiny model: what is learnt and moved, written, refused and taken up again."""

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import StageError
from core.messages import user
from feedback.preferences import Preference
from finetune.ppo import update as update_module
from finetune.ppo.rollouts import Rollout
from finetune.ppo.trainer import PpoTrainer
from finetune.ppo.update import EngineRollouts, encode_prompts, update_policy
from policy.client import EngineClient
from policy.engine.adapters import check_adapter
from tests.finetune.ppo.conftest import QUESTIONS, SMALL
from tests.policy.engine.live import LiveEngine
from tests.tiny import load_tiny

WEIGHTS = "adapter_model.safetensors"


def pairs() -> list[Preference]:
    """Each question twice: a prompt is asked once, however many pairs it has."""
    return [Preference(user(question), chosen, "no") for question in QUESTIONS for chosen in ("yes", "sure")]


def share(rows: Sequence[Rollout]) -> list[float]:
    """How much of a completion is tokens with even numbers."""
    return [sum(token % 2 == 0 for token in row.ids) / len(row.ids) for row in rows]


def run(base: Path, tmp_path: Path, score: Any = share, **more: Any) -> tuple[dict[str, Any], Path]:
    """Facts and adapter folder of an update, with its work folder in `tmp_path/work`."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True, parents=True)
    options = {k: more.pop(k) for k in ("progress", "engine", "facts") if k in more}
    settings = SMALL.model_copy(update=more)
    return update_policy(pairs(), score, base, tmp_path / "work", out, settings, device="cpu", **options), out


# --- learning


def test_what_is_rewarded_is_learnt(base: Path, tmp_path: Path) -> None:
    """The optimum is 1, completions of even tokens alone; of the base's tokens about half are."""
    facts, _ = run(
        base, tmp_path, steps=40, prompts_per_step=3, samples_per_prompt=16, minibatch_size=24, microbatch_size=24,
        epochs=4, max_completion_tokens=4, kl_coefficient=0.0, kl_target=0.0, kl_limit=0.0, missing_eos_penalty=0.0,
        save_steps=100,
    )  # fmt: skip
    log = facts["log"]
    assert log[0]["reward"] < 0.6
    # Steps draw 48 completions each; what CPUs round otherwise sends a run down another path.
    assert statistics.median(row["reward"] for row in log[-5:]) > 0.95
    # How much of what little varies a value explains hangs on that path too; that it learns does not.
    explained = [row["explained_variance"] for row in log]
    assert statistics.median(explained[9:]) > statistics.median(explained[1:6]) + 0.1


def test_adapters_move_and_the_base_does_not(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base weights are compared in memory after training, and on disk; the saved adapter is the policy's alone."""
    seen: list[PpoTrainer] = []

    class Kept(PpoTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            seen.append(self)

    monkeypatch.setattr(update_module, "PpoTrainer", Kept)
    before = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in base.iterdir()}
    facts, out = run(base, tmp_path)
    models: Any = seen[0].models
    saved = load_file(base / "model.safetensors")
    frozen = {n: p for n, p in models.base.named_parameters() if "lora_" not in n}
    assert len(frozen) == len(saved)
    for name, parameter in frozen.items():
        assert torch.equal(parameter, saved[name.replace(".base_layer", "")]), name
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in base.iterdir()} == before
    for named in (models.policy, models.value):
        moved = [name for name, p in named.items() if "lora_B" in name and p.abs().max() > 0]
        assert len(moved) == sum("lora_B" in name for name in named)  # B begins as zeros
    assert models.head.weight.abs().max() > 0

    adapter = load_file(out / WEIGHTS)
    assert len(adapter) == 2 * 7 * 2
    for name, value in adapter.items():
        trained = models.policy[
            name.removeprefix("base_model.model.").join(("base_model.model.", ""))[:-6] + "default.weight"
        ]
        assert torch.equal(value, trained), name
    check_adapter(load_tiny(base), out)
    assert facts["trainable_parameters"] == sum(v.numel() for v in adapter.values())


def test_one_row_at_a_time_learns_what_eight_at_once_do(base: Path, tmp_path: Path) -> None:
    found = []
    for size in (8, 1):
        _, out = run(base, tmp_path / str(size), microbatch_size=size, steps=1, epochs=2)
        found.append(load_file(out / WEIGHTS))
    gaps = [float((found[0][name] - found[1][name]).abs().max()) for name in found[0]]
    moves = [float(value.abs().max()) for name, value in found[0].items() if "lora_B" in name]
    assert max(gaps) < 1e-4
    assert min(moves) > 1e-3


# --- what is written


def test_facts_the_log_and_the_run_record(base: Path, tmp_path: Path) -> None:
    facts, out = run(base, tmp_path, facts={"snapshot_sha256": "5" * 64})
    expected = {
        "method": "ppo", "n_prompts": 3, "dropped_long": 0, "steps": 3, "samples": 24, "stopped": "", "rollouts": "trainer",
        "sampler_counts": {}, "reference": "base, adapters off", "snapshot_sha256": "5" * 64,
    }  # fmt: skip
    assert expected.items() <= facts.items()
    record = json.loads((out / "run.json").read_text())
    assert expected.items() <= record.items()
    assert (record["stage"], record["settings"]) == ("update", SMALL.model_dump())
    assert {p.name for p in out.iterdir()} == {WEIGHTS, "adapter_config.json", "run.json"}
    for number, row in enumerate(facts["log"], 1):
        assert row["step"] == number
        told = {
            "reward", "kl", "entropy", "clip_frac", "policy_loss", "value_loss", "explained_variance", "missing_eos",
            "importance_mean", "beta", "policy_norm", "value_norm", "samples_per_s", "learning_s", "updates",
        }  # fmt: skip
        assert told <= row.keys()
        assert all(math.isfinite(row[name]) for name in told)
    first = facts["log"][0]
    assert first["kl"] == pytest.approx(0, abs=1e-4)  # the policy begins as the base
    assert first["importance_mean"] == pytest.approx(1, abs=1e-4)
    assert first["missing_eos"] == 1.0  # six tokens are too few for a random model
    assert first["updates"] == 2  # one minibatch, two epochs


def test_progress_is_told_at_every_step(base: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    run(base, tmp_path, progress=lambda done, note, *_: told.append((done, note)))
    assert [done for done, _ in told] == pytest.approx([1 / 3, 2 / 3, 1])
    assert told[-1][1].startswith("step 3/3, reward ")


def test_an_engine_samples_the_same_run(base: Path, tmp_path: Path) -> None:
    """The same seeds by the engine: the same tokens, so the same adapter up to the rounding of its other kernels."""
    _, own = run(base, tmp_path / "own")
    artifacts = tmp_path / "artifacts"
    engine = LiveEngine(base, artifacts).start()
    client = EngineClient(engine.url)
    try:
        rollouts = EngineRollouts(client, "v1-ppo", artifacts / "rollouts" / "v1-ppo")
        facts, out = run(base, tmp_path / "engine", engine=rollouts)
        assert client.models() == ["base"]
    finally:
        client.close()
        engine.stop()
    assert facts["rollouts"] == "engine"
    assert facts["sampler_counts"] == {}
    assert all(0 <= row["sampler_gap"] < 1e-3 for row in facts["log"])
    assert not (artifacts / "rollouts" / "v1-ppo").exists()
    found, expected = load_file(out / WEIGHTS), load_file(own / WEIGHTS)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-3


# --- resuming


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@pytest.mark.parametrize(("top_layers", "save_steps", "killed_at"), [(0, 1, 2), (1, 2, 3), (0, 2, 1)])
def test_a_killed_run_ends_with_the_very_weights_of_an_unbroken_one(
    base: Path, tmp_path: Path, top_layers: int, save_steps: int, killed_at: int
) -> None:
    options = {"steps": 4, "lora_top_layers": top_layers, "save_steps": save_steps}
    whole, expected = run(base, tmp_path / "whole", **options)

    def kill(done: float, note: str, rows: object = ()) -> None:
        if note.startswith(f"step {killed_at}/"):
            raise Killed

    with pytest.raises(Killed):
        run(base, tmp_path, progress=kill, **options)
    assert list((tmp_path / "out").iterdir()) == []

    told: list[tuple[str, list[Any]]] = []
    tell = lambda _, note, rows=(): told.append((note, list(rows)))  # noqa: E731
    facts, out = run(base, tmp_path, progress=tell, **options)
    kept = killed_at // save_steps * save_steps
    assert told[kept > 0][0].startswith(f"step {kept + 1}/4")  # went on from its checkpoint
    assert [row for _, rows in told for row in rows] == facts["log"]  # whose rows are told again
    found, wanted = load_file(out / WEIGHTS), load_file(expected / WEIGHTS)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    timed = {"sampling_s", "scoring_s", "learning_s", "samples_per_s"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in facts["log"]] == [
        {k: v for k, v in row.items() if k not in timed} for row in whole["log"]
    ]


# --- what is refused


def test_prompts_without_room_are_dropped_and_counted(base: Path, tokenizer: Any) -> None:
    long = Preference(user("a b c d " * 60), "yes", "no")
    kept, dropped = encode_prompts(tokenizer, [long, *pairs(), long], SMALL)
    assert [p.messages[0][1] for p in kept] == list(QUESTIONS)
    assert dropped == 1
    edge = SMALL.model_copy(update={"max_length_tokens": len(kept[0].ids) + SMALL.max_completion_tokens})
    assert kept[0] in encode_prompts(tokenizer, pairs(), edge)[0]
    with pytest.raises(StageError, match="none of 1 prompts leaves room for 6 tokens within 128.*MAX_LENGTH_TOKENS"):
        encode_prompts(tokenizer, [long], SMALL)


def test_a_reward_that_is_no_number_registers_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="8 rewards, 8 of which are no finite numbers"):
        run(base, tmp_path, lambda rows: [math.nan] * len(rows))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_base_stops_the_stage(base: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in base.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="is nan.* at step 1; the run is stopped and nothing is registered"):
        run(damaged, tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
