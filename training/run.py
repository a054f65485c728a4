"""A training run's record: progress told while it runs, `run.json` beside what it makes."""

import errno
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from core.artifacts import write_json
from core.errors import DunnockError, StageError
from core.settings import UpdateSettings
from training import ranks
from training.device import describe, training_dtype
from training.energy import so_far
from training.memory import trainer_arguments

Row = Mapping[str, Any]
"""The figures of one step: `step`, counted from 1, and numbers by name, e.g. `loss`."""


class Progress(Protocol):
    """How a run tells how far it is: the one place where every training loop reports.

    Called with the finished share (0…1), a short note, and the rows of the steps that were not told yet; a run that is taken
    up tells those of its checkpoint again, and what was told of later steps is void. It may raise to stop the run (lease
    lost, cancelled).
    """

    def __call__(self, done_frac: float, note: str, rows: Sequence[Row] = (), /) -> None: ...


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not allocate", "bad_alloc")
"""What allocators of torch, CUDA and others say; each in a type of error of its own."""

NO_ROOM = ("No space left", "disk is full", "PytorchStreamWriter failed writing", "Disk quota exceeded")
"""The same of files: the system, SQLite, torch's archives."""

VERSIONED = ("torch", "transformers", "trl", "peft", "accelerate")


def common_arguments(settings: UpdateSettings, work: Path, device: Any) -> dict[str, Any]:
    """What all our TRL trainers are told alike: one schedule, resumable checkpoints, no silent losses."""
    import torch

    return {
        "output_dir": str(work),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,  # a share of all steps
        "max_length": None,  # we drop long pairs ourselves, and count them
        **trainer_arguments(settings, device),
        "bf16": training_dtype(device, settings.precision) is torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else a NaN loss is logged as 0 and the run goes on
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": device.type == "cuda",
    }


def silent(done_frac: float, note: str, rows: Sequence[Row] = ()) -> None:
    """A Progress that tells nobody."""


def part_of(progress: Progress, begin: float, end: float, *, named: str = "") -> Progress:
    """A Progress whose 0…1 is `begin`…`end` of another's; rows are told as those of the part of this name, if it has one."""

    def tell(done_frac: float, note: str, rows: Sequence[Row] = ()) -> None:
        told = [{**row, "part": named} for row in rows] if named else rows
        progress(begin + done_frac * (end - begin), note, told)

    return tell


def code_revision() -> str:
    """The git commit of this code, or "unknown" where it runs without git."""
    root = Path(__file__).resolve().parent.parent
    try:
        out = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return out.stdout.strip()


def write_run(folder: Path, stage: str, settings: dict[str, Any], device: Any, **facts: Any) -> None:
    """Write `run.json`: resolved settings, facts (snapshot hash, parent, seed, counts), where it ran, versions, code revision.

    `energy` is an estimate of what this attempt of the stage took up to here; None where it was not measured.
    """
    write_json(
        folder / "run.json",
        {
            "stage": stage,
            "settings": settings,
            **facts,
            **describe(device, settings.get("precision", "auto")),
            "energy": so_far(),
            "processes": ranks.count(),
            "code": code_revision(),
            "machine": f"{platform.machine()} {platform.system()}",
            "versions": {name: version(name) for name in VERSIONED},
        },
    )


@contextmanager
def clear_errors() -> Iterator[None]:
    """What a machine without room says, as something to act on; all other errors stay what they are.

    Raises:
        StageError: memory or disk is full.
    """
    try:
        yield
    except DunnockError:
        raise
    except Exception as error:
        told = str(error)
        first = told.splitlines()[0] if told else type(error).__name__
        number = getattr(error, "errno", None)
        if isinstance(error, MemoryError) or number == errno.ENOMEM or _any_of(NO_MEMORY, told):
            raise StageError(
                f"out of memory ({first}); lower the stage's batch size or its longest length, adapt fewer layers, or turn"
                " gradient checkpointing on"
            ) from error
        if number in (errno.ENOSPC, errno.EDQUOT) or _any_of(NO_ROOM, told):
            raise StageError(
                f"the disk is full ({first}). Free some space below DUNNOCK_VAR_DIR; the run goes on from its last"
                " checkpoint when the cycle is reopened."
            ) from error
        raise


def _any_of(words: Sequence[str], told: str) -> bool:
    return any(word in told for word in words)


def progress_callback(progress: Progress, row_of: Callable[[Row], Row | None]) -> Any:
    """A transformers TrainerCallback that reports steps and what is logged of them, and stops on a NaN loss.

    Args:
        row_of: what is told of one of the trainer's log lines; None where it is none of a step.

    Raises (while training):
        StageError: the loss or its gradient is not finite; nothing is registered.
    """
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        told = 0  # lines of the trainer's log

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:
                self.tell(state, "")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            for name in ("loss", "grad_norm"):
                value = float(logs.get(name, 0.0))
                if not math.isfinite(value):
                    raise StageError(
                        f"{name} is {value} at step {state.global_step}; the run is stopped and nothing is registered."
                        " Lower the learning rate or look at the snapshot."
                    )
            self.tell(state, f", loss {float(logs['loss']):.3f}")

        def tell(self, state: Any, more: str) -> None:
            lines, self.told = state.log_history[self.told :], len(state.log_history)
            rows = [row for row in map(row_of, lines) if row is not None]
            note = f"step {state.global_step}/{state.max_steps}{more}"
            progress(state.global_step / max(1, state.max_steps), note, rows)

    return Report()


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint below `folder`, or None. A checkpoint is complete once its trainer state is there."""
    found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    return str(max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if found else None
