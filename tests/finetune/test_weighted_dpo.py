"""The losses of the policy update against numbers by hand, and what weights and microbatches do to gradients."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from core.settings import UpdateSettings
from finetune.weighted_dpo import WEIGHT, loss_arguments, trainer_class
from tests.tiny import load_tiny, make_tiny_base
from training.lora import lora_config

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BETA, SMOOTHING = 0.5, 0.1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def row(number: int, chosen: int, rejected: int, weight: float = 1.0) -> dict[str, Any]:
    """A pair of made-up tokens with sides of the given lengths."""
    ids = [5 + (number * 37 + i * 11) % 300 for i in range(60)]
    return {
        "prompt_ids": ids[:6],
        "chosen_ids": ids[6 : 6 + chosen],
        "rejected_ids": ids[30 : 30 + rejected],
        WEIGHT: weight,
    }


ROWS = [row(1, 5, 3), row(2, 2, 7), row(3, 4, 4), row(4, 9, 6), row(5, 3, 8), row(6, 6, 2), row(7, 7, 5), row(8, 2, 2)]


def make_trainer(base: Path, tmp_path: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> Any:
    """A trainer of `rows` whose adapter is random already, so that no log-ratio is 0."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig

    chosen = UpdateSettings(beta=BETA, **settings)
    model = load_tiny(base)
    trainer = trainer_class(chosen, rows)(
        model=model,
        args=DPOConfig(
            **loss_arguments(chosen, SMOOTHING if chosen.loss == "robust" else 0.0), output_dir=str(tmp_path),
            per_device_train_batch_size=len(rows), use_cpu=True, bf16=False, gradient_checkpointing=False,
            report_to="none", max_length=None, precompute_ref_log_probs=True, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=lora_config(model, rank=2, top_layers=0, task="CAUSAL_LM"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return trainer


def loss_of(trainer: Any, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """The loss of a batch, as the trainer's own data loader and loss give it."""
    dataset = trainer.train_dataset
    by_tokens = {tuple(r["chosen_ids"] + r["rejected_ids"]): r for r in dataset}
    known = [by_tokens[tuple(r["chosen_ids"] + r["rejected_ids"])] | {WEIGHT: r[WEIGHT]} for r in rows]
    loss: torch.Tensor = trainer.compute_loss(trainer.model, trainer.data_collator(known))
    return loss


def gradients(trainer: Any, batches: Sequence[Sequence[dict[str, Any]]]) -> dict[str, torch.Tensor]:
    """Gradients of the mean of the batches' losses."""
    trainer.model.zero_grad()
    for rows in batches:
        (loss_of(trainer, rows) / len(batches)).backward()
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys() != set()
    return max(float((one[n] - other[n]).abs().max()) for n in one)


# --- by hand


def token_logps(model: Any, ids: list[int], prompt: int) -> list[float]:
    """Log-probabilities of the tokens after a prompt, by a plain forward pass over one sequence."""
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logps[t - 1, ids[t]]) for t in range(prompt, len(ids))]


def sides(trainer: Any, one: dict[str, Any]) -> dict[str, list[float]]:
    """Log-ratios of each side's tokens to the base, and log-probabilities as `logps`."""
    found = {}
    for side in ("chosen", "rejected"):
        ids = one["prompt_ids"] + one[f"{side}_ids"]
        found[f"{side}_logps"] = token_logps(trainer.model, ids, 6)
        with trainer.model.disable_adapter():
            reference = token_logps(trainer.model, ids, 6)
        found[side] = [a - b for a, b in zip(found[f"{side}_logps"], reference, strict=True)]
    return found


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


BY_HAND = {
    "robust": lambda s: (
        (
            -(1 - SMOOTHING) * log_sigmoid(BETA * (sum(s["chosen"]) - sum(s["rejected"])))
            + SMOOTHING * log_sigmoid(-BETA * (sum(s["chosen"]) - sum(s["rejected"])))
        )
        / (1 - 2 * SMOOTHING)
    ),
    "sigmoid": lambda s: -log_sigmoid(BETA * (sum(s["chosen"]) - sum(s["rejected"]))),
    "hinge": lambda s: max(0.0, 1 - BETA * (sum(s["chosen"]) - sum(s["rejected"]))),
    "ipo": lambda s: (mean(s["chosen"]) - mean(s["rejected"]) - 1 / (2 * BETA)) ** 2,
    "sigmoid_norm": lambda s: -log_sigmoid(BETA * (mean(s["chosen"]) - mean(s["rejected"]))),
}


@pytest.mark.parametrize("loss", list(BY_HAND))
def test_preference_losses_by_hand(base: Path, tmp_path: Path, loss: str) -> None:
    trainer = make_trainer(base, tmp_path, ROWS, loss=loss, sft_weight=0.0)
    expected = [BY_HAND[loss](sides(trainer, one)) for one in ROWS]
    assert loss_of(trainer, ROWS).item() == pytest.approx(mean(expected), rel=1e-4)
    weighted = [r | {WEIGHT: w} for r, w in zip(ROWS, (0.0, 2.0, 1.0, 0.5, 1.5, 1.0, 0.25, 1.75), strict=True)]
    expected = [r[WEIGHT] * e for r, e in zip(weighted, expected, strict=True)]
    assert loss_of(trainer, weighted).item() == pytest.approx(mean(expected), rel=1e-4)


def test_the_sft_term_counts_each_token_alike(base: Path, tmp_path: Path) -> None:
    """Over all pairs it is TRL's mean over tokens: the sum over tokens by the mean number of them."""
    plain, with_sft = (make_trainer(base, tmp_path, ROWS, loss="sigmoid", sft_weight=a) for a in (0.0, 0.7))
    tokens = [value for one in ROWS for value in sides(with_sft, one)["chosen_logps"]]
    found = loss_of(with_sft, ROWS).item() - loss_of(plain, ROWS).item()
    assert found == pytest.approx(-0.7 * mean(tokens), rel=1e-4)


def test_ld_alpha_weakens_what_is_beyond_the_shorter_side(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, ROWS, loss="sigmoid", sft_weight=0.0, ld_alpha=0.25)

    def by_hand(one: dict[str, Any]) -> float:
        s = sides(trainer, one)
        n = min(len(s["chosen"]), len(s["rejected"]))
        sums = [sum(s[side][:n]) + 0.25 * sum(s[side][n:]) for side in ("chosen", "rejected")]
        return -log_sigmoid(BETA * (sums[0] - sums[1]))

    assert loss_of(trainer, ROWS).item() == pytest.approx(mean([by_hand(one) for one in ROWS]), rel=1e-4)
    plain = make_trainer(base, tmp_path, ROWS, loss="sigmoid", sft_weight=0.0)
    assert loss_of(plain, ROWS).item() != pytest.approx(loss_of(trainer, ROWS).item(), rel=1e-3)


def test_wpo_weights_by_what_the_policy_would_write(base: Path, tmp_path: Path) -> None:
    """Each side by exp of its tokens' mean of log p less the log of the sum of all squared probabilities."""
    trainer = make_trainer(base, tmp_path, ROWS, loss="sigmoid", sft_weight=0.0, wpo=True)

    def likely(one: dict[str, Any], side: str) -> float:
        ids = one["prompt_ids"] + one[f"{side}_ids"]
        with torch.no_grad():
            logps = trainer.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        each = [float(logps[t - 1, ids[t]] - (2 * logps[t - 1]).logsumexp(-1)) for t in range(6, len(ids))]
        return math.exp(mean(each))

    expected = [BY_HAND["sigmoid"](sides(trainer, r)) * likely(r, "chosen") * likely(r, "rejected") for r in ROWS]
    assert loss_of(trainer, ROWS).item() == pytest.approx(mean(expected), rel=1e-4)


# --- weights and batches


@pytest.mark.parametrize("settings", [{}, {"loss": "ipo", "sft_weight": 0.3}, {"wpo": True, "ld_alpha": 0.5}])
def test_one_batch_of_eight_is_eight_of_one(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    weighted = [r | {WEIGHT: 0.25 * i} for i, r in enumerate(ROWS)]
    trainer = make_trainer(base, tmp_path, weighted, **settings)
    whole = gradients(trainer, [weighted])
    assert apart(whole, gradients(trainer, [[r] for r in weighted])) < 1e-5
    assert apart(whole, gradients(trainer, [weighted[:4], weighted[4:]])) < 1e-5
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3


def test_a_pair_of_weight_zero_changes_nothing_and_one_of_two_counts_twice(base: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, ROWS)
    nothing = gradients(trainer, [[ROWS[0] | {WEIGHT: 0.0}]])
    assert max(float(g.abs().max()) for g in nothing.values()) == 0.0
    three = gradients(trainer, [[ROWS[0], ROWS[0], ROWS[1]]])
    two = gradients(trainer, [[ROWS[0] | {WEIGHT: 2.0}, ROWS[1]]])  # over two pairs and not three
    assert apart(three, {name: value * 2 / 3 for name, value in two.items()}) < 1e-5
    assert apart(three, two) > 1e-3


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 is no divisor of batch_size 8"):
        UpdateSettings(batch_size=8, microbatch_size=3)
    with pytest.raises(ValidationError, match="wpo cannot weight the hinge loss"):
        UpdateSettings(loss="hinge", wpo=True)
