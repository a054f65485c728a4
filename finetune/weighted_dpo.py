"""TRL's DPOTrainer with a weight per pair, made to skip work whose result is known.

TRL means its losses over a batch and drops the columns that it does not know. Here the model sees a batch once, and TRL's
own loss is then taken of each pair alone, with what the model said of it. The loss of a batch of B pairs is

    1/B · Σ w · (preference loss  +  sft_weight · n / N · SFT loss)

w is the pair's weight, n the trained tokens of its chosen completion, N their mean over all pairs. TRL's SFT loss is a mean over
tokens, so with n / N each token counts the same, in whatever company: cutting a step into microbatches changes nothing.

Weights of WPO (Zhou et al. 2024, arXiv:2406.11827, eq. 2, with TRL's sampled alignment) multiply a pair's whole loss. The
preference losses are TRL's: `robust` (Chowdhury et al. 2024, arXiv:2403.00409), `sigmoid` (Rafailov et al. 2023, arXiv:2305.18290),
`hinge` (Zhao et al. 2023, arXiv:2305.10425), `ipo` (Azar et al. 2023, arXiv:2310.12036, per token), `sigmoid_norm` (length-normalised DPO,
Lambert et al. 2024, arXiv:2411.15124); and so is `ld_alpha` (Liu et al. 2024, arXiv:2409.06411).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from core.settings import UpdateSettings
from finetune.start import REFERENCE, Start
from training import ranks
from training.head import score_labels_only
from training.lora import first_block
from training.memory import keep_whole
from training.run import Progress, silent
from training.trunk import share_trunk

WEIGHT = "weight"
BY_SIDE = ("input_ids", "attention_mask", "completion_mask")
"""Inputs with a row for each side, (2B, T): chosen, then rejected. All others have a row for each pair."""


def loss_arguments(settings: UpdateSettings, label_smoothing: float) -> dict[str, Any]:
    """What DPOConfig is told of the loss."""
    with_sft = settings.sft_weight > 0
    return {
        "loss_type": [settings.loss, *(["sft"] if with_sft else [])],
        "loss_weights": [1.0, *([settings.sft_weight] if with_sft else [])],
        "label_smoothing": label_smoothing,
        "beta": settings.beta,
        "use_weighting": settings.wpo,
        "ld_alpha": settings.ld_alpha if settings.ld_alpha < 1 else None,
    }


def trainer_class(
    settings: UpdateSettings, rows: Sequence[dict[str, Any]], start: Start | None = None, progress: Progress = silent
) -> Any:
    """The trainer for `rows`, which have TRL's processed columns and a weight; the losses and their gradients are TRL's.

    Args:
        start: where the adapter begins; put on before the reference is computed.
    """
    from trl import DPOTrainer

    mean_tokens = sum(len(row["chosen_ids"]) for row in rows) / len(rows)

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            tokenizer = kwargs["processing_class"]
            super().__init__(*args, data_collator=_collator(tokenizer), **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # encoded by the caller

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns: list[str] = list(dict.fromkeys([*self._signature_columns, WEIGHT]))

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            (start or Start()).put_on(self.model)  # it is wrapped only now
            keep_whole(self.model)
            self._skip_known_work()
            found = super()._precompute_ref_logps(*args, **kwargs)
            if REFERENCE in self.model.peft_config:
                self.model.delete_adapter(REFERENCE)  # it has said all
            return found

        def _skip_known_work(self) -> None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                return  # their pieces of the model want its own forward
            from training.fused import fuse

            fuse(self.model)
            share_trunk(self.model, first_block(self.model, settings.lora_top_layers))
            score_labels_only(self.model, sum_sq=settings.wpo)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            self._referred = min(len(rows), getattr(self, "_referred", 0) + len(inputs[WEIGHT]))
            progress(0.0, f"reference log-probabilities: {self._referred}/{len(rows)}")
            return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != WEIGHT})

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            weights, pairs = inputs[WEIGHT], {k: v for k, v in inputs.items() if k != WEIGHT}
            labels = pairs["input_ids"].masked_fill(pairs["completion_mask"] == 0, -100)
            said = model(
                input_ids=pairs["input_ids"], attention_mask=pairs["attention_mask"], labels=labels, use_cache=False,
                fused_lm_head=True, **({"output_router_logits": True} if self.aux_loss_enabled else {}),
            )  # fmt: skip
            n, loss = len(weights), 0.0
            weights, counted = self._counted(weights)
            for i in range(n):
                one = {k: v[[i, i + n]] if k in BY_SIDE else v[[i]] for k, v in pairs.items()}
                tokens = float(one["completion_mask"][0].sum())
                self.loss_weights = [1.0, settings.sft_weight * tokens / mean_tokens][: len(self.loss_types)]
                loss = loss + weights[i] * super().compute_loss(partial(_rows_of, said, [i, i + n]), one)
            return loss / counted

        def _counted(self, weights: Any) -> tuple[Any, float]:
            """Weights of a batch's pairs and by how many their losses are divided.

            Of several ranks' last step of an epoch that is not full, accelerate fills the rest with pairs that were
            there before: they weigh nothing here, as where one process has a smaller batch.
            """
            n, state = len(weights), self.accelerator.gradient_state
            last = state.end_of_dataloader and self.args.gradient_accumulation_steps == 1
            if ranks.count() == 1 or not last or state.remainder <= 0:
                return weights, n
            first = self.accelerator.process_index * n
            new = [first + i < state.remainder for i in range(n)]
            return weights * weights.new_tensor(new), state.remainder / ranks.count()

    return Trainer


def _collator(tokenizer: Any) -> Any:
    """TRL's, which keeps the weights."""
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Collator(DataCollatorForPreference):  # type: ignore[misc]
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch | {WEIGHT: torch.tensor([row[WEIGHT] for row in examples])}

    return Collator(pad_token_id=tokenizer.pad_token_id)


def _rows_of(said: Any, rows: list[int], **_: Any) -> Any:
    """In place of a model: some rows of what it said already; what it said of the batch as a whole stays."""
    return type(said)(**{name: value[rows] if value.ndim else value for name, value in said.items()})
