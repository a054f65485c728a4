"""What machines without room say, as something to act on."""

import errno
import sqlite3
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from sqlalchemy.exc import OperationalError

from core.errors import Conflict, StageError
from training.run import clear_errors, progress_callback

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:129] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError(
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/3: file write failed"
    ),
    OperationalError("insert", {}, sqlite3.OperationalError("database or disk is full")),
]
OTHERS = [RuntimeError("shapes differ"), FileNotFoundError(2, "No such file"), ConnectionError("refused")]


def kind(error: BaseException) -> str:
    return f"{type(error).__name__}-{str(error)[:12]}"


@pytest.mark.parametrize("error", MEMORY, ids=kind)
def test_no_memory(error: BaseException) -> None:
    with pytest.raises(StageError, match="^out of memory .*; lower the stage's batch size") as told, clear_errors():
        raise error
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", DISK, ids=kind)
def test_no_disk(error: BaseException) -> None:
    with pytest.raises(StageError, match="^the disk is full .*Free some space below DUNNOCK_VAR_DIR"), clear_errors():
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=kind)
def test_other_errors_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as told, clear_errors():
        raise error
    assert told.value is error


def test_errors_of_ours_have_their_words_already() -> None:
    with pytest.raises(Conflict) as told, clear_errors():
        raise Conflict("out of memory, says somebody else")
    assert told.value.message == "out of memory, says somebody else"


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stops_a_trainer_of_trls(name: str, value: float) -> None:
    class State:
        global_step, max_steps, log_history = 3, 9, ()

    report: Any = progress_callback(lambda *_: None, dict)
    report.on_log(None, State, None, logs={"loss": 1.0, "grad_norm": 2.0})
    report.on_log(None, State, None, logs={"train_runtime": 4.0})
    with pytest.raises(StageError, match=f"{name} is {value} at step 3; .*nothing is registered"):
        report.on_log(None, State, None, logs={"loss": 1.0, "grad_norm": 2.0} | {name: value})
