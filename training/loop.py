"""The loop of our own trainers: AdamW, a warm-up and a cosine, checkpoints that a killed run goes on from.

In: named parameters, the number of rows, and a function from row indices to a loss. Out: the parameters, changed in
place, and a log with a line per step. Which rows a step takes hangs on seed and step alone, and nothing else is random, so
a resumed run ends with the very weights of an unbroken one (on a CPU; a GPU's sums may differ in their last bits). Several
ranks each take a part of a step's rows and add their gradients up, so they end as one does, up to the order of additions.
It knows neither models nor datasets; device and dtype are the caller's.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artifacts import new_folder, write_json
from core.errors import StageError
from core.settings import TrainingSettings
from training import ranks
from training.memory import make_optimizer, optimizer_tensors, restore_optimizer
from training.run import Progress, clear_errors, silent

WARMUP_FRAC = 0.1
CLIP_NORM = 1.0
STATE, NOTES = "state.safetensors", "loop.json"

StepLoss = Callable[[list[int]], Any]
"""The loss of a step, a scalar tensor and a mean over its rows, given their indices."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `epochs` may be a part of one."""

    epochs: float
    batch_size: int
    learning_rate: float
    save_steps: int
    seed: int

    def steps(self, n_rows: int) -> int:
        """Optimiser steps for so many rows; at least one."""
        return max(1, math.ceil(self.epochs * math.ceil(n_rows / self.batch_size)))

    def rate(self, step: int, total: int) -> float:
        """Learning rate of a step, counted from 0: up to its most over the first tenth, then down a half cosine."""
        warm = math.ceil(WARMUP_FRAC * total)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def rows(self, step: int, n_rows: int) -> list[int]:
        """The rows of a step: each epoch takes all of them once, in an order of its own."""
        import torch

        per_epoch = math.ceil(n_rows / self.batch_size)
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)).tolist()
        return [int(i) for i in order[place * self.batch_size : (place + 1) * self.batch_size]]


def fit(
    parameters: Mapping[str, Any],
    n_rows: int,
    loss_of: StepLoss,
    schedule: Schedule,
    work: Path,
    *,
    fingerprint: str = "",
    memory: TrainingSettings | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Train `parameters` in place and return the log: step, epoch, loss, grad_norm and learning_rate of each step.

    Args:
        work: folder of checkpoints, kept between attempts; the newest is gone on from.
        fingerprint: what the run is about (data and settings); a checkpoint of another run is not used.
        memory: which optimiser; plain AdamW by default.

    Raises:
        StageError: the loss or its gradient is not finite, memory or disk is full.
    """
    import torch

    total = schedule.steps(n_rows)
    values = list(parameters.values())
    optimiser = make_optimizer(memory or TrainingSettings(), values, values[0].device, lr=schedule.learning_rate)
    with clear_errors():
        step, log = _restore(work, parameters, optimiser, fingerprint)
        if log:
            progress(step / total, f"step {step}/{total}, loss {log[-1]['loss']:.3f}", log)
        while step < total:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step, total)
            optimiser.zero_grad(set_to_none=True)
            loss = _backward(loss_of, schedule.rows(step, n_rows), values)
            norm = torch.nn.utils.clip_grad_norm_(values, CLIP_NORM)
            told = {
                "step": step + 1,
                "epoch": round((step + 1) / math.ceil(n_rows / schedule.batch_size), 4),
                "loss": loss.item(),
                "grad_norm": norm.item(),
                "learning_rate": optimiser.param_groups[0]["lr"],
            }
            _demand_finite(told)
            optimiser.step()
            step += 1
            log.append(told)
            if (step == total or step % schedule.save_steps == 0) and ranks.is_main():
                _save(work, parameters, optimiser, {"step": step, "log": log, "fingerprint": fingerprint})
            progress(step / total, f"step {step}/{total}, loss {told['loss']:.3f}", [told])
    return log


def _backward(loss_of: StepLoss, rows: list[int], values: list[Any]) -> Any:
    """Put the gradients of a step into `values`, and return its loss; each rank computes those of its own rows."""
    import torch

    mine = ranks.share(rows)
    loss = loss_of(mine) * (len(mine) / len(rows)) if mine else torch.zeros((), device=values[0].device)
    if mine:
        loss.backward()
    if ranks.count() > 1:
        for value in values:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        loss = loss.detach()
        ranks.add_up([loss, *(value.grad for value in values)])
    return loss


def _demand_finite(told: Mapping[str, Any]) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(told[name]):
            raise StageError(
                f"{name} is {told[name]} at step {told['step']}; the run is stopped and nothing is registered."
                " Lower the learning rate or look at the snapshot."
            )


def _save(work: Path, parameters: Mapping[str, Any], optimiser: Any, notes: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors = {f"value/{name}": p.detach().contiguous() for name, p in parameters.items()}
    tensors |= {f"adam/{name}": value for name, value in optimizer_tensors(optimiser, parameters).items()}
    with new_folder(work / f"step-{notes['step']:06d}") as folder:
        save_file(tensors, folder / STATE)
        write_json(folder / NOTES, notes)
    for older in _checkpoints(work)[:-1]:
        shutil.rmtree(older, ignore_errors=True)


def _restore(
    work: Path, parameters: Mapping[str, Any], optimiser: Any, fingerprint: str
) -> tuple[int, list[dict[str, Any]]]:
    """Steps done and their log, parameters and optimiser as they were then; (0, []) for a new run."""
    import torch
    from safetensors.torch import load_file

    found = _checkpoints(work)
    if not found:
        return 0, []
    notes = json.loads((found[-1] / NOTES).read_text(encoding="utf-8"))
    if notes["fingerprint"] != fingerprint:
        ranks.wait()  # until all have read it
        for folder in found if ranks.is_main() else ():
            shutil.rmtree(folder)
        return 0, []
    tensors = load_file(found[-1] / STATE)
    for name, p in parameters.items():
        with torch.no_grad():
            p.copy_(tensors[f"value/{name}"])
    adam = {name.removeprefix("adam/"): value for name, value in tensors.items() if name.startswith("adam/")}
    restore_optimizer(optimiser, parameters, adam)
    return notes["step"], notes["log"]


def _checkpoints(work: Path) -> list[Path]:
    """Complete checkpoints, oldest first: a folder gets its name only when all is in it."""
    return sorted(work.glob("step-*"))
