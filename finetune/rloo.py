"""The policy update by RLOO or GRPO: TRL's trainers, rewarded as PPO is, with the same settings as far as they have them.

Neither has a value model: a completion's advantage is its reward over that of the others of its prompt. RLOO: Ahmadian et
al. 2024, arXiv:2402.14740; GRPO: Shao et al. 2024, arXiv:2402.03300. Completions are sampled by transformers' `generate`, or
by vLLM in this process where it is installed and there is a GPU. The reference is named as DPO's.

Not taken from the settings of PPO: everything about values and advantages, the KL's target and limits, the engine.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from core.errors import StageError
from core.settings import PpoSettings, UpdateSettings
from feedback.dataset import Preference
from finetune.dpo import batch_arguments, save_adapter
from finetune.ppo.rollouts import Prompt, Rollout
from finetune.ppo.trainer import Score, finite_scores, prompts_of_step
from finetune.ppo.update import encode_prompts
from finetune.start import Start
from training.device import Device, find_device
from training.lora import lora_config
from training.memory import Held, keep_whole, load_base
from training.run import Progress, Row, common_arguments, last_checkpoint, progress_callback, silent, write_run

LOGGED = {
    "reward": "reward",
    "reward_std": "reward_sd",
    "kl": "kl_per_token",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_frac",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "missing_eos",
    "grad_norm": "policy_norm",
    "loss": "loss",
    "step": "step",
}
"""TRL's names and those of our records."""


def update_policy(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    method: Literal["rloo", "grpo"],
    pairs: Sequence[Preference],
    score: Score,
    base: Path,
    work: Path,
    out: Path,
    settings: PpoSettings,
    *,
    start: Start | None = None,
    device: Device = "auto",
    facts: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train an adapter on the prompts of `pairs` and write it to `out`; arguments and errors as of `ppo.update`.

    Raises:
        StageError: also where batches do not fit into each other, or a prompt has one completion only.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from training.fused import fuse

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts, dropped = encode_prompts(tokenizer, pairs, settings)
    target = find_device(device)
    sizes = batch_sizes(settings)
    config, trainer_class = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[method]
    by_vllm = target.type == "cuda" and find_spec("vllm") is not None
    torch.manual_seed(settings.seed)
    start = start or Start()
    work = start.work(work)
    model = load_base(base, target, Held.by(settings))
    trainer = trainer_class(
        model=model,
        reward_funcs=_reward(prompts, score, settings, tokenizer),
        args=config(
            **_arguments(settings, sizes, work, target),
            use_vllm=by_vllm,
            **({"vllm_mode": "colocate"} if by_vllm else {}),
        ),
        train_dataset=Dataset.from_list(_rows(prompts, settings)),
        processing_class=tokenizer,
        peft_config=lora_config(model, rank=settings.lora_rank, top_layers=settings.lora_top_layers, task="CAUSAL_LM"),
        callbacks=[progress_callback(progress, _row)],
    )
    start.put_on(trainer.model)
    keep_whole(trainer.model)
    fuse(trainer.model)
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise StageError(
            "the policy's probabilities are no numbers any more; the run is stopped and nothing is registered. Lower the"
            " learning rate or look at the reward model."
        ) from error
    save_adapter(trainer, out)
    found = (facts or {}) | {
        "method": method,
        "n_prompts": len(prompts),
        "dropped_long": dropped,
        "steps": settings.steps,
        "samples": settings.steps * settings.prompts_per_step * settings.samples_per_prompt,
        "rollouts": "vllm" if by_vllm else "generate",
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **start.facts(),
        "log": [row for row in map(_row, trainer.state.log_history) if row is not None],
    }
    write_run(out, "update", settings.model_dump(), target, **found)
    return found


def batch_sizes(settings: PpoSettings) -> dict[str, int]:
    """TRL's words for the settings' batches; `updates` are the optimiser steps of a step.

    Raises:
        StageError: they do not fit into each other.
    """
    samples = settings.prompts_per_step * settings.samples_per_prompt
    micro = min(settings.microbatch_size, samples)
    mini = min(settings.minibatch_size, samples)
    if settings.samples_per_prompt < 2 or mini % micro or samples % mini:
        raise StageError(
            f"a step of {settings.prompts_per_step} × {settings.samples_per_prompt} completions in minibatches of {mini} and"
            f" microbatches of {micro}: RLOO and GRPO take at least two completions per prompt, and each size has to be a"
            " multiple of the next; change DUNNOCK_PPO__MINIBATCH_SIZE or DUNNOCK_PPO__MICROBATCH_SIZE"
        )
    cut = batch_arguments(mini, micro)
    return {
        "samples": samples,
        "micro": cut["per_device_train_batch_size"],
        "accumulated": cut["gradient_accumulation_steps"],
        "updates": samples // mini * settings.epochs,
    }


def _arguments(settings: PpoSettings, sizes: dict[str, int], work: Path, device: Any) -> dict[str, Any]:
    common = UpdateSettings(
        batch_size=sizes["micro"],
        learning_rate=settings.learning_rate,
        save_steps=settings.save_steps * sizes["updates"],  # between steps, where no completions are held
        seed=settings.seed,
        optimizer=settings.optimizer,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    arguments = common_arguments(common, work, device)
    del arguments["max_length"]
    return arguments | {
        "max_steps": settings.steps * sizes["updates"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "gradient_accumulation_steps": sizes["accumulated"],
        "generation_batch_size": sizes["samples"],
        "shuffle_dataset": False,
        "num_generations": settings.samples_per_prompt,
        "num_iterations": settings.epochs,
        "max_completion_length": settings.max_completion_tokens,
        "temperature": settings.temperature,
        "beta": settings.kl_coefficient,
        "epsilon": settings.clip,
        "max_grad_norm": settings.max_grad_norm,
    }


def _rows(prompts: Sequence[Prompt], settings: PpoSettings) -> list[dict[str, Any]]:
    """The prompts of all steps, in PPO's turns, as TRL reads them: one pass, so that a run taken up finds its place."""
    asked = [i for step in range(settings.steps) for i in prompts_of_step(len(prompts), settings, step)]
    messages = [[{"role": role, "content": text} for role, text in prompt.messages] for prompt in prompts]
    return [{"prompt": messages[i], "number": i} for i in asked]


def _reward(
    prompts: Sequence[Prompt], score: Score, settings: PpoSettings, tokenizer: Any
) -> Callable[..., list[float]]:
    def reward(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        rows = []
        for ids, at in zip(completion_ids, number, strict=True):
            told = tuple(ids) or (tokenizer.eos_token_id,)
            ended = len(told) < settings.max_completion_tokens or told[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(told, skip_special_tokens=True)
            rows.append(Rollout(prompts[at], told, ended, text, (float("nan"),) * len(told)))
        scores = finite_scores(score, rows)
        return [s - settings.missing_eos_penalty * (not row.ended) for s, row in zip(scores, rows, strict=True)]

    return reward


def _row(row: Row) -> dict[str, Any] | None:
    """A line of the trainer's log in our words; None where it is none of a step."""
    if "reward" not in row:
        return None
    found = {ours: row[theirs] for theirs, ours in LOGGED.items() if theirs in row}
    if "kl_per_token" in found:
        found["kl"] = found["kl_per_token"] * found["completion_tokens"]
    return found
