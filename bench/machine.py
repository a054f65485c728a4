"""What every result file says of where its figures come from, and how it is written."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def write_figures(out: Path, figures: dict[str, Any]) -> None:
    """Write a result file whole or not at all, so that a run that is killed leaves what it had."""
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    beside.replace(out)


def machine() -> dict[str, Any]:
    """What it ran on, and the load of the last minute, other work included."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(), "cpu": names[0] if names else platform.processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}", "load_before": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def versions(packages: Sequence[str]) -> dict[str, str]:
    """This code, the interpreter, and packages."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "dunnock": told.stdout.strip() or "no git",
        "python": platform.python_version(),
    } | {name: version(name) for name in packages}
