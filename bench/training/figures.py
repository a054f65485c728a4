"""What was measured: medians of runs, ratios to the stock trainers, written as it comes."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
RATES = {"reward": "pairs_per_s", "dpo": "pairs_per_s", "ppo": "samples_per_s"}
HEAD = ("machine", "versions", "settings")
RESAMPLES = 2000


class Figures:
    """The result file: runs by part, by whom, and variant.

    Args:
        kept: an earlier file, whose parts stay where this run does not measure them; its head comes as `earlier`.
    """

    def __init__(self, out: Path, settings: dict[str, Any], kept: Mapping[str, Any] | None = None) -> None:
        self._out = out
        self._kept = {name: value for name, value in (kept or {}).items() if name not in (*HEAD, "ratios")}
        if kept:
            self._kept["earlier"] = {name: kept[name] for name in HEAD}
        self._head = {"machine": machine.machine(), "versions": machine.versions(PACKAGES), "settings": settings}
        self._runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._more: dict[str, Any] = {}

    def add(self, part: str, name: str, run: dict[str, Any]) -> None:
        """A run, e.g. of part "dpo", by "stock"; everything is written."""
        self._head["versions"][f"trl_{part}_{name}"] = run.pop("trl")
        self._runs.setdefault(part, {}).setdefault(name, []).append(run)
        self.write()

    def put(self, **more: Any) -> None:
        """What is no run: a part that was not done, or follows from several."""
        self._more |= more
        self.write()

    def write(self) -> None:
        """Everything so far."""
        parts = {part: {name: summary(runs) for name, runs in named.items()} for part, named in self._runs.items()}
        found = {**self._head, **self._kept, **parts, **self._more}
        machine.write_figures(self._out, {**found, "ratios": ratios(found)})


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the numbers of all runs, rounded; of a single run its own. `runs` says how many."""
    found: dict[str, Any] = {"runs": len(runs)}
    for name, value in runs[0].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = _round(median(run[name] for run in runs))
    return found


def ratios(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float | None]:
    """What the goals name, over the faster of the stock trainer's runs; null for what was not measured.

    Names that end in `_fp32` are over its run in fp32, which is what it does where nobody tells it otherwise on older processors.
    `fraction_of_matmul_limit` is that of DPO: the operations of the matmuls that our run executes, by second, by the most that
    the machine does in nothing but matmuls (`limit`).
    """
    found: dict[str, float | None] = {}
    for kind, rate in RATES.items():
        named = parts.get(kind, {})
        ours, whole = named.get("ours"), named.get("stock")
        stock = max(
            (named[by] for by in ("stock", "stock_bf16") if by in named), key=lambda run: run[rate], default=None
        )
        name = "ppo_samples_per_s_vs_trl112" if kind == "ppo" else f"{kind}_{rate}_vs_trl"
        found[name] = _round(ours[rate] / stock[rate]) if ours and stock else None
        memory = f"{kind}_peak_memory_vs_trl{'112' if kind == 'ppo' else ''}"
        found[memory] = _round(ours["peak_mb"] / stock["peak_mb"]) if ours and stock else None
        found[f"{name}_fp32"] = _round(ours[rate] / whole[rate]) if ours and whole else None
    limit, flops = (parts.get("limit", {}).get(name) for name in ("matmul", "flops"))
    for kind, name in (("reward", "reward_fraction_of_matmul_limit"), ("dpo", "fraction_of_matmul_limit")):
        ours = parts.get(kind, {}).get("ours")
        found[name] = None
        if limit and flops and ours and f"{kind}_gflop_per_pair" in flops:
            found[name] = _round(flops[f"{kind}_gflop_per_pair"] * ours["pairs_per_s"] / limit["gflops"])
    return found


def flatness(rates: Mapping[int, float]) -> dict[str, Any]:
    """Seconds per pair at each size, and the farthest of them from that at the smallest, as a share of it.

    Args:
        rates: number of pairs → pairs per second.
    """
    seconds = {size: 1 / rate for size, rate in sorted(rates.items())}
    first = next(iter(seconds.values()))
    farthest = max((cost / first - 1 for cost in seconds.values()), key=abs)
    return {"seconds_per_pair": {str(n): _round(s) for n, s in seconds.items()}, "farthest": _round(farthest)}


def paired_difference(
    ours: Sequence[Sequence[bool]], stock: Sequence[Sequence[bool]], roots: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Accuracies over all seeds, their difference, and its 95 % interval by resampling conversation roots of each seed.

    Args:
        ours, stock: for each seed, whether each held-out pair was ranked as people did.
        roots: for each seed, the conversation root of each pair; pairs of a root are drawn together.
    """
    gains: list[dict[str, list[int]]] = []
    for mine, theirs, named in zip(ours, stock, roots, strict=True):
        by_root: dict[str, list[int]] = {}
        for one, other, root in zip(mine, theirs, named, strict=True):
            by_root.setdefault(root, []).append(int(one) - int(other))
        gains.append(by_root)
    rng = random.Random(0)
    drawn = []
    for _ in range(RESAMPLES):
        some = [g for by_root in gains for r in rng.choices(list(by_root), k=len(by_root)) for g in by_root[r]]
        drawn.append(sum(some) / len(some))
    drawn.sort()
    n = sum(map(len, ours))
    right = [sum(map(sum, sides)) / n for sides in (ours, stock)]
    return {
        "n": n, "seeds": len(ours), "ours": _round(right[0]), "stock": _round(right[1]),
        "difference": _round(right[0] - right[1]), "low": _round(drawn[int(0.025 * RESAMPLES)]),
        "high": _round(drawn[int(0.975 * RESAMPLES)]),
    }  # fmt: skip


def _round(value: float) -> float:
    """Four significant digits are more than a run repeats."""
    return float(f"{value:.4g}")
