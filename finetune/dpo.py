"""The policy update: TRL's DPOTrainer with a fresh LoRA adapter on the frozen base.

In: preferences of a snapshot and the base model's folder. Out: an adapter folder (safetensors, its PEFT
config, `run.json`). The reference is the base with adapters off, and is named so in the record. Loss is
robust DPO (Chowdhury et al. 2024, arXiv:2403.00409) + SFT on the chosen completion: without a strong SFT
term both log-probabilities fall and a small model's text degenerates. The learnt change may be scaled before it is
saved, which costs no training (ExPO, Zheng et al. 2024, arXiv:2404.16792).

Resumable: checkpoints every `save_steps`; a killed run goes on from the last complete one.
Not covered here: per-pair weights; PPO, which is `finetune.ppo`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.settings import UpdateSettings
from feedback.dataset import Preference
from finetune.smoothing import label_smoothing
from training.device import Device, find_device, find_dtype
from training.encode import encode_completion, encode_prompt
from training.head import score_labels_only
from training.lora import first_block, lora_config
from training.run import Progress, common_arguments, last_checkpoint, progress_callback, silent, write_run
from training.trunk import share_trunk

MIN_PAIRS = 8
REFERENCE_BATCH = 32  # pairs; nothing is kept for a backward pass, so more fit than in a step
REFERENCE = "base, adapters off"
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


def update_policy(
    pairs: Sequence[Preference],
    base: Path,
    work: Path,
    out: Path,
    settings: UpdateSettings,
    *,
    device: Device = "auto",
    snapshot_sha256: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train an adapter on `pairs` and write it to `out`.

    Args:
        work: folder of checkpoints; kept between attempts, so that a killed run resumes.
        out: an existing empty folder that receives the adapter.

    Returns:
        Facts of the run: n_pairs, dropped_long, steps, final loss, trainable parameters, reference.

    Raises:
        StageError: too few pairs, a non-finite loss, or a base that cannot be loaded.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    kept, dropped = split_by_length([_row(pair, tokenizer, settings) for pair in pairs], settings.max_length_tokens)
    if len(kept) < MIN_PAIRS:
        raise StageError(
            f"{len(kept)} usable pairs ({dropped} of {len(pairs)} dropped for more than {settings.max_length_tokens}"
            f" tokens); an update needs at least {MIN_PAIRS}. Collect more judgments."
        )
    target = find_device(device)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=find_dtype(target))
    config = DPOConfig(
        **common_arguments(settings, work, target),
        loss_type=["robust", "sft"],
        loss_weights=[1.0, settings.sft_weight],
        label_smoothing=label_smoothing(settings, {})[0],
        beta=settings.beta,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=REFERENCE_BATCH,
    )
    trainer = _trainer_class(settings)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
        peft_config=lora_config(model, rank=settings.lora_rank, top_layers=settings.lora_top_layers, task="CAUSAL_LM"),
        callbacks=[progress_callback(progress)],
    )
    result = trainer.train(resume_from_checkpoint=last_checkpoint(work))
    if not torch.isfinite(torch.tensor(result.training_loss)):
        raise StageError(f"training loss is {result.training_loss}; nothing is registered")
    scale_change(trainer.model, settings.extrapolation)
    trainer.model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    facts = {
        "n_pairs": len(kept),
        "dropped_long": dropped,
        "steps": trainer.state.global_step,
        "loss": result.training_loss,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "reference": REFERENCE,
        "log": [{k: row[k] for k in LOGGED if k in row} for row in trainer.state.log_history if "loss" in row],
    }
    write_run(out, "update", settings.model_dump(), snapshot_sha256=snapshot_sha256, device=str(target), **facts)
    return facts


def scale_change(model: Any, factor: float) -> None:
    """Scale what LoRA adds to each weight, (alpha / r) B A, by a factor: B takes it, so every server of adapters agrees."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(factor)


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
    }


def _trainer_class(settings: UpdateSettings) -> Any:
    """TRL's DPOTrainer, made to skip work whose result is known; the loss and its gradients are TRL's."""
    from trl import DPOTrainer

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # encoded by _row

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            share_trunk(self.model, first_block(self.model, settings.lora_top_layers))  # it is wrapped only now
            score_labels_only(self.model)
            return super()._precompute_ref_logps(*args, **kwargs)

    return Trainer
