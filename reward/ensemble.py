"""What each member of an ensemble learns from, and how their words become one.

A member beyond the only one sees a bootstrap of the annotators: each is drawn so many times, and all their judgments with
them, so that members disagree where annotators would. Where there are too few annotators for that, or a pair was made
elsewhere, prompt clusters are drawn instead. The ensemble's reward is mean − λ · sd (Coste et al. 2023, arXiv:2310.02743);
members can also be averaged into one (WARM, Ramé et al. 2024, arXiv:2401.12187).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from feedback.dataset import Preference, as_voted

LEAST_ANNOTATORS = 5
"""Fewer than this, and a bootstrap of annotators leaves members with one person's word or none."""


def bootstrap_by(pairs: Sequence[Preference]) -> str:
    """What is drawn for the members: "annotator" or "prompt cluster"."""
    annotators = {vote.annotator for pair in pairs for vote in pair.votes}
    return "annotator" if len(annotators) >= LEAST_ANNOTATORS else "prompt cluster"


def resample(pairs: Sequence[Preference], seed: int) -> list[Preference | None]:
    """What one member makes of each pair: None where it is not drawn, else the pair as those drawn would have it.

    A pair's votes count as often as their annotators were drawn; sides, margin, target and weight follow from those that
    are left, so one annotator's judgments are in or out together. A pair without votes counts as often as its cluster was.
    """
    import numpy as np

    random = np.random.default_rng(seed)

    def draw(names: set[Any]) -> dict[Any, int]:
        every = sorted(names)
        return (
            dict(zip(every, random.multinomial(len(every), [1 / len(every)] * len(every)).tolist(), strict=True))
            if every
            else {}
        )

    by_annotator = bootstrap_by(pairs) == "annotator"
    annotators = draw({vote.annotator for pair in pairs for vote in pair.votes})
    clusters = draw({pair.cluster for pair in pairs if not by_annotator or not pair.votes})
    return [
        _as_drawn(pair, annotators) if by_annotator and pair.votes else _times(pair, clusters[pair.cluster])
        for pair in pairs
    ]


def _times(pair: Preference, n: int) -> Preference | None:
    return replace(pair, weight=pair.weight * n) if n else None


def _as_drawn(pair: Preference, drawn: dict[int, int]) -> Preference | None:
    votes = [v._replace(weight=v.weight * drawn[v.annotator]) for v in pair.votes if drawn[v.annotator]]
    if not votes:
        return None
    drawn_pair = as_voted(pair, votes)
    return replace(drawn_pair, weight=drawn_pair.weight * len(votes) / len(pair.votes))


def penalised(scores: Any, sd_weight: float) -> Any:
    """(K, N) scores of members → (N,) mean − λ · sd over members; sd is the population's, so 0 for one member."""
    mean = scores.mean(0)
    return mean - sd_weight * (scores - mean).square().mean(0).sqrt()


def write_average(folder: Path, names: Sequence[str], name: str) -> None:
    """Write the adapter whose weights are the mean of the named ones' into `folder / name`.

    Exact: the mean of K products B A is one product of K times the rank, with all A on top of each other and all B / K side
    by side. Heads are averaged as they are.
    """
    import torch
    from safetensors.torch import load_file, save_file

    members = [load_file(folder / each / "adapter_model.safetensors") for each in names]
    mean = {}
    for key, first in members[0].items():
        parts = [member[key] for member in members]
        if ".lora_A." in key:
            mean[key] = torch.cat(parts, dim=0)
        elif ".lora_B." in key:
            mean[key] = torch.cat(parts, dim=1) / len(parts)
        else:
            mean[key] = torch.stack(parts).float().mean(0).to(first.dtype)
    config = json.loads((folder / names[0] / "adapter_config.json").read_text(encoding="utf-8"))
    config["r"], config["lora_alpha"] = config["r"] * len(names), config["lora_alpha"] * len(names)
    target = folder / name
    target.mkdir()
    save_file(mean, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
