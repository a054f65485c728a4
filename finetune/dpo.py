"""The policy update: TRL's DPOTrainer with a LoRA adapter on the frozen base, fresh or the incumbent's (`finetune.start`).

In: preferences of a snapshot and the base model's folder. Out: an adapter folder (safetensors, its PEFT
config, `run.json`). The reference, by default the base with adapters off, is named in the record. Loss is
robust DPO, or another of TRL's, + SFT on the chosen completion (`finetune.weighted_dpo`): without a strong SFT
term both log-probabilities fall and a small model's text degenerates. The learnt change may be scaled before it is
saved, which costs no training (ExPO, Zheng et al. 2024, arXiv:2404.16792).

Resumable: checkpoints every `save_steps`; a killed run goes on from the last complete one. Several ranks
(`training.ranks`) share a step's pairs, by what the configuration of their launch says: DDP, FSDP or DeepSpeed.
Not covered here: PPO, which is `finetune.ppo`.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import UpdateSettings
from feedback.dataset import Preference
from finetune.smoothing import label_smoothing
from finetune.start import IN_TRAINING, Start
from finetune.weighted_dpo import WEIGHT, loss_arguments, trainer_class
from training import ranks
from training.device import Device, find_device
from training.encode import encode_completion, encode_prompt
from training.lora import lora_config
from training.memory import Held, load_base
from training.run import Progress, Row, common_arguments, last_checkpoint, progress_callback, silent, write_run

MIN_PAIRS = 8
REFERENCE_BATCH = 32  # pairs; nothing is kept for a backward pass, so more fit than in a step
LOGGED = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def update_policy(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    pairs: Sequence[Preference],
    base: Path,
    work: Path,
    out: Path,
    settings: UpdateSettings,
    *,
    device: Device = "auto",
    start: Start | None = None,
    snapshot_sha256: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train an adapter on `pairs` and write it to `out`.

    Args:
        work: folder of checkpoints; kept between attempts, so that a killed run resumes.
        out: an existing empty folder that receives the adapter.
        start: where it begins and what it is held to; by default the base.

    Returns:
        Facts of the run: n_pairs; what was left out: ties, dropped_long, dropped_equal; weights, steps, final loss,
        trainable parameters, reference, log.

    Raises:
        StageError: too few pairs or none that weighs anything, a non-finite loss, or a base that cannot be loaded.
    """
    import torch
    from transformers import AutoTokenizer
    from trl import DPOConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    kept, left_out = usable_rows(pairs, tokenizer, settings)
    weights = _normalise(kept)
    target = find_device(device)
    start = start or Start()
    work = start.work(work)
    model = load_base(base, target, Held.by(settings))
    config = DPOConfig(
        **common_arguments(settings, work, target) | batch_arguments(settings.batch_size, settings.microbatch_size),
        **loss_arguments(settings, label_smoothing(settings, {})[0]),
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=REFERENCE_BATCH,
    )
    trainer = trainer_class(settings, kept, start, progress)(
        model=model,
        args=config,
        train_dataset=_dataset(kept, work),
        processing_class=tokenizer,
        peft_config=lora_config(model, rank=settings.lora_rank, top_layers=settings.lora_top_layers, task="CAUSAL_LM"),
        callbacks=[progress_callback(progress, _logged)],
    )
    result = trainer.train(resume_from_checkpoint=last_checkpoint(work))
    if not torch.isfinite(torch.tensor(result.training_loss)):
        raise StageError(f"training loss is {result.training_loss}; nothing is registered")
    save_adapter(trainer, out, settings.extrapolation)
    facts = {
        "n_pairs": len(kept),
        **left_out,
        "weights": weights,
        "steps": trainer.state.global_step,
        "loss": result.training_loss,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        **start.facts(),
        "log": [row for row in map(_logged, trainer.state.log_history) if row is not None],
    }
    write_run(out, "update", settings.model_dump(), target, snapshot_sha256=snapshot_sha256, **facts)
    return facts


def _logged(line: Row) -> Row | None:
    """What the record keeps of a line of the trainer's log."""
    return {k: line[k] for k in LOGGED if k in line} if "loss" in line else None


def batch_arguments(batch_size: int, microbatch_size: int) -> dict[str, int]:
    """How a step's rows are cut: so many on each rank at once, so often one after the other.

    Raises:
        StageError: they cannot be shared out among the ranks evenly.
    """
    n = ranks.count()
    at_once = min(microbatch_size or batch_size, batch_size // n)
    if not at_once or batch_size % (n * at_once):
        raise StageError(
            f"steps of {batch_size} in microbatches of {microbatch_size or batch_size} cannot be shared out among {n}"
            f" processes; take a batch size that is a multiple of {n} times the microbatch"
        )
    return {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch_size // (n * at_once),
    }


def save_adapter(trainer: Any, out: Path, factor: float = 1.0) -> None:
    """Write the adapter of one of TRL's trainers, collected from all ranks where it is cut into pieces.

    Args:
        factor: scales what LoRA adds to each weight, (alpha / r) B A: B takes it, so every server of adapters agrees.
    """
    in_pieces = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if in_pieces else model.state_dict()
    if in_pieces and not ranks.is_main():
        return
    if not all(bool(value.isfinite().all()) for name, value in state.items() if ".lora_" in name):
        raise StageError("the adapter has values that are no numbers; nothing is registered. Lower the learning rate.")
    scaled = {name: value * factor if ".lora_B." in name and factor != 1 else value for name, value in state.items()}
    model.save_pretrained(out, state_dict=scaled, selected_adapters=[IN_TRAINING])
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _dataset(rows: list[dict[str, Any]], work: Path) -> Any:
    """The rows as TRL takes them. It writes the reference beside them, once: so of several ranks' all lie in one place."""
    from datasets import Dataset, load_from_disk

    if ranks.count() == 1:
        return Dataset.from_list(rows)
    if ranks.is_main():
        shutil.rmtree(work / "rows", ignore_errors=True)
        Dataset.from_list(rows).save_to_disk(work / "rows")
    ranks.wait()
    return load_from_disk(work / "rows")


def usable_rows(
    pairs: Sequence[Preference], tokenizer: Any, settings: UpdateSettings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Pairs as TRL's processed columns with a weight, and how many are none: ties, too long, or with equal sides.

    Raises:
        StageError: fewer than MIN_PAIRS are left.
    """
    rows = [_row(pair, tokenizer, settings) for pair in pairs if not pair.tie]
    ties, unequal = len(pairs) - len(rows), [row for row in rows if row["chosen_ids"] != row["rejected_ids"]]
    kept, dropped = split_by_length(unequal, settings.max_length_tokens)
    left_out = {"ties": ties, "dropped_long": dropped, "dropped_equal": len(rows) - len(unequal)}
    if len(kept) < MIN_PAIRS:
        raise StageError(
            f"{len(kept)} usable pairs ({dropped} of {len(pairs)} dropped for more than {settings.max_length_tokens}"
            f" tokens, {ties} ties, {left_out['dropped_equal']} with equal sides); an update needs at least {MIN_PAIRS}."
            " Collect more judgments."
        )
    return kept, left_out


def split_by_length(rows: Sequence[dict[str, Any]], max_length_tokens: int) -> tuple[list[dict[str, Any]], int]:
    """Rows whose longer side fits, and how many do not; TRL would cut or drop them in silence."""
    kept = [
        row
        for row in rows
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= max_length_tokens
    ]
    return kept, len(rows) - len(kept)


def _row(pair: Preference, tokenizer: Any, settings: UpdateSettings) -> dict[str, Any]:
    """A pair as TRL's processed columns: we encode it ourselves, so that a cut completion teaches no end of turn."""
    chosen = encode_completion(tokenizer, pair.chosen, complete=pair.chosen_complete)
    rejected = encode_completion(tokenizer, pair.rejected, complete=pair.rejected_complete)
    return {
        "prompt_ids": encode_prompt(tokenizer, pair.prompt),
        "chosen_ids": chosen[: settings.chosen_tokens or None],
        "rejected_ids": rejected[: settings.rejected_tokens or None],
        WEIGHT: pair.weight if settings.pair_weights else 1.0,
    }


def _normalise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bring the weights of rows to a mean of 1, in place, so that the learning rate means the same whatever they are.

    Returns:
        What they were: mean, least and most.

    Raises:
        StageError: all are 0, or one is negative or no number.
    """
    given = [float(row[WEIGHT]) for row in rows]
    mean = sum(given) / len(given)
    if not all(0 <= weight < math.inf for weight in given) or mean <= 0:
        raise StageError(
            f"pairs weigh {min(given):g} to {max(given):g}; weights must be finite, and one above 0."
            " Look at the snapshot, or set DUNNOCK_UPDATE__PAIR_WEIGHTS=false."
        )
    for row, weight in zip(rows, given, strict=True):
        row[WEIGHT] = weight / mean
    return {"mean": mean, "least": min(given), "most": max(given)}
