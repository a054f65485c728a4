"""A curve of steps as numbers that a template can draw: an inline SVG needs no script and no library.

In: a trainer's log, `[{"step", "loss", …}, …]`. Out: a `Curve` in pixels of a 420 × 190 view box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from console.words import finite, local

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 40
MEAN_OVER_FRAC = 0.1
MOST_POINTS = 300
"""Of longer runs, neighbouring steps are drawn as their mean: a pixel shows no more."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """What is drawn, and the figures behind it."""

    title: str
    axis: str  # what is drawn, with its unit
    line: str  # SVG points of each step
    mean_line: str  # of the running mean; empty for short runs
    mean_over: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    guide: Tick | None  # a horizontal line to compare with
    figures: list[tuple[int, float]]

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


def curve_of(log: Any, name: str, title: str, axis: str, *, guide: tuple[float, str] | None = None) -> Curve | None:
    """The curve of one of a log's figures over its steps; None with fewer than two finite points.

    Args:
        guide: a value to compare with, and its name, e.g. the loss of guessing.
    """
    figures = _figures(log, name)
    if len(figures) < 2:
        return None
    over = max(1, round(len(figures) * MEAN_OVER_FRAC))
    means = _running_mean([value for _, value in figures], over) if over > 1 else []
    steps = [step for step, _ in figures]
    drawn, smooth = _thinned(figures), _thinned(list(zip(steps, means, strict=False)))
    values = [value for _, value in drawn] + ([guide[0]] if guide else [])
    y_values = nice_ticks(min(values), max(values))
    low, high = y_values[0], y_values[-1]
    first, last = steps[0], steps[-1]

    def x(step: float) -> float:
        return round(LEFT + (step - first) / max(1, last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    return Curve(
        title=title,
        axis=axis,
        line=" ".join(f"{x(s)},{y(v)}" for s, v in drawn),
        mean_line=" ".join(f"{x(s)},{y(v)}" for s, v in smooth),
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


def _figures(log: Any, name: str) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for row in log if isinstance(log, list) else []:
        if isinstance(row, dict) and (value := finite(row.get(name))) is not None:
            step = finite(row.get("step"))
            found[int(step) if step is not None else len(found) + 1] = value
    return sorted(found.items())


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most so many points as are worth drawing, each the mean of its neighbours; the ends stay at their steps."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return [(float(step), value) for step, value in points]
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [tuple(math.fsum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
    return [(points[0][0], means[0][1]), *((s, v) for s, v in means[1:-1]), (points[-1][0], means[-1][1])]


def _running_mean(values: Sequence[float], over: int) -> list[float]:
    """At each place the mean of the last `over` values, or of as many as there are."""
    return [math.fsum(values[max(0, i - over + 1) : i + 1]) / min(i + 1, over) for i in range(len(values))]


def _decimals(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
