"""A process beside a run that records it: it is told lines of JSON, tells some itself, and does the run no harm.

Telling never waits: what the process does not take stays in memory, up to a limit. It may fail, hang or be killed; the run goes
on, and whoever ends it learns of it. When the run's process is gone, its input ends, and so should it.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
MOST_WAITING = 8_000_000
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What tells a process that it is one of several that train together; the one beside them is none."""


class Sidecar:
    """A running `python -m MODULE`.

    Attributes:
        lost: lines that were dropped because it took none for too long.
    """

    def __init__(self, module: str, log: Path | None = None) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED and not k.startswith("ACCELERATE_")}
        self.lost = 0
        self._out, self._in = bytearray(), bytearray()
        with contextlib.ExitStack() as files:
            errors = files.enter_context(log.open("ab")) if log is not None else subprocess.DEVNULL
            self.process = subprocess.Popen(  # noqa: S603 (our own words)
                [sys.executable, "-m", module], cwd=ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        for end in (self._to, self._from):
            os.set_blocking(end, False)

    def tell(self, message: dict[str, Any]) -> None:
        """Tell it something, now or when it next listens."""
        if len(self._out) > MOST_WAITING:
            self.lost += 1
        else:
            self._out += json.dumps(message, default=str).encode() + b"\n"
        self._push()

    def heard(self) -> list[dict[str, Any]]:
        """What it has told since the last time."""
        with contextlib.suppress(OSError):  # there is nothing just now, or nobody
            while found := os.read(self._from, 1 << 16):
                self._in += found
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        return [json.loads(line) for line in lines if line.strip()]

    def end(self, wait_s: float) -> bool:
        """Tell it that there is no more, wait for its end, and kill it where it does not come; whether it came."""
        until = time.monotonic() + wait_s
        while self._out and self.process.poll() is None and time.monotonic() < until:
            self._push()
            time.sleep(0.02)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(max(0.05, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True

    def close(self) -> None:
        """Give back its pipes; call it last."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _push(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self._to, self._out[: 1 << 16])]
        except BlockingIOError:
            pass  # it does not listen just now
        except OSError:
            self._out.clear()  # it is gone


# The other side -------------------------------------------------------------------------------------------------------


def messages() -> Iterator[dict[str, Any]]:
    """What the run tells, until there is no more."""
    for line in sys.stdin:
        yield json.loads(line)


def leave_with_run(wait_s: float) -> None:
    """End this process so many seconds after the run's is gone, whatever it hangs in; its input's end comes sooner."""
    run = os.getppid()

    def watch() -> None:
        while os.getppid() == run:
            time.sleep(1.0)
        time.sleep(wait_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def own_output() -> TextIO:
    """The way to tell the run something; what libraries print goes to the log from here on."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def say(out: TextIO, message: dict[str, Any]) -> None:
    """Tell the run something."""
    out.write(json.dumps(message, default=str) + "\n")
    out.flush()
