"""Updates by RLOO and GRPO with a tiny model: TRL's trainers, rewarded and recorded as PPO is."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.errors import StageError
from core.settings import PpoSettings
from finetune.ppo.rollouts import Rollout
from finetune.rloo import batch_sizes, update_policy
from tests.finetune.ppo.conftest import QUESTIONS, SMALL
from tests.finetune.ppo.test_update import pairs, share
from tests.tiny import make_tiny_base

SETTINGS = SMALL.model_copy(update={"steps": 2, "epochs": 1, "minibatch_size": 8, "microbatch_size": 4})
METHODS = pytest.mark.parametrize("method", ["rloo", "grpo"])
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def run(method: Any, base: Path, tmp_path: Path, score: Any = share, **more: Any) -> tuple[dict[str, Any], Path]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True, parents=True)
    options = {k: more.pop(k) for k in ("progress",) if k in more}
    settings = SETTINGS.model_copy(update=more)
    return update_policy(method, pairs(), score, base, tmp_path / "work", out, settings, device="cpu", **options), out


@METHODS
def test_what_is_rewarded_is_learnt(base: Path, tmp_path: Path, method: str) -> None:
    """The share of even tokens, of which the base writes a half."""
    facts, _ = run(
        method, base, tmp_path, steps=24, prompts_per_step=3, samples_per_prompt=16, minibatch_size=24,
        microbatch_size=24, epochs=2, max_completion_tokens=4, kl_coefficient=0.0, missing_eos_penalty=0.0,
        save_steps=100,
    )  # fmt: skip
    rewards = [row["reward"] for row in facts["log"]]
    assert sum(rewards[:4]) / 4 < 0.6
    assert sum(rewards[-4:]) / 4 > 0.75


@METHODS
def test_the_record_is_that_of_ppo(base: Path, tmp_path: Path, method: str) -> None:
    seen: list[Rollout] = []

    def score(rows: Sequence[Rollout]) -> list[float]:
        seen.extend(rows)
        return share(rows)

    facts, out = run(method, base, tmp_path, score)
    expected = {
        "method": method, "n_prompts": 3, "dropped_long": 0, "steps": 2, "samples": 16, "rollouts": "generate",
        "reference": "base, adapters off",
    }  # fmt: skip
    assert expected.items() <= facts.items()
    record = json.loads((out / "run.json").read_text())
    assert expected.items() <= record.items()
    assert {p.name for p in out.iterdir()} == {WEIGHTS, "adapter_config.json", "run.json"}
    assert [row["step"] for row in facts["log"]] == [1, 2]
    for row in facts["log"]:
        told = {"reward", "reward_sd", "kl", "kl_per_token", "entropy", "completion_tokens", "missing_eos", "loss"}
        assert told <= row.keys()
        assert all(math.isfinite(row[name]) for name in told)
    assert facts["log"][0]["kl"] == pytest.approx(0, abs=1e-4)

    assert len(seen) == 16  # scored as PPO's are: exact tokens on the prompts of the snapshot
    assert {row.prompt.messages[0][1] for row in seen} <= set(QUESTIONS)
    assert all(1 <= len(row.ids) <= 6 for row in seen)
    mean = [sum(share(seen[i : i + 8])) / 8 - 1.0 for i in (0, 8)]  # all were cut, which costs 1
    assert [row["reward"] for row in facts["log"]] == pytest.approx(mean, abs=1e-5)
    moved = [name for name, value in load_file(out / WEIGHTS).items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == 2 * 7


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@METHODS
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(base: Path, tmp_path: Path, method: str) -> None:
    _, expected = run(method, base, tmp_path / "whole", steps=4, save_steps=2)

    def kill(done: float, note: str, rows: object = ()) -> None:
        if note.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        run(method, base, tmp_path, steps=4, save_steps=2, progress=kill)
    told: list[tuple[str, list[Any]]] = []
    facts, out = run(
        method, base, tmp_path, steps=4, save_steps=2,
        progress=lambda _, note, rows=(): told.append((note, list(rows))),
    )  # fmt: skip
    assert [note.split(",")[0] for note, _ in told[:2]] == ["step 2/4", "step 3/4"]
    assert [row for _, rows in told for row in rows] == facts["log"]
    found, wanted = load_file(out / WEIGHTS), load_file(expected / WEIGHTS)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


@METHODS
def test_a_reward_that_is_no_number_registers_nothing(base: Path, tmp_path: Path, method: str) -> None:
    """TRL itself would leave such completions out in silence."""
    with pytest.raises(StageError, match="no finite numbers; the run is stopped and nothing is registered"):
        run(method, base, tmp_path, lambda rows: [math.nan] * len(rows))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("prompts", "samples", "mini", "micro", "epochs", "expected"),
    [
        (2, 4, 8, 8, 1, {"samples": 8, "micro": 8, "accumulated": 1, "updates": 1}),
        (4, 4, 8, 2, 3, {"samples": 16, "micro": 2, "accumulated": 4, "updates": 6}),
        (1, 2, 99, 99, 1, {"samples": 2, "micro": 2, "accumulated": 1, "updates": 1}),
        (4, 1, 4, 4, 1, None),
        (4, 4, 8, 3, 1, None),
        (3, 4, 8, 8, 1, None),
    ],
)
def test_batches_fit_into_each_other_or_are_refused(
    prompts: int, samples: int, mini: int, micro: int, epochs: int, expected: dict[str, int] | None
) -> None:
    settings = PpoSettings(
        prompts_per_step=prompts, samples_per_prompt=samples, minibatch_size=mini, microbatch_size=micro, epochs=epochs
    )
    if expected is None:
        with pytest.raises(StageError, match="a multiple of the next; change DUNNOCK_PPO__MINIBATCH_SIZE"):
            batch_sizes(settings)
    else:
        assert batch_sizes(settings) == expected
