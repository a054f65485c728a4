"""The preference reward model: TRL's RewardTrainer, LoRA and a scalar head on the frozen base.

In: preferences of a snapshot. Out: a folder with adapter, head and `run.json`, reloaded and compared
before anyone may register it. Training and scoring encode with `training.encode`, so that
template and end of text never differ between the two. Loss: −log σ(r_chosen − r_rejected) with a centring term (Eisenstein
et al. 2023, arXiv:2312.09244); Bradley-Terry as in Ouyang et al. 2022, arXiv:2203.02155, eq. 1.
Not covered here: ensembles, weights, rule rewards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import StageError
from core.intervals import rate
from core.settings import RewardSettings
from feedback.dataset import Preference
from training.device import Device, find_device, find_dtype
from training.encode import encode, encode_completion, encode_prompt
from training.lora import first_block, lora_config
from training.run import Progress, common_arguments, last_checkpoint, progress_callback, silent, write_run
from training.trunk import share_trunk

MIN_PAIRS = 8
RELOAD_TOLERANCE = 1e-3
SCORE_BATCH = 32


class RewardScorer:
    """Scores completions with a trained reward model.

    Args:
        model: a sequence classifier with one label, in eval mode.
        tokenizer: the base's tokenizer, padding on the right.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, base: Path, device: Device = "auto") -> "RewardScorer":
        """Load adapter and head from `folder` onto the base."""
        from peft import PeftModel

        model, tokenizer = _classifier(base, device)
        wrapped = PeftModel.from_pretrained(model, str(folder))
        share_trunk(wrapped, 0)
        return cls(wrapped, tokenizer)

    def score(self, items: Sequence[tuple[list[dict[str, str]], str]]) -> list[float]:
        """One reward per (prompt, completion), in the units of the Bradley-Terry logit."""
        return self.score_ids([encode(self.tokenizer, prompt, completion) for prompt, completion in items])

    def score_ids(self, ids: Sequence[list[int]]) -> list[float]:
        """One reward per encoded conversation."""
        import torch

        order = sorted(range(len(ids)), key=lambda i: ids[i])  # completions of a prompt are neighbours
        scores = [0.0] * len(ids)
        for start in range(0, len(order), SCORE_BATCH):
            near = order[start : start + SCORE_BATCH]
            rows = near[::2] + near[1::2]  # neighbours stand where the trunk shares beginnings
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in rows]}, padding_side="right", return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device), use_cache=False).logits  # (B, 1)
            for i, value in zip(rows, logits[:, 0].tolist(), strict=True):
                scores[i] = value
        return scores


def train_reward(  # noqa: PLR0913 (inputs, outputs and settings of a stage)
    train: Sequence[Preference],
    heldout: Sequence[Preference],
    base: Path,
    work: Path,
    out: Path,
    settings: RewardSettings,
    *,
    device: Device = "auto",
    snapshot_sha256: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train, save, reload, compare and evaluate a reward model.

    Args:
        work: folder of checkpoints, kept between attempts.
        out: an existing empty folder that receives adapter and head.

    Returns:
        accuracy with n, low, high (Wilson 95 %) on `heldout`, length_only, clears_bar, steps; pairs left out for their
        length as dropped_long and dropped_long_heldout.

    Raises:
        StageError: too few pairs, a non-finite loss, or scores that change on reloading.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = _classifier(base, device, seed=settings.seed)
    rows, usable = ([encode_pair(tokenizer, pair) for pair in pairs] for pairs in (train, heldout))
    kept = [row for row in rows if _longest(row) <= settings.max_length_tokens]
    dropped_heldout = sum(_longest(row) > settings.max_length_tokens for row in usable)
    heldout = [p for p, row in zip(heldout, usable, strict=True) if _longest(row) <= settings.max_length_tokens]
    if len(kept) < MIN_PAIRS or not heldout:
        raise StageError(
            f"{len(kept)} training and {len(heldout)} held-out pairs are usable; a reward model needs at least"
            f" {MIN_PAIRS} and 1. Collect more judgments."
        )
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **common_arguments(settings, work, find_device(device)),
            center_rewards_coefficient=settings.center_rewards_coefficient,
        ),
        train_dataset=Dataset.from_list(kept),
        processing_class=tokenizer,
        peft_config=lora_config(
            model, rank=settings.lora_rank, top_layers=settings.lora_top_layers, task="SEQ_CLS", save=["score"]
        ),
        callbacks=[progress_callback(progress)],
    )
    share_trunk(trainer.model, first_block(model, settings.lora_top_layers))
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    trainer.model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card

    scorer = RewardScorer.load(out, base, device)
    check_reload(RewardScorer(trainer.model, tokenizer), scorer, heldout)
    facts = evaluate(scorer, train, heldout) | {
        "dropped_long": len(rows) - len(kept),
        "dropped_long_heldout": dropped_heldout,
        "n_train": len(kept),
        "steps": trainer.state.global_step,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }
    write_run(out, "reward", settings.model_dump(), snapshot_sha256=snapshot_sha256, **facts)
    return facts


def check_reload(trained: RewardScorer, reloaded: RewardScorer, pairs: Sequence[Preference]) -> None:
    """Raise StageError unless the saved model scores as the trained one did: a lost head is the classic."""
    items = [(p.prompt, p.chosen) for p in pairs[:8]]
    worst = max(abs(a - b) for a, b in zip(trained.score(items), reloaded.score(items), strict=True))
    if not worst <= RELOAD_TOLERANCE:
        raise StageError(
            f"scores changed by up to {worst:.4g} when the reward model was saved and loaded; at most {RELOAD_TOLERANCE}"
            " is expected. Nothing is registered."
        )


def evaluate(scorer: RewardScorer, train: Sequence[Preference], heldout: Sequence[Preference]) -> dict[str, Any]:
    """Held-out accuracy with its interval, beside a baseline that sees lengths only.

    The bar: the accuracy's lower 95 % bound lies above the baseline's accuracy.
    """
    pairs = [encode_pair(scorer.tokenizer, pair) for pair in heldout]
    scores = scorer.score_ids([pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs])
    right = sum(c > r for c, r in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))
    found = rate(right, len(heldout))
    baseline = length_only_accuracy(train, heldout)
    return {
        "accuracy": found["rate"],
        "n": found["n"],
        "low": found["low"],
        "high": found["high"],
        "length_only": baseline,
        "clears_bar": found["low"] > baseline,
    }


def length_only_accuracy(train: Sequence[Preference], heldout: Sequence[Preference]) -> float:
    """Accuracy of always taking the longer side (or the shorter, whichever did better on `train`); a tie counts half."""

    def longer_wins(pairs: Sequence[Preference]) -> float:
        points = [0.5 if len(p.chosen) == len(p.rejected) else float(len(p.chosen) > len(p.rejected)) for p in pairs]
        return sum(points) / len(points)

    return longer_wins(heldout) if longer_wins(train) >= 0.5 else 1 - longer_wins(heldout)


def _classifier(base: Path, device: Device, seed: int = 0) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(seed)  # the head is new
    target = find_device(device)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=find_dtype(target)).to(target)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _longest(row: dict[str, list[int]]) -> int:
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def encode_pair(tokenizer: Any, pair: Preference) -> dict[str, list[int]]:
    """`chosen_ids` and `rejected_ids`, prompt included.

    Where one side was cut at a token limit, both are cut to the same number of tokens: else the model would learn that
    a text which breaks off is the worse one, and nothing of what it says.
    """
    prompt = encode_prompt(tokenizer, pair.prompt)
    chosen = encode_completion(tokenizer, pair.chosen, complete=pair.chosen_complete)
    rejected = encode_completion(tokenizer, pair.rejected, complete=pair.rejected_complete)
    if not (pair.chosen_complete and pair.rejected_complete):
        n = min(len(chosen), len(rejected))
        chosen, rejected = chosen[:n], rejected[:n]
    return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
