"""What was measured: accuracies by scenario and arm over seeds, paired differences, and the table that the document shows."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.robustness.cell import ARMS
from core.artifacts import write_text

PACKAGES = ("torch", "transformers", "peft", "crowd-kit", "datasketch")
PAGE = machine.ROOT / "docs" / "robustness.md"
START, END = "<!-- robustness-figures:start -->", "<!-- robustness-figures:end -->"
DIGITS = 4


class Figures:
    """The result file, written after each cell.

    Args:
        says: of each scenario, by name, what happens in it; in the order of the table.
    """

    def __init__(self, out: Path, settings: dict[str, Any], says: Mapping[str, str]) -> None:
        self._out = out
        self._head = {"machine": machine.machine(), "versions": machine.versions(PACKAGES), "settings": settings}
        self._says = says
        self._cells: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in says}
        self._began = time.perf_counter()

    def add(self, scenario: str, seed: int, found: dict[str, Any]) -> None:
        """What a cell measured."""
        self._cells[scenario][seed] = found
        self.write()

    def write(self) -> None:
        """Everything so far."""
        seconds = round(time.perf_counter() - self._began, 1)
        done = {
            name: {"says": self._says[name]} | summary([found for _, found in sorted(cells.items())])
            for name, cells in self._cells.items()
            if cells
        }
        machine.write_figures(self._out, {**self._head, "seconds": seconds, "scenarios": done})


def summary(cells: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of the cells of a scenario, one for each seed: accuracies by arm, gains over "off", what the snapshots did."""
    accuracy = {arm: [cell[arm]["accuracy"] for cell in cells] for arm in ARMS}
    return {
        "seeds": len(cells),
        "clean_pairs": cells[0]["off"]["n"],
        "accuracy": {arm: over_seeds(values) | {"each": values} for arm, values in accuracy.items()},
        "gain": {
            arm: over_seeds([a - b for a, b in zip(values, accuracy["off"], strict=True)])
            for arm, values in accuracy.items()
            if arm != "off"
        },
        "did": {arm: _did([cell[arm] for cell in cells]) for arm in ("off", "on")},
    }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """{mean, low, high, n}: Student's 95 % interval; no interval of a single value."""
    from scipy.stats import t

    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return {"mean": round(mean, DIGITS), "low": None, "high": None, "n": n}
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {
        "mean": round(mean, DIGITS), "low": round(mean - half, DIGITS), "high": round(mean + half, DIGITS), "n": n,
    }  # fmt: skip


def _did(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of what the snapshots told of themselves."""

    def mean(values: Sequence[float]) -> float:
        return round(math.fsum(values) / len(values), DIGITS)

    reliability = [arm["reliability"] for arm in arms]
    known = all("least" in facts for facts in reliability)
    return {
        "n_train": mean([arm["n_train"] for arm in arms]),
        "merged": mean([arm["merged"] for arm in arms]),
        "held_back": {of: mean([arm["held_back"][of] for arm in arms]) for of in arms[0]["held_back"]},
        "largest_share": {of: mean([arm["largest_shares"][of] for arm in arms]) for of in arms[0]["largest_shares"]},
        "reliability": {of: mean([facts[of] for facts in reliability]) for of in ("least", "mean", "most")} if known else None,
    }  # fmt: skip


# The table ------------------------------------------------------------------------------------------------------------


def table(figures: Mapping[str, Any]) -> str:
    """The rows of the document, from the result file's content."""
    lines = [
        "| | off | weights | snapshot | on | gain of weights | gain of the snapshot | gain of all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in figures["scenarios"].values():
        accuracies = [_percent(found["accuracy"][arm]["mean"]) for arm in ARMS]
        gains = [_points(found["gain"][arm]) for arm in ARMS if arm != "off"]
        lines.append(f"| {' | '.join([found['says'], *accuracies, *gains])} |")
    first = next(iter(figures["scenarios"].values()))
    lines += [
        "",
        f"{first['seeds']} seeds, {first['clean_pairs']} clean pairs each (of which those of the other categories count in the last"
        f" row). Commit {figures['versions']['dunnock']}, {figures['machine']['cores']} cores, load of"
        f" {figures['machine']['load_before']} at the start, {round(figures['seconds'] / 60)} minutes.",
    ]
    return "\n".join(lines)


def rewrite_page(figures: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the table between the marks of the document.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page.name} must hold {START} and, after it, {END}")
    write_text(page, f"{before}{START}\n{table(figures)}\n{END}{after}")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(gain: Mapping[str, Any]) -> str:
    """Percentage points with their interval."""
    if gain["low"] is None:
        return f"{100 * gain['mean']:+.1f}"
    return f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} … {100 * gain['high']:+.1f})"
