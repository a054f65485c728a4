"""Which label smoothing an update uses: the setting's, or the flip rate that its snapshot was frozen with."""

from collections.abc import Mapping
from typing import Any

from core.settings import UpdateSettings

MOST = 0.3
"""Robust DPO divides by 1 - 2 e: beyond this the gradient of each pair is more than 2.5 times as large, and so is its noise."""


def label_smoothing(settings: UpdateSettings, manifest: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """The label smoothing to train with, and what the stage's record says of it.

    `auto` takes the snapshot's flip rate where there is one and at least half of the pairs rest on people's judgments made
    here; else `label_smoothing_without`. A snapshot of before flip rates has none.
    """
    if settings.loss != "robust":
        return 0.0, _record(0.0, "only the loss robust allows for flipped judgments")
    if settings.label_smoothing != "auto":
        return settings.label_smoothing, _record(settings.label_smoothing, "the setting says so")
    without = settings.label_smoothing_without
    found: Mapping[str, Any] = manifest.get("flip_rate") or {"undefined": "the snapshot was frozen without one"}
    rate = found.get("value")
    if rate is None:
        return without, _record(without, f"the flip rate is undefined: {found.get('undefined')}", found)
    total = int(manifest.get("n_train", 0)) + int(manifest.get("n_heldout", 0))
    foreign = int(manifest.get("n_simulated", 0)) + int(manifest.get("n_imported", 0))
    if 2 * foreign > total:
        why = f"{foreign} of {total} pairs are simulated or imported, and the flip rate is that of people's judgments here"
        return without, _record(without, why, found)
    value = min(float(rate), MOST)
    why = f"flip rate of people's judgments, from {found.get('source')}"
    return value, _record(value, why if value == rate else f"{why}, held to {MOST}", found)


def _record(value: float, why: str, rate: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"value": value, "why": why, **({"flip_rate": dict(rate)} if rate else {})}
