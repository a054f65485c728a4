"""Scores with a trained reward model: loaded from its folder, put on its base, compared with what it scored when it was made.

`RewardScorer` is one preference reward model, an ensemble or not. Sequences that begin alike go through the model together,
and what lies below the adapted layers is computed once for all members.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from reward.ensemble import penalised
from reward.members import POOLING, Members
from training.device import Device
from training.encode import encode
from training.memory import Held
from training.run import Progress, silent

Item = tuple[list[dict[str, str]], str]
"""A prompt and a completion."""

PROBE: list[Item] = [
    ([{"role": "user", "content": "How do I keep a dunnock safe in winter?"}], "Hang a feeder low, and near a hedge."),
    ([{"role": "user", "content": "How do I keep a dunnock safe in winter?"}], "I cannot help with that."),
]
"""What every reward model is asked when it is made and each time it is loaded."""

PROBE_TOLERANCE = 0.1
"""How far the answers may lie apart, and how far in parts of those beyond ±1: bf16 against fp32 does not reach it, another base or
a lost head does."""


class RewardScorer:
    """Scores completions with a trained reward model. Not thread-safe: see `RewardService`.

    Args:
        members: the adapters on their base.
        offsets: what each member gives on average, taken off its scores so that members have one zero.
        sd_weight: how much of the members' standard deviation is taken off their mean.
    """

    def __init__(self, members: Members, offsets: Sequence[float], sd_weight: float) -> None:
        self.members = members
        self.offsets = list(offsets)
        self.sd_weight = sd_weight
        self.tokenizer = members.tokenizer

    @classmethod
    def load(cls, folder: Path, base: Path, device: Device = "auto") -> "RewardScorer":
        """Load a reward model from `folder` onto the base.

        Raises:
            ArtifactError: the folder is no preference reward model of today's form, or does not fit this base.
        """
        record = read_record(folder, "reward")
        return cls.on(Members.load(places_of(folder, record), base, device, held_in(record)), folder, record)

    @classmethod
    def on(cls, members: Members, folder: Path, record: dict[str, Any]) -> "RewardScorer":
        """The same with members that are loaded already.

        Args:
            record: what `read_record` says of the folder.
        """
        scorer = cls(members, record["offsets"], record["settings"]["sd_weight"])
        check_probe(record["probe"], scorer.score(PROBE), folder)
        return scorer

    def score(self, items: Sequence[Item]) -> list[float]:
        """One reward per (prompt, completion): mean − λ · sd over members, in the units of the Bradley-Terry logit."""
        return self.score_ids([encode(self.tokenizer, prompt, completion) for prompt, completion in items])

    def score_ids(self, ids: Sequence[list[int]]) -> list[float]:
        """One reward per encoded conversation."""
        found: list[float] = penalised(self.member_scores(ids), self.sd_weight).tolist()
        return found

    def member_scores(self, ids: Sequence[list[int]], progress: Progress = silent) -> Any:
        """(K, N) rewards by member, offsets taken off."""
        import torch

        return self.members.scores(ids, progress) - torch.tensor(self.offsets)[:, None]


def read_record(folder: Path, stage: str) -> dict[str, Any]:
    """The `run.json` of a reward model of this kind.

    Raises:
        ArtifactError: it is not there, is of another kind, or was written when heads read other states.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no reward model: {error}. Train one, or name another folder.") from error
    if record.get("stage") != stage:
        raise ArtifactError(f"{folder} was made by the stage {record.get('stage')!r}; one of {stage!r} was expected")
    if record.get("pooling") != POOLING:
        raise ArtifactError(
            f"the reward model in {folder} was trained by another release, whose heads read other states; train a new one"
        )
    return record


def is_current(folder: Path) -> bool:
    """Whether a reward model was written by this release; heads of older ones read other states."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # it is damaged, which loading it says better
    return bool(record.get("pooling") == POOLING)


def places_of(folder: Path, record: dict[str, Any]) -> dict[str, Path]:
    """Where the members lie that a reward model scores with."""
    return {name: folder / name for name in record["scored_by"]}


def held_in(record: dict[str, Any]) -> Held:
    """How the base was held when a reward model was trained, and has to be to score with it."""
    settings = record["settings"]
    return Held(settings.get("quantization", "none"), settings.get("precision", "auto"))


def check_probe(expected: Sequence[float], found: Sequence[float], folder: Path) -> None:
    """Raise ArtifactError unless the probe is answered as it was when the model was made."""
    apart = [abs(a - b) for a, b in zip(expected, found, strict=True)]
    if not all(d <= PROBE_TOLERANCE * max(1.0, abs(e)) for d, e in zip(apart, expected, strict=True)):
        raise ArtifactError(
            f"the reward model in {folder} scores a known text {max(apart, default=0):.3g} away from what it gave when it was"
            f" made; at most {PROBE_TOLERANCE}, or that part of it, is expected. Is this the base that it was trained on?"
        )
