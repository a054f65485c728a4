"""Child processes: they end with their parent, and those that compute do it calmly.

A parent that is killed leaves nobody behind who holds its ports or its memory (Linux; elsewhere `finally` must do).
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: not safe between fork and exec

COMPUTE = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment of a process that computes beside others on the same cores.

Threads wait asleep, or an engine on the same cores would be starved by spinning ones. glibc keeps freed memory: each
layer's activations are asked for again in the next step, and having the system hand out zeroed pages for them anew
took a sixth of an update step's time.
"""


def die_with_parent(sent: signal.Signals) -> Callable[[], None]:
    """A `preexec_fn` that has the system send this signal to the child once the thread that started it is gone."""
    parent = os.getpid()

    def arrange() -> None:
        if _prctl is not None:
            _prctl(PR_SET_PDEATHSIG, sent)
            if os.getppid() != parent:  # it was gone before we asked
                os._exit(1)

    return arrange


def end_with_parent(sent: signal.Signals, grandparent: int) -> None:
    """Have the system send this signal to this very process once its parent is gone: for one that others start for us.

    Args:
        grandparent: the process that started the parent. Where the parent's is another one by now, it was gone before we
            asked, and this process ends.
    """
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, sent)
        if _parent_of(os.getppid()) != grandparent:
            os._exit(1)


def _parent_of(number: int) -> int | None:
    """A process's parent, as Linux tells it; None where it is gone."""
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
