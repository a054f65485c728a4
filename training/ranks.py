"""Ranks: the processes that `accelerate launch` starts to train one model together.

A process that was started by itself is the only rank, and nothing here costs it anything. Otherwise `join` comes first. All
ranks do the same work in the same order, but for what they share out: the rows of a step. The first rank is the main one, and
what the others write goes to folders that are thrown away (`new_folder_of_main`), so one place writes and registers.
"""

import datetime as dt
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.artifacts import new_folder
from core.errors import DunnockError
from training.device import Device, find_device

LONGEST_WAIT = dt.timedelta(days=1)
"""For another rank, e.g. while the main one writes. One that died is noticed by the launcher, not by this."""

GONE = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "gloo", "NCCL")

Row = TypeVar("Row")


@dataclass(frozen=True)
class _Place:
    number: int = 0
    count: int = 1


_place = _Place()


def join(device: Device) -> None:
    """Meet the other ranks; every rank that was launched calls it once, before anything else of this module."""
    global _place  # noqa: PLW0603 (a process has one place among the ranks)
    from accelerate import PartialState

    state = PartialState(cpu=find_device(device).type == "cpu", timeout=LONGEST_WAIT)
    _place = _Place(state.process_index, state.num_processes)


def leave() -> None:
    """Part from the others, at the end of a process."""
    global _place  # noqa: PLW0603
    if _place.count > 1:
        import torch

        torch.distributed.destroy_process_group()
    _place = _Place()


def count() -> int:
    """How many ranks there are."""
    return _place.count


def is_main() -> bool:
    """Whether this is the rank that writes and registers."""
    return _place.number == 0


def share(rows: Sequence[Row]) -> list[Row]:
    """This rank's part of the rows of a step; it may be none."""
    return list(rows[_place.number :: _place.count])


def add_up(tensors: Sequence[Any]) -> None:
    """Make each tensor the sum of what it is on all ranks, in place."""
    if _place.count == 1:
        return
    import torch

    flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def wait() -> None:
    """Until all ranks have come here."""
    if _place.count > 1:
        import torch

        torch.distributed.barrier()


def lost_another(error: BaseException) -> bool:
    """Whether an error says no more than that another rank is gone; why, that one knows or whoever ended it."""
    ours = isinstance(error, DunnockError) or not isinstance(error, RuntimeError)
    return _place.count > 1 and not ours and any(word in str(error) for word in GONE)


@contextmanager
def new_folder_of_main(target: Path) -> Iterator[Path]:
    """`core.artifacts.new_folder` on the main rank; on the others a folder that is gone when the block ends."""
    if is_main():
        with new_folder(target) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="dunnock-rank-") as scratch:
            yield Path(scratch)
