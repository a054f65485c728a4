"""The update stage by PPO: prompts of a snapshot and a reward model in, an adapter folder out.

Registered as DPO's: the reference is named (`finetune.start`), the folder holds safetensors, PEFT's config and `run.json`. Resumable: a killed run goes on from its last checkpoint and ends with the weights of an unbroken one.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import PpoSettings
from feedback.dataset import Preference
from finetune.ppo.model import LoraActorCritic
from finetune.ppo.rollouts import Ask, EngineSampler, Prompt, Sampler, TrainerSampler
from finetune.ppo.trainer import PpoTrainer, Score
from finetune.start import Start
from policy.client import EngineClient
from training import ranks
from training.device import Device, find_device
from training.memory import Held, load_base
from training.run import Progress, silent, write_run


@dataclass(frozen=True)
class EngineRollouts:
    """What sampling by an engine needs.

    Attributes:
        prefix: begins the names of adapters, and is this run's alone.
        folder: below the engine's artifact folder, and this run's alone.
    """

    client: EngineClient
    prefix: str
    folder: Path


def update_policy(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    pairs: Sequence[Preference],
    score: Score,
    base: Path,
    work: Path,
    out: Path,
    settings: PpoSettings,
    *,
    engine: EngineRollouts | None = None,
    start: Start | None = None,
    device: Device = "auto",
    facts: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train an adapter on the prompts of `pairs` and write it to `out`.

    Args:
        score: rewards of completions, in the reward model's units.
        work: folder of checkpoints; kept between attempts, so that a killed run resumes.
        out: an existing empty folder that receives the adapter.
        engine: who samples; None: the model in training.
        start: where it begins and what it is held to; by default the base.
        facts: what else the record says: hashes of the snapshot and of the reward model.

    Returns:
        Facts of the run: method, n_prompts, dropped_long, steps, stopped, reference, trainable parameters, log.

    Raises:
        StageError: no usable prompt, a reward or loss that is no number, a base that PPO does not take, or several ranks.
    """
    from transformers import AutoTokenizer

    if ranks.count() > 1:
        raise StageError(
            f"PPO trains in one process, and DUNNOCK_LAUNCH started {ranks.count()}; leave it empty, or use"
            " DUNNOCK_UPDATE__METHOD=dpo, rloo or grpo"
        )
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts, dropped = encode_prompts(tokenizer, pairs, settings)
    target = find_device(device)
    start = start or Start()
    work = start.work(work)
    model = load_base(base, target, Held.by(settings))
    models = LoraActorCritic(model, settings, start)
    sampler = _sampler(models, model, tokenizer, settings, engine)
    trainer = PpoTrainer(models, sampler, score, prompts, settings, work=work, progress=progress)
    try:
        log = trainer.run()
    finally:
        if engine is not None:
            shutil.rmtree(engine.folder, ignore_errors=True)
    models.save_policy(out)
    found = (facts or {}) | {
        "method": "ppo",
        "n_prompts": len(prompts),
        "dropped_long": dropped,
        "steps": len(log),
        "stopped": trainer.stopped,
        "samples": len(log) * settings.prompts_per_step * settings.samples_per_prompt,
        "rollouts": sampler.name,
        "sampler_counts": {name: n for name, n in sampler.counts.items() if n},
        "trainable_parameters": sum(p.numel() for p in models.policy.values()),
        "value_parameters": sum(p.numel() for p in models.value.values()),
        **start.facts(),
        "log": log,
    }
    write_run(out, "update", settings.model_dump(), target, **found)
    return found


def encode_prompts(tokenizer: Any, pairs: Sequence[Preference], settings: PpoSettings) -> tuple[list[Prompt], int]:
    """The distinct prompts of pairs that leave room for a whole completion, and how many do not.

    Raises:
        StageError: there is none, or none is left.
    """
    if not pairs:
        raise StageError("the snapshot has no pairs to train on, so there are no prompts; collect more judgments")
    distinct = list(dict.fromkeys(Prompt.encode(tokenizer, pair.prompt) for pair in pairs))
    kept = [p for p in distinct if len(p.ids) + settings.max_completion_tokens <= settings.max_length_tokens]
    if not kept:
        raise StageError(
            f"none of {len(distinct)} prompts leaves room for {settings.max_completion_tokens} tokens within"
            f" {settings.max_length_tokens}; collect more judgments, or raise DUNNOCK_PPO__MAX_LENGTH_TOKENS"
        )
    return kept, len(distinct) - len(kept)


def _sampler(
    models: LoraActorCritic, model: Any, tokenizer: Any, settings: PpoSettings, engine: EngineRollouts | None
) -> Sampler:
    from policy.engine.base import as_base

    ask = Ask(settings.max_completion_tokens, settings.temperature)
    base = as_base(model, tokenizer)
    if engine is None:
        return TrainerSampler(base, models.decoding, ask)
    eos_ids = sorted(base.eos_ids, key=lambda i: i != tokenizer.eos_token_id)
    return EngineSampler(
        engine.client, tokenizer, models.save_policy, ask,
        prefix=engine.prefix, folder=engine.folder, eos_ids=eos_ids, concurrency=settings.concurrency,
    )  # fmt: skip
