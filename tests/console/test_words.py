"""Figures and times in words, and the numbers behind a curve."""

import math

import pytest

from console import words
from console.curves import HEIGHT, WIDTH, loss_curve, nice_ticks
from tests.console.rows import loss_log


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("30 3 * * *", "A cycle starts every day at 03:30 UTC."),
        ("0 4 * * sun", "A cycle starts every Sunday at 04:00 UTC."),
        ("15 * * * *", "A cycle starts every hour at minute 15."),
        ("*/20 * * * *", "A cycle starts every 20 minutes."),
        ("0 3 * * 1", "A cycle starts by the cron expression “0 3 * * 1” (UTC)."),
        ("odd", "A cycle starts by the cron expression “odd” (UTC)."),
    ],
)
def test_cron_in_words(expression: str, said: str) -> None:
    assert words.cron(expression) == said


def test_figures() -> None:
    assert [words.duration(s) for s in (0.34, 48, 192, 3840, None)] == [
        "0.3\u202fs", "48\u202fs", "3\u202fmin 12\u202fs", "1\u202fh 4\u202fmin", "–",
    ]  # fmt: skip
    assert [words.percent(x) for x in (0.125, 1, None, math.nan, "x", True)] == [
        "12.5\u202f%",
        "100.0\u202f%",
        *["–"] * 4,
    ]
    assert words.percent(0.01, signed=True) == "+1.0\u202f%"
    assert [words.number(x) for x in (1234567, 0.5, math.inf)] == ["1\u202f234\u202f567", "0.500", "–"]


@pytest.mark.parametrize(("low", "high"), [(0.28, 0.71), (0.0, 0.0), (5.0, 5.0), (-1.2, 3000.0), (1e-9, 2e-9)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


def test_a_curve_stays_in_its_box() -> None:
    curve = loss_curve(loss_log(2.6, 0.9), "Loss", guide=(0.69, "guessing"))
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for p in (curve.line + " " + curve.mean_line).split()]
    assert len(points) == 120
    assert all(curve.left <= x <= curve.right and curve.top <= y <= curve.bottom for x, y in points)
    assert (curve.width, curve.height) == (WIDTH, HEIGHT)
    assert points[0][1] < points[59][1]  # a falling loss is drawn downwards


@pytest.mark.parametrize("log", [None, [], "x", [{"loss": 1.0, "step": 1}], [{"loss": math.nan}, {"step": 2}, 3]])
def test_no_curve_without_two_points(log: object) -> None:
    assert loss_curve(log, "Loss") is None
