"""A loss curve as numbers that a template can draw: an inline SVG needs no script and no library.

In: a trainer's log, `[{"step", "loss", …}, …]`. Out: a `Curve` in pixels of a 420 × 190 view box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from console.words import finite, local
from core.language import gettext

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 40
MEAN_OVER_FRAC = 0.1


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """What is drawn, and the figures behind it."""

    title: str
    unit: str
    line: str  # SVG points of each step
    mean_line: str  # of the running mean; empty for short runs
    mean_over: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    guide: Tick | None  # a horizontal line to compare with
    figures: list[tuple[int, float]]

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def loss_curve(log: Any, title: str, *, unit: str = "", guide: tuple[float, str] | None = None) -> Curve | None:
    """The curve of a trainer's log; None with fewer than two finite points.

    Args:
        guide: a value to compare with, and its name, e.g. the loss of guessing.
    """
    figures = _figures(log)
    if len(figures) < 2:
        return None
    values = [loss for _, loss in figures] + ([guide[0]] if guide else [])
    y_values = nice_ticks(min(values), max(values))
    low, high = y_values[0], y_values[-1]
    first, last = figures[0][0], figures[-1][0]

    def x(step: float) -> float:
        return round(LEFT + (step - first) / max(1, last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        return round(TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    over = max(1, round(len(figures) * MEAN_OVER_FRAC))
    means = _running_mean([loss for _, loss in figures], over) if over > 1 else []
    steps = [step for step, _ in figures]
    return Curve(
        title=title,
        unit=unit or gettext("nats"),
        line=" ".join(f"{x(s)},{y(v)}" for s, v in figures),
        mean_line=" ".join(f"{x(s)},{y(v)}" for s, v in zip(steps, means, strict=False)),
        mean_over=over,
        x_ticks=[Tick(x(s), str(s)) for s in sorted({first, (first + last) // 2, last})],
        y_ticks=[Tick(y(v), local(f"{v:.{_decimals(y_values)}f}")) for v in y_values],
        guide=Tick(y(guide[0]), guide[1]) if guide else None,
        figures=figures,
    )


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers, evenly spaced, that enclose [low, high]."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _figures(log: Any) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for row in log if isinstance(log, list) else []:
        if isinstance(row, dict) and (loss := finite(row.get("loss"))) is not None:
            step = finite(row.get("step"))
            found[int(step) if step is not None else len(found) + 1] = loss
    return sorted(found.items())


def _running_mean(values: Sequence[float], over: int) -> list[float]:
    """At each place the mean of the last `over` values, or of as many as there are."""
    return [math.fsum(values[max(0, i - over + 1) : i + 1]) / min(i + 1, over) for i in range(len(values))]


def _decimals(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
