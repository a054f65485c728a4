"""What a measurement is asked to do and what it tells: one JSON file in, one out."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from feedback.dataset import Preference
from training.device import Precision, training_dtype

Kind = Literal["reward", "dpo", "ppo", "limit", "flops"]


@dataclass(frozen=True)
class Work:
    """One measurement.

    Attributes:
        kind: what is trained; `limit` multiplies matrices, `flops` counts what `dpo` and `reward` multiply.
        by: whose trainer.
        variant: what is different from the comparison's settings; see `ours.VARIANTS`.
        environment: `stage` has what the stages of a round are started with (`core.children.COMPUTE`).
        folder: holds `train.jsonl` and `heldout.jsonl`, and is where adapters go.
        epochs, batch_size, learning_rate, lora_rank, max_length_tokens: the same for both trainers.
        steps, prompts, samples_per_prompt, new_tokens, ppo_epochs, minibatch_size: of PPO alone.
    """

    kind: Kind
    by: Literal["ours", "stock"]
    base: str
    folder: str
    variant: str = "same"
    environment: Literal["stage", "plain"] = "stage"
    epochs: float = 1.0
    batch_size: int = 8
    learning_rate: float = 5e-4
    lora_rank: int = 16
    max_length_tokens: int = 160
    seed: int = 0
    steps: int = 1
    prompts: int = 8
    samples_per_prompt: int = 4
    new_tokens: int = 48
    ppo_epochs: int = 4
    minibatch_size: int = 16
    microbatch_size: int = 16
    precision: Precision = "auto"
    """Of the base's products; the stock trainers keep their weights in fp32 and multiply under autocast."""

    @classmethod
    def read(cls, path: Path) -> "Work":
        """As `write` wrote it."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def pairs(self, split: str) -> list[Preference]:
        """The pairs of "train" or "heldout"."""
        with (Path(self.folder) / f"{split}.jsonl").open(encoding="utf-8") as lines:
            return [Preference(**json.loads(line)) for line in lines]


def in_bf16(precision: Precision) -> bool:
    """Whether trainings on this machine's processor multiply in bf16."""
    import torch

    return training_dtype(torch.device("cpu"), precision) is torch.bfloat16


@dataclass
class Clock:
    """Seconds of training without the loading of weights, and the peak of memory up to its end."""

    began: float = field(default_factory=time.perf_counter)
    loading: float = 0.0
    seconds: float = 0.0
    peak_mb: float = 0.0

    def stop(self) -> None:
        """Training has ended; what follows, e.g. an evaluation, does not count. The last call holds."""
        self.seconds = time.perf_counter() - self.began - self.loading
        self.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1024**2 if sys.platform == "darwin" else 1024
        )

    def told(self, count: float, unit: str) -> dict[str, float]:
        """Seconds, peak and `count` by the second, e.g. "pairs"."""
        return {
            "seconds": round(self.seconds, 2), unit: count, f"{unit}_per_s": count / self.seconds,
            "peak_mb": round(self.peak_mb),
        }  # fmt: skip


@contextmanager
def clock() -> Iterator[Clock]:
    """A clock that runs now, and stands still while transformers loads weights: both trainers need as long for that.

    What both need is imported before.
    """
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer  # noqa: F401 (trl loads what is named)

    found = Clock()
    with patch.object(transformers.PreTrainedModel, "from_pretrained", _timed(transformers.PreTrainedModel, found)):
        yield found


def _timed(owner: Any, found: Clock) -> Any:
    """`from_pretrained` of `owner`, whose seconds are loading."""
    plain: Callable[..., Any] = owner.from_pretrained.__func__

    @classmethod  # type: ignore[misc]
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(cls, *args, **kwargs)
        finally:
            found.loading += time.perf_counter() - began

    return from_pretrained
