"""Peak resident memory of this process, in MB, as the operating system counts it."""

import resource
import sys


def peak_mb() -> float:
    """Highest resident set size since the process began (each stage has a process of its own)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
