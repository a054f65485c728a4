"""Less memory for the same result: blocks computed again, a base in four bits, optimiser states in eight."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ArtifactError, StageError
from core.settings import PpoSettings, RewardSettings, TrainingSettings, UpdateSettings
from finetune import rloo
from finetune.dpo import update_policy
from finetune.ppo import update as ppo
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Prompt, Rollout
from reward.members import Members
from reward.preference import train_reward
from reward.rules import train_rules
from reward.scoring import RewardScorer
from tests.finetune.cases import refusals as pairs
from tests.finetune.cases import share_of_even as share
from tests.finetune.cases import verdicts
from tests.reward.test_preference import toy
from tests.tiny import load_tiny, make_tiny_adapter, make_tiny_base
from training.loop import Schedule, fit
from training.lora import lora_config
from training.memory import AS_USUAL, Held, load_base, make_optimizer, recomputable, recomputed
from training.trunk import share_trunk

WEIGHTS = "adapter_model.safetensors"
WIDE = 64  # rank at which a tiny adapter's factors have states of eight bits: 4096 entries
REWARD = RewardSettings(
    epochs=3.0, learning_rate=5e-3, lora_rank=4, lora_top_layers=1, max_length_tokens=128, members=1, save_steps=2,
    rule_epochs=2.0, rule_folds=2,
)  # fmt: skip
UPDATE = UpdateSettings(epochs=3.0, learning_rate=5e-3, lora_rank=4, max_length_tokens=128, save_steps=2)
PPO = PpoSettings(
    steps=3, prompts_per_step=2, samples_per_prompt=4, max_completion_tokens=6, max_length_tokens=128, epochs=2,
    minibatch_size=8, microbatch_size=4, learning_rate=1e-2, value_learning_rate=1e-2, lora_rank=4, value_top_layers=1,
    save_steps=1, rollouts="trainer", step_kl_limit=0.0,
)  # fmt: skip
KINDS = ("reward", "rules", "dpo", "ppo", "rloo", "grpo")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def run(
    kind: str, base: Path, place: Path, *, progress: Any = lambda *_: None, **changes: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts of a training and its adapter; all kinds train for so long that something is learnt."""
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    common: Any = {"device": "cpu", "progress": progress}
    if kind == "reward":
        facts = train_reward(
            toy(0, 24), toy(100, 8), base, place / "w", out, REWARD.model_copy(update=changes), **common
        )
        return facts, load_file(out / "member-0" / WEIGHTS)
    if kind == "rules":
        facts = train_rules(
            verdicts(0, 24), verdicts(100, 8), base, place / "w", out, REWARD.model_copy(update=changes), **common
        )
        return facts, load_file(out / "rules" / WEIGHTS)
    if kind == "dpo":
        facts = update_policy(pairs(), base, place / "w", out, UPDATE.model_copy(update=changes), **common)
    else:
        given = (pairs(3), share, base, place / "w", out, PPO.model_copy(update=changes))
        facts = ppo.update_policy(*given, **common) if kind == "ppo" else rloo.update_policy(kind, *given, **common)  # type: ignore[arg-type]
    return facts, load_file(out / WEIGHTS)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() != set()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@contextmanager
def kept_bytes() -> Iterator[Callable[[], int]]:
    """What autograd keeps for the backward pass of what is computed within, each storage once."""
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(storage.nbytes() for storage in seen.values())


# --- gradient checkpointing


def sequences(n: int = 6) -> dict[str, torch.Tensor]:
    """Rows in pairs that share a beginning, of which all share the first part: they go through the blocks packed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (2 * n, 40), generator=generator)
    ids[:, :16] = ids[0, :16]
    ids[n:, :24] = ids[:n, :24]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("top_layers", [0, 1])
def test_the_trunk_gives_the_same_gradients_and_keeps_less(base: Path, top_layers: int) -> None:
    from peft import get_peft_model

    found, kept, calls = [], [], []
    for wanted in (False, True):
        model = load_tiny(base)
        model = get_peft_model(model, lora_config(model, rank=4, top_layers=top_layers, task="CAUSAL_LM"))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        trunk = share_trunk(model.eval(), top_layers)
        assert trunk is not None
        blocks = recomputable(model.get_base_model(), wanted)
        assert len(blocks) == (2 if wanted else 0)
        calls.append(0)

        def count(*_: Any, **__: Any) -> None:
            calls[-1] += 1

        for layer in trunk.upper:
            layer.self_attn.register_forward_pre_hook(count)
        with kept_bytes() as told, recomputed(blocks):
            states = trunk.forward(**sequences(), use_cache=False).last_hidden_state
            loss = (states * torch.arange(states.shape[-1])).sin().mean()
        kept.append(told())
        loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert not any(block.training for block in blocks)
    assert apart(*found) == 0
    assert max(float(value.abs().max()) for value in found[0].values()) > 1e-4
    assert calls[1] == 2 * calls[0] > 0
    assert kept[1] < 0.5 * kept[0]


def test_members_give_the_same_gradients_and_keep_less(base: Path) -> None:
    ids = [[int(i) for i in row] for row in sequences()["input_ids"]]
    found, kept = [], []
    for wanted in (False, True):
        members = Members.fresh(
            base, 2, REWARD.model_copy(update={"gradient_checkpointing": wanted, "members": 2}), "cpu"
        )
        parameters = members.parameters("member-1")
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        with kept_bytes() as told:
            loss = members.forward("member-1", ids, [(i, i + 6) for i in range(6)]).square().sum()
        kept.append(told())
        loss.backward()
        found.append({name: p.grad.clone() for name, p in parameters.items()})
        with torch.no_grad():
            members.scores(ids)  # and scoring is as before
    assert apart(*found) == 0
    assert kept[1] < 0.7 * kept[0]


def test_both_of_ppos_adapters_get_the_same_gradients(base: Path) -> None:
    """A block is computed again by the adapter that it was computed with: each loss runs backward before the other's pass."""
    prompt = Prompt((("user", "x"),), tuple(range(5, 30)))
    rows = [Rollout(prompt, tuple(range(40 + i, 52 + i)), True, "", (float("nan"),) * 12) for i in range(6)]
    found: list[dict[str, torch.Tensor]] = []
    kept: list[int] = []
    for wanted in (False, True):
        settings = PPO.model_copy(update={"gradient_checkpointing": wanted, "value_top_layers": 1})
        models = LoraActorCritic(load_tiny(base), settings)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in (*models.policy.values(), *models.value.values()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        models.reference_logps(rows)
        with kept_bytes() as told:
            loss = models.policy_logps(rows)[0].square().sum()
        kept.append(told())
        loss.backward()
        models.values(rows).square().sum().backward()
        found.append({n: p.grad.clone() for named in (models.policy, models.value) for n, p in named.items()})
    assert apart(*found) == 0
    assert kept[1] < 0.6 * kept[0]


@each_kind
def test_what_is_computed_again_ends_with_the_same_weights(base: Path, tmp_path: Path, kind: str) -> None:
    _, plain = run(kind, base, tmp_path / "plain")
    _, again = run(kind, base, tmp_path / "again", gradient_checkpointing=True)
    assert apart(plain, again) < 1e-6


def test_a_model_without_such_blocks_is_refused() -> None:
    class Other(torch.nn.Module):
        class config:
            model_type = "other"

    with pytest.raises(StageError, match="other has no blocks whose activations could be computed again"):
        recomputable(Other(), True)


# --- a base in four bits


@each_kind
def test_on_a_base_in_four_bits_the_adapter_learns_and_the_base_stays(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its packed weights, byte by byte; what is trained is fp32, and is what comes out on the disk."""
    from bitsandbytes.nn import Linear4bit

    seen: list[tuple[Any, dict[str, torch.Tensor]]] = []

    def loaded(base: Path, device: Any, held: Held = AS_USUAL, **more: Any) -> Any:
        model = load_base(base, device, held, **more)
        if held.quantization == "none":
            return model
        packed = {n: m.weight.data.clone() for n, m in model.named_modules() if isinstance(m, Linear4bit)}
        assert len(packed) == 2 * 7  # all linears of the blocks, and no head
        assert all(weight.dtype == torch.uint8 for weight in packed.values())
        seen.append((model, packed))
        return model

    for place in ("reward.members", "finetune.dpo", "finetune.ppo.update", "finetune.rloo"):
        monkeypatch.setattr(f"{place}.load_base", loaded)
    facts, adapter = run(kind, base, tmp_path, quantization="nf4", optimizer="adamw_8bit")
    model, packed = seen[0]
    now = {n.replace(".base_layer", ""): m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert now.keys() == packed.keys()
    assert all(torch.equal(now[name].weight.data, weight) for name, weight in packed.items())
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "lora_" in n)
    moved = [float(value.abs().max()) for name, value in adapter.items() if "lora_B" in name]
    assert min(moved) > 1e-3
    if kind in ("reward", "rules", "dpo"):
        assert facts["log"][-1]["loss"] < 0.9 * facts["log"][0]["loss"]
    _, whole = run(kind, base, tmp_path / "whole")
    assert apart(adapter, whole) > 1e-4  # it was not the whole base after all


def test_a_reward_model_is_scored_with_on_the_base_that_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    """On the whole base its scores differ; so the record says how the base was held, and loading does as it says."""
    run("reward", base, tmp_path, quantization="nf4")
    out = tmp_path / "out"
    scorer = RewardScorer.load(out, base, "cpu")
    assert scorer.members.model.get_base_model().is_loaded_in_4bit
    items = [(p.prompt, p.chosen) for p in toy(0, 6)]
    whole = RewardScorer(Members.load({"member-0": out / "member-0"}, base, "cpu"), scorer.offsets, 0.0)
    gaps = [abs(a - b) for a, b in zip(scorer.score(items), whole.score(items), strict=True)]
    assert max(gaps) > 1e-3


def test_models_that_need_the_base_in_two_forms_are_not_put_together(base: Path, tmp_path: Path) -> None:
    from core.artifacts import hash_folder
    from reward.models import RewardModel
    from reward.service import RewardService

    run("reward", base, tmp_path / "reward")
    run("rules", base, tmp_path / "rules", quantization="nf4")
    rows = [RewardModel(path=f"{n}/out", sha256=hash_folder(tmp_path / n / "out")) for n in ("reward", "rules")]
    with pytest.raises(
        ArtifactError, match="on a base in auto and that of rules in .* on one in nf4 .auto.; they cannot share"
    ):
        RewardService.open(tmp_path, base, *rows, device="cpu")


def test_what_cannot_be_quantised_says_so(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("bitsandbytes is not there\nmore")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(
        StageError, match="cannot be held in four bits on cpu: bitsandbytes is not there. Set the stage's QUANTIZATION"
    ):
        load_base(base, torch.device("cpu"), Held("nf4"))


# --- optimisers


@pytest.mark.parametrize("size", [100, 8192])
def test_states_of_eight_bits_and_what_a_checkpoint_keeps_of_them(tmp_path: Path, size: int) -> None:
    """A run that is taken up ends with the very weights; states of fewer than 4096 entries stay whole."""
    target = torch.randn(size, generator=torch.Generator().manual_seed(0))
    memory = TrainingSettings(optimizer="adamw_8bit")
    schedule = Schedule(epochs=4.0, batch_size=4, learning_rate=0.1, save_steps=3, seed=1)

    class Killed(BaseException):
        pass

    def kill(_: float, note: str, *_rows: object) -> None:
        if note.startswith("step 8/"):
            raise Killed

    def start() -> tuple[dict[str, torch.Tensor], Callable[[list[int]], Any]]:
        w = {name: torch.zeros(size, requires_grad=True) for name in ("a", "b/c")}
        return w, lambda rows: sum((value - target * len(rows)).square().mean() for value in w.values())

    whole, loss = start()
    log = fit(whole, 16, loss, schedule, tmp_path / "whole", memory=memory)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    broken, loss = start()
    with pytest.raises(Killed):
        fit(broken, 16, loss, schedule, tmp_path / "broken", memory=memory, progress=kill)
    kept = load_file(next((tmp_path / "broken").glob("step-*")) / "state.safetensors")
    assert kept["adam/a/state1"].dtype == (torch.uint8 if size > 4096 else torch.float32)
    again, loss = start()
    assert fit(again, 16, loss, schedule, tmp_path / "broken", memory=memory) == log
    assert all(torch.equal(again[name], value) for name, value in whole.items())


class Killed(BaseException):
    """What a test raises where a machine would lose power."""


@each_kind
def test_a_killed_run_with_states_of_eight_bits_goes_on(base: Path, tmp_path: Path, kind: str) -> None:
    changes = {"optimizer": "adamw_8bit", "lora_rank": WIDE, "gradient_checkpointing": True}
    _, whole = run(kind, base, tmp_path / "whole", **changes)
    _, plain = run(kind, base, tmp_path / "plain", **changes | {"optimizer": "adamw"})
    assert apart(whole, plain) > 1e-6  # another optimiser it is

    def kill(_: float, note: str, *_rows: object) -> None:
        if note.startswith("step 3/"):
            raise Killed

    with pytest.raises(Killed):
        run(kind, base, tmp_path / "broken", progress=kill, **changes)
    told: list[str] = []
    _, found = run(kind, base, tmp_path / "broken", progress=lambda _, note, *_rows: told.append(note), **changes)
    assert not any(note.startswith("step 1/") for note in told)
    assert apart(found, whole) < 1e-6


@each_kind
def test_states_in_pages_are_refused_on_a_cpu(base: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        StageError, match="OPTIMIZER=paged_adamw_8bit moves states between .* does not work on a CPU; take"
    ):
        run(kind, base, tmp_path, optimizer="paged_adamw_8bit")


def test_the_plain_optimiser_is_torchs() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    found = make_optimizer(TrainingSettings(), [parameter], torch.device("cpu"), lr=0.1)
    assert type(found) is torch.optim.AdamW


def test_an_adapter_of_a_quantised_base_is_served_on_the_whole_one(base: Path, tmp_path: Path) -> None:
    """What QLoRA makes is an adapter like others: it loads onto the base that the engine has."""
    _, adapter = run("dpo", base, tmp_path, quantization="nf4")
    plain = load_tiny(base, tmp_path / "out")
    names = {name for name, _ in plain.named_parameters() if "lora_" in name}
    assert len(names) == len(adapter)
    other = load_tiny(base, make_tiny_adapter(base, tmp_path / "other", scale=0.0))
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert not torch.allclose(plain(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-3)
