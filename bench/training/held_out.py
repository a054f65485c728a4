"""What held-out pairs say of a trained model. One way for ours and the stock ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from feedback.dataset import Preference

Scores = Callable[[list[list[int]]], list[float]]
"""Rewards of encoded conversations."""


def of_policy(adapter: Path, base: Path, heldout: Sequence[Preference], beta: float) -> dict[str, Any]:
    """Share of pairs whose chosen side the adapter raises more than the other, and the mean DPO margin in nats times beta."""
    import torch

    from evals.prober import Prober

    prober = Prober(base, adapter, "cpu", torch.float32)
    sides = [(p.prompt, text) for p in heldout for text in (p.chosen, p.rejected)]
    gains = [float((scored.candidate - scored.base).sum()) for scored in prober.compare(sides)]
    margins = [beta * (chosen - rejected) for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)]
    nll = [scored.nll for scored in prober.compare(sides[::2])]
    return {
        "heldout_accuracy": sum(m > 0 for m in margins) / len(margins), "heldout_margin": sum(margins) / len(margins),
        "heldout_chosen_nll": sum(nll) / len(nll), "heldout_n": len(margins),
    }  # fmt: skip


def of_reward(folder: Path, base: Path, heldout: Sequence[Preference]) -> dict[str, Any]:
    """Accuracy of a reward model of ours, read from its folder."""
    from reward.preference import RewardScorer

    scorer = RewardScorer.load(folder, base)
    return of_scores(scorer.score_ids, scorer.tokenizer, heldout)


def of_scores(score: Scores, tokenizer: Any, heldout: Sequence[Preference]) -> dict[str, Any]:
    """Share of pairs whose chosen side gets the higher reward, and for each pair whether it does."""
    from reward.preference import encode_pair

    rows = [encode_pair(tokenizer, pair) for pair in heldout]
    scores = score([row[side] for row in rows for side in ("chosen_ids", "rejected_ids")])
    right = [chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    return {"heldout_accuracy": sum(right) / len(right), "heldout_n": len(right), "right": right}
