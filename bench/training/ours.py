"""Our trainers at work, through the same functions that the stages of a round call, and with their gains turned off one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.training import held_out
from bench.training.data import near_length
from bench.training.work import Clock, Kind, Work, clock
from core.settings import PpoSettings, RewardSettings, UpdateSettings

TOP_LAYERS = 10

VARIANTS: dict[str, dict[str, str]] = {
    "reward": {
        "same": "one member, LoRA on all layers: what the stock trainer does",
        "product": "the settings of a round: four members of rank 8 on the last 10 layers",
        "plain": "our loop with nothing saved: in fp32, by PEFT's layers, every sequence on its own",
        "bf16": "plain, and the base in bf16 where the processor multiplies it faster",
        "fused": "plain, and LoRA layers and norms of one step of autograd each",
        "prefix": "plain, and what both sides of a pair and all pairs begin with goes through the blocks once, attention piece by piece",
        "top_plain": "as `same`, on the last 10 layers, the frozen ones computed each time",
        "top_kept": "the same, states below the adapters kept",
    },
    "dpo": {
        "same": "LoRA on all layers: what the stock trainer does",
        "product": "the settings of a round: as `same`, for two epochs",
        "plain": "our loop with nothing saved: in fp32, by PEFT's layers, every sequence on its own, reference in each step, logits of every position",
        "bf16": "plain, and the base in bf16 where the processor multiplies it faster",
        "fused": "plain, and LoRA layers and norms of one step of autograd each",
        "prefix": "plain, and what both sides of a pair and all pairs begin with goes through the blocks once, attention piece by piece",
        "head": "plain, and logits of completion tokens only",
        "reference": "plain, and the reference computed once, before training, in larger batches",
        "top_plain": "as `same`, on the last 10 layers, the frozen ones computed each time",
        "top_kept": "the same, states below the adapters kept",
        "environment": "as `same`, without the environment that stages run in (how memory is kept, how threads wait)",
    },
    "ppo": {
        "same": "LoRA of policy and value model on all layers, as the stock trainer has it",
        "product": "the same with the value model on the last 10 layers, states below kept",
        "whole": "as `same`, in fp32",
        "unfused": "as `same`, by PEFT's layers and transformers' norms",
        "no_prefix": "as `same`, every completion read with a prompt of its own",
        "generate": "as `same`, completions sampled by transformers' `generate`",
        "alone": "as `same`, one completion for each of as many prompts: less to share",
    },
}
"""What each variant is; `same` is the comparison."""

ALONE = ("plain", "bf16", "fused", "prefix", "head", "reference")
"""`plain`, and each gain alone over it."""

MEMORY: dict[str, dict[str, Any]] = {
    "checkpointed": {"gradient_checkpointing": True},
    "four_bits": {"quantization": "nf4"},
    "eight_bits": {"optimizer": "adamw_8bit"},
}
"""Settings of variants that trade for memory, of every kind; else they are as `same`."""


def train_reward(work: Work) -> dict[str, Any]:
    """A reward model; figures of its training and its accuracy on the held-out pairs."""
    from reward.preference import TRAINING_SHARE
    from reward.preference import train_reward as train

    settings = RewardSettings() if work.variant == "product" else RewardSettings(
        members=1, lora_rank=work.lora_rank, lora_top_layers=_top(work), margin_per_step=0.0,
    )  # fmt: skip
    settings = settings.model_copy(update=_shared(work) | _held(work))
    pairs, heldout, out = work.pairs("train"), work.pairs("heldout"), _new(work, "reward")
    with _variant(work), clock() as timed:
        facts = train(
            pairs, heldout, Path(work.base), Path(work.folder) / "work", out, settings,
            progress=lambda done, *_: timed.stop() if done <= TRAINING_SHARE else None,
        )  # fmt: skip
    found = timed.told(facts["n_train"] * settings.epochs, "pairs")
    return found | held_out.of_reward(out, Path(work.base), heldout)


def train_dpo(work: Work) -> dict[str, Any]:
    """A policy update by DPO; figures of its training, reference included, and what held-out pairs say of it."""
    from finetune.dpo import update_policy

    settings = UpdateSettings(label_smoothing=0.05, lora_rank=work.lora_rank, lora_top_layers=_top(work))
    settings = settings.model_copy(update=_shared(work) | _held(work))
    pairs, out = work.pairs("train"), _new(work, "dpo")
    with _variant(work), clock() as timed:
        facts = update_policy(pairs, Path(work.base), Path(work.folder) / "work", out, settings)
        timed.stop()
    found = timed.told(facts["n_pairs"] * settings.epochs, "pairs")
    return found | held_out.of_policy(out, Path(work.base), work.pairs("heldout"), settings.beta)


def train_ppo(work: Work) -> dict[str, Any]:
    """Steps of PPO; figures of sampling, scoring and learning together, without the loading of models."""
    import torch
    from transformers import AutoTokenizer

    from finetune.ppo.update import update_policy
    from reward.members import Members
    from training.encode import encode_prompt

    torch.manual_seed(work.seed)
    settings = PpoSettings(
        steps=work.steps, prompts_per_step=work.prompts, samples_per_prompt=work.samples_per_prompt,
        max_completion_tokens=work.new_tokens, epochs=work.ppo_epochs, minibatch_size=work.minibatch_size,
        microbatch_size=work.microbatch_size, lora_rank=work.lora_rank, rollouts="trainer", step_kl_limit=0.0,
        kl_limit=0.0, value_top_layers=TOP_LAYERS if work.variant == "product" else 0, seed=work.seed,
        max_length_tokens=4 * work.max_length_tokens, save_steps=10**6,
    )  # fmt: skip
    settings = settings.model_copy(update=_held(work))
    if work.variant == "alone":
        n = work.prompts * work.samples_per_prompt
        settings = settings.model_copy(update={"prompts_per_step": n, "samples_per_prompt": 1})
    tokenizer = AutoTokenizer.from_pretrained(work.base)
    pairs = near_length(tokenizer, work.pairs("train"), settings.prompts_per_step)
    judge = Members.fresh(Path(work.base), 1, RewardSettings(lora_rank=1, lora_top_layers=0, seed=work.seed), "auto")

    def score(rows: Sequence[Any]) -> list[float]:
        found: list[float] = judge.scores([[*row.prompt.ids, *row.ids] for row in rows])[0].tolist()
        return found

    with _variant(work), clock() as timed:
        facts = update_policy(pairs, score, Path(work.base), Path(work.folder) / "work", _new(work, "ppo"), settings)
        timed.stop()
    log = facts["log"]
    found = timed.told(facts["samples"], "samples") | {
        name: round(sum(row[name] for row in log), 2) for name in ("sampling_s", "scoring_s", "learning_s")
    }
    return found | {
        "prompt_tokens": sum(len(encode_prompt(tokenizer, pair.prompt)) for pair in pairs) / len(pairs),
        "completion_tokens": sum(row["completion_tokens"] for row in log) / len(log), "updates": log[-1]["updates"],
        "kl": log[-1]["kl"],
    }  # fmt: skip


def _shared(work: Work) -> dict[str, Any]:
    """What both trainers are told; the settings of a round stay as they are, but for checkpoints."""
    bench = {"save_steps": 10**6, "seed": work.seed}
    if work.variant == "product":
        return bench
    return bench | {
        "epochs": work.epochs, "learning_rate": work.learning_rate, "batch_size": work.batch_size,
        "max_length_tokens": work.max_length_tokens,
    }  # fmt: skip


def _held(work: Work) -> dict[str, Any]:
    """In what the base is held: as on this machine, but where a variant leaves that gain out or trades it."""
    whole = work.variant == "whole" or (work.variant in ALONE and work.variant != "bf16")
    return {"precision": "float32" if whole else work.precision} | MEMORY.get(work.variant, {})


def _top(work: Work) -> int:
    return TOP_LAYERS if work.variant.startswith("top_") else 0


def _new(work: Work, name: str) -> Path:
    out = Path(work.folder) / f"{name}-{work.by}"
    out.mkdir()
    return out


# --- gains turned off


@contextmanager
def _variant(work: Work) -> Iterator[None]:
    """Our code with what a variant leaves out patched away."""
    with ExitStack() as stack:
        for target, replacement in _patches(work):
            stack.enter_context(patch(target, replacement))
        yield


def _patches(work: Work) -> list[tuple[str, Any]]:
    name, kind = work.variant, work.kind
    if name == "no_prefix":
        return [("finetune.ppo.model.Plan", _plan_without_sharing)]
    if name == "generate":
        return [("finetune.ppo.update._sampler", _generating)]
    found: list[tuple[str, Any]] = []
    if name == "unfused" or (name in ALONE and name != "fused"):
        place = "finetune.ppo.model" if kind == "ppo" else "training.fused"
        found.append((f"{place}.fuse", lambda _: None))
    if name in ALONE and name != "prefix":
        found.append(("training.trunk.find_packing", lambda *_: None))
    if kind == "dpo" and name in ALONE and name != "head":
        found.append(("finetune.weighted_dpo.score_labels_only", lambda *_, **__: False))
    if kind == "dpo" and name in ALONE and name != "reference":
        found.append(("finetune.dpo.trainer_class", _reference_in_each_step))
    if name == "top_plain":
        from training.trunk import share_trunk

        place = "finetune.weighted_dpo" if kind == "dpo" else "reward.members"
        forgetful = lambda *given, **named: share_trunk(*given, **(named | {"keep_mb": 0}))  # noqa: E731
        found.append((f"{place}.share_trunk", forgetful))
    return found


def _reference_in_each_step(settings: UpdateSettings, rows: Sequence[dict[str, Any]], *given: Any) -> Any:
    """Our trainer, with the reference's pass over a batch in each step, as the stock trainer makes it by default."""
    from finetune.weighted_dpo import trainer_class

    class EachStep(trainer_class(settings, rows, *given)):  # type: ignore[misc]
        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            self._skip_known_work()
            return dataset

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            chosen, rejected = self.compute_ref_log_probs(model, inputs)
            return super().compute_loss(
                model, inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, *args, **kwargs
            )

    return EachStep


def _plan_without_sharing(keys: Any, groups: Any, row_tokens: Any = None) -> Any:
    """A row of its own for each sequence."""
    from training import prefix

    with patch.object(prefix, "_shared", lambda _: 0), patch.object(prefix, "ROW_TOKENS", max(map(len, keys))):
        return prefix.Plan(keys, [[i] for i in range(len(keys))])


def _generating(models: Any, model: Any, tokenizer: Any, settings: PpoSettings, _: Any) -> Any:
    return Generating(models, model, tokenizer, settings)


class Generating:
    """A sampler of PPO by transformers' `generate`, all completions of a step in one batch, prompts padded on the left."""

    name = "generate"

    def __init__(self, models: Any, model: Any, tokenizer: Any, settings: PpoSettings) -> None:
        from collections import Counter

        self.models, self.model, self.tokenizer, self.settings = models, model, tokenizer, settings
        self.counts: Counter[str] = Counter()

    def sample(self, prompts: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
        """One rollout per prompt; its log-probabilities are not told."""
        import torch

        from finetune.ppo.model import POLICY
        from finetune.ppo.rollouts import NOT_TOLD, Rollout

        torch.manual_seed(seeds[0])
        pad, width = self.tokenizer.pad_token_id or 0, max(len(p.ids) for p in prompts)
        ids = torch.tensor([[pad] * (width - len(p.ids)) + list(p.ids) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts])
        self.models._use(POLICY)
        with torch.no_grad():
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=self.settings.temperature, top_k=0,
                top_p=1.0, max_new_tokens=self.settings.max_completion_tokens, pad_token_id=pad,
            )  # fmt: skip
        rows, eos = [], self.tokenizer.eos_token_id
        for prompt, row in zip(prompts, made[:, width:].tolist(), strict=True):
            kept = row[: row.index(eos) + 1] if eos in row else row
            text = self.tokenizer.decode(kept, skip_special_tokens=True)
            rows.append(Rollout(prompt, tuple(kept), eos in row, text, (NOT_TOLD,) * len(kept)))
        return rows


# --- what is multiplied


def count_flops(work: Work) -> dict[str, Any]:
    """Floating-point operations by pair of the matmuls of a whole training, forward and backward, of DPO and of reward.

    Counted by torch's FlopCounterMode as they run, until the clock stops; attention as far as torch has a formula for it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    trained: dict[Kind, Callable[[Work], dict[str, Any]]] = {"dpo": train_dpo, "reward": train_reward}
    found, stop = {}, Clock.stop
    for kind, train in trained.items():
        counted = [0]
        with FlopCounterMode(display=False) as counter:

            def noting(clock: Clock, counter: Any = counter, counted: list[int] = counted) -> None:
                stop(clock)
                counted[0] = counter.get_total_flops()

            with patch.object(Clock, "stop", noting):
                train(replace(work, kind=kind))
        found[f"{kind}_gflop_per_pair"] = counted[0] / 1e9 / (len(work.pairs("train")) * work.epochs)
    return found


TRAINERS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "reward": train_reward,
    "dpo": train_dpo,
    "ppo": train_ppo,
    "flops": count_flops,
}
