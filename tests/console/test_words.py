"""Figures and times in words, and the numbers behind a curve."""

import math

import pytest

from console import words
from console.curves import HEIGHT, MOST_POINTS, WIDTH, curve_of, nice_ticks
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
    curve = curve_of(loss_log(2.6, 0.9), "loss", "Loss", "nats", guide=(0.69, "guessing"))
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for p in (curve.line + " " + curve.mean_line).split()]
    assert len(points) == 120
    assert all(curve.left <= x <= curve.right and curve.top <= y <= curve.bottom for x, y in points)
    assert (curve.width, curve.height) == (WIDTH, HEIGHT)
    assert points[0][1] < points[59][1]  # a falling loss is drawn downwards


@pytest.mark.parametrize("log", [None, [], "x", [{"loss": 1.0, "step": 1}], [{"loss": math.nan}, {"step": 2}, 3]])
def test_no_curve_without_two_points(log: object) -> None:
    assert curve_of(log, "loss", "Loss", "nats") is None


def test_a_long_run_is_drawn_by_means_of_neighbours() -> None:
    log = [{"step": n, "loss": 1.0 if n % 2 else 3.0} for n in range(1, 6001)]
    curve = curve_of(log, "loss", "Loss", "nats")
    assert curve is not None
    points = [tuple(map(float, p.split(","))) for p in curve.line.split()]
    assert len(points) == MOST_POINTS == len(curve.mean_line.split())
    assert (points[0][0], points[-1][0]) == (curve.left, curve.right)
    assert len({y for _, y in points}) == 1  # 20 neighbours have the same mean everywhere
    assert len(curve.figures) == 6000


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.69314718, "0.6931"), (1.25e-5, "1.25e-05"), (12, "12"), (12345.678, "1.235e+04"), (math.nan, "–"), (None, "–")],
)
def test_digits_that_count(value: object, written: str) -> None:
    assert words.significant(value) == written


def test_energy_and_mass() -> None:
    assert (words.energy(0.01234), words.energy(1.5), words.energy(None)) == ("12.3\u202fWh", "1.5\u202fkWh", "–")
    assert (words.mass(0.0047), words.mass(2.345), words.mass(None)) == ("4.7\u202fg", "2.35\u202fkg", "–")
