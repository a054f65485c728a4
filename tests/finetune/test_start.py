"""Updates that continue the incumbent's adapter, by every method: where they begin, what they are held to, what is recorded."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from sqlalchemy import select

from core.artifacts import hash_folder
from core.db import Database
from core.settings import PpoSettings, Settings, UpdateSettings
from evals.prober import Prober
from finetune import rloo
from finetune.dpo import update_policy
from finetune.ppo import update as ppo
from finetune.ppo.rollouts import Rollout
from finetune.start import BASE, Parent, Start
from policy.models import PolicyVersion
from tests.finetune.cases import Build
from tests.finetune.cases import refusals as pairs
from tests.finetune.cases import share_of_even as share
from tests.tiny import make_tiny_adapter, make_tiny_base

WEIGHTS = "adapter_model.safetensors"
DPO = UpdateSettings(
    epochs=1.0, learning_rate=5e-3, batch_size=8, lora_rank=4, max_length_tokens=128, save_steps=1,
    adapter="continued", label_smoothing=0.0,
)  # fmt: skip
PPO = PpoSettings(
    steps=2, prompts_per_step=2, samples_per_prompt=4, max_completion_tokens=6, max_length_tokens=128, epochs=1,
    minibatch_size=8, microbatch_size=8, learning_rate=1e-2, value_learning_rate=1e-2, lora_rank=4, value_top_layers=1,
    save_steps=1, rollouts="trainer", step_kl_limit=0.0, kl_limit=0.0,
)  # fmt: skip
METHODS = ("dpo", "ppo", "rloo", "grpo")
each_method = pytest.mark.parametrize("method", METHODS)
each_reference = pytest.mark.parametrize("reference", ["base", "incumbent"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def parent(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Parent:
    """An adapter that speaks clearly otherwise than the base, of the form that these updates train."""
    folder = make_tiny_adapter(base, tmp_path_factory.mktemp("parent") / "adapter", scale=0.15)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    return Parent("v7", folder, hash_folder(folder))


def run(
    method: str, base: Path, place: Path, start: Start | None, *, progress: Any = lambda *_: None, **changes: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts of an update and the adapter that it wrote to `place/out`."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    common: Any = {"device": "cpu", "start": start, "progress": progress}
    if method == "dpo":
        facts = update_policy(pairs(), base, place / "work", out, DPO.model_copy(update=changes), **common)
    else:
        settings = PPO.model_copy(update=changes)
        given = (pairs(3), share, base, place / "work", out, settings)
        facts = ppo.update_policy(*given, **common) if method == "ppo" else rloo.update_policy(method, *given, **common)  # type: ignore[arg-type]
    return facts, load_file(out / WEIGHTS)


def begin(parent: Parent, reference: str = "base") -> Start:
    return Start.of(DPO.model_copy(update={"reference": reference}), parent)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() != set()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@each_method
@each_reference
def test_it_begins_at_the_parent_and_moves_from_there(
    base: Path, parent: Parent, tmp_path: Path, method: str, reference: str
) -> None:
    theirs = load_file(parent.folder / WEIGHTS)
    still, found = run(method, base, tmp_path / "still", begin(parent, reference), learning_rate=1e-12)
    assert apart(found, theirs) < 1e-6
    _, moved = run(method, base, tmp_path / "moved", begin(parent, reference))
    assert 1e-3 < apart(moved, theirs) < 0.2  # a fresh one would be further: the parent's weights are about 0.15
    record = json.loads((tmp_path / "still" / "out" / "run.json").read_text())
    expected = {
        "adapter": "continued", "parent": "v7", "parent_sha256": parent.sha256,
        "reference": BASE if reference == "base" else "the incumbent, v7",
    }  # fmt: skip
    assert expected.items() <= record.items()
    assert expected.items() <= still.items()
    assert ("all rounds together" in record["reference_why"]) == (reference == "base")
    assert {p.name for p in (tmp_path / "still" / "out").iterdir()} == {WEIGHTS, "adapter_config.json", "run.json"}


@each_reference
def test_dpo_compares_with_what_the_record_names(base: Path, parent: Parent, tmp_path: Path, reference: str) -> None:
    """The first step's margins by hand: the parent's log-ratios to the base, or nothing where it is compared with itself."""
    facts, _ = run("dpo", base, tmp_path, begin(parent, reference), batch_size=16)
    prober = Prober(base, parent.folder, "cpu", torch.float32)

    def ratios(texts: list[str]) -> torch.Tensor:
        items = [(p.prompt, f"{text}<|im_end|>") for p, text in zip(pairs(), texts, strict=True)]
        return torch.tensor([float((s.candidate - s.base).sum()) for s in prober.compare(items)])

    margin = float((ratios([p.chosen for p in pairs()]) - ratios([p.rejected for p in pairs()])).mean())
    assert abs(margin) > 0.5
    expected = DPO.beta * margin if reference == "base" else 0.0
    assert facts["log"][0]["rewards/margins"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_the_kl_is_that_to_what_the_record_names(base: Path, parent: Parent, tmp_path: Path, method: str) -> None:
    first = {}
    for reference in ("base", "incumbent"):
        facts, _ = run(method, base, tmp_path / reference, begin(parent, reference), steps=1, learning_rate=1e-12)
        first[reference] = facts["log"][0]["kl_per_token"]
    assert first["base"] > 0.05
    assert abs(first["incumbent"]) < 1e-4


def test_the_reference_is_trained_by_nobody(base: Path, parent: Parent) -> None:
    """PPO's three adapters: only two have gradients, and the third says what the parent does."""
    from finetune.ppo.model import LoraActorCritic
    from finetune.ppo.rollouts import Prompt
    from tests.tiny import load_tiny

    models = LoraActorCritic(load_tiny(base), PPO, begin(parent, "incumbent"))
    trained = {name for name, p in models.peft.named_parameters() if p.requires_grad}
    assert trained == {*models.policy, *(name for name in models.value if not name.startswith("head."))}
    assert not any(".ref." in name for name in trained)
    row = Rollout(Prompt((("user", "x"),), tuple(range(5, 20))), (30, 31, 32), True, "", (math.nan,) * 3)
    with torch.no_grad():
        for parameter in models.policy.values():
            parameter.mul_(0.0)
    plain = load_tiny(base, parent.folder)
    ids = torch.tensor([[*row.prompt.ids, *row.ids]])
    with torch.no_grad():
        logps = plain(input_ids=ids).logits[0].log_softmax(-1)
    expected = torch.stack([logps[14 + t, token] for t, token in enumerate(row.ids)])
    assert torch.allclose(models.reference_logps([row]), expected, atol=1e-5)


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@each_method
@each_reference
def test_a_killed_run_goes_on(base: Path, parent: Parent, tmp_path: Path, method: str, reference: str) -> None:
    """Except that of another parent, whose checkpoints are left alone."""
    changes = {"epochs": 2.0} if method == "dpo" else {"steps": 3}
    start = begin(parent, reference)
    _, whole = run(method, base, tmp_path / "whole", start, **changes)

    def kill(done: float, note: str, *_rows: object) -> None:
        if note.startswith("step 2/"):
            raise Killed

    with pytest.raises(Killed):
        run(method, base, tmp_path / "broken", start, progress=kill, **changes)
    told: list[str] = []
    _, found = run(
        method, base, tmp_path / "broken", start, progress=lambda _, note, *_rows: told.append(note), **changes
    )
    assert not any(
        note.startswith("step 1/") and "," in note for note in told
    )  # one that is taken up tells no figures of it
    assert apart(found, whole) < 1e-5
    again: list[str] = []
    other = Start.of(DPO, Parent("v8", parent.folder, "8" * 64))
    run(method, base, tmp_path / "broken", other, progress=lambda _, note, *_rows: again.append(note), **changes)
    assert any(note.startswith("step 1/") and "," in note for note in again)


@each_method
def test_a_fresh_one_is_held_to_the_base(base: Path, tmp_path: Path, method: str) -> None:
    facts, _ = run(method, base, tmp_path, None)
    assert (facts["adapter"], facts["parent"], facts["parent_sha256"]) == ("fresh", None, None)
    assert (facts["reference"], facts["reference_why"]) == (
        BASE,
        "the adapter is fresh, so the base is where it begins",
    )


def test_without_an_adapter_to_continue_it_begins_at_the_base() -> None:
    start = Start.of(DPO, None)
    assert (start.parent, start.reference) == (None, BASE)
    assert "no adapter is active that could be continued" in start.facts()["reference_why"]
    assert start.work(Path("w")) == Path("w")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="reference=incumbent goes with adapter=continued"):
        UpdateSettings(reference="incumbent")
    with pytest.raises(ValidationError, match="extrapolation would scale what the incumbent had learnt"):
        UpdateSettings(adapter="continued", extrapolation=1.5)


@pytest.mark.parametrize("kind", ["dpo", "ppo", "rloo"])
def test_the_row_names_its_parent(
    build: Build,
    database: Database,
    settings: Settings,
    base: Path,
    parent: Parent,
    kind: str,
) -> None:
    case = build(kind, adapter="continued", reference="incumbent")
    active = case.make_active(parent.folder)
    ended = case.run()
    assert ended.state == "done", ended.outcome
    with database.read() as session:
        made = session.scalars(select(PolicyVersion).where(PolicyVersion.cycle_id == case.cycle_id)).one()
        assert made.parent_id == active.id
        assert made.reference == "the incumbent, v0"
