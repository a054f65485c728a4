"""Intervals and paired tests against numbers worked out by hand or known from tables."""

import math

import pytest

from core.intervals import mcnemar_p, mean_interval, rate, upper_clopper_pearson, wilson


@pytest.mark.parametrize(
    ("successes", "n", "upper"),
    [
        (15, 300, 0.076),
        (24, 300, 0.111),
        (0, 300, 1 - 0.05 ** (1 / 300)),  # (1 − p)^300 = 0.05
        (0, 1, 0.95),
        (9, 10, 0.95 ** (1 / 10)),  # 1 − p^10 = 0.05
    ],
)
def test_the_upper_clopper_pearson_bound(successes: int, n: int, upper: float) -> None:
    assert upper_clopper_pearson(successes, n) == pytest.approx(upper, abs=5e-4)


def test_no_failure_in_300_leaves_one_percent() -> None:
    assert round(upper_clopper_pearson(0, 300), 3) == 0.010


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 5), (1, 1)])
def test_the_upper_bound_is_one_where_nothing_rules_it_out(successes: int, n: int) -> None:
    assert upper_clopper_pearson(successes, n) == 1.0


def test_the_upper_bound_holds_what_it_promises() -> None:
    """At the bound, as few failures as were seen come up in just 5 % of all samples."""
    bound = upper_clopper_pearson(2, 40)
    tail = sum(math.comb(40, k) * bound**k * (1 - bound) ** (40 - k) for k in range(3))
    assert tail == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # p = 0.8, z² = 3.8415: (0.8 + 0.19207 ± 1.95996·√(0.016 + 0.0096036)) / 1.38415
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),  # z² / (n + z²)
        (10, 10, 0.72247, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-5)


def test_a_rate_carries_its_count_and_interval() -> None:
    assert rate(8, 10) == pytest.approx({"rate": 0.8, "n": 10, "low": 0.49016, "high": 0.94332}, abs=2e-5)
    assert rate(0, 0) == {"rate": None, "n": 0, "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [
        (5, 0, 1 / 32),
        (3, 1, 5 / 16),  # (4 + 1) / 2⁴
        (6, 2, 37 / 256),  # (28 + 8 + 1) / 2⁸
        (2, 2, 11 / 16),
        (0, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_counts_one_side_of_the_binomial(worse: int, better: int, p: float) -> None:
    assert mcnemar_p(worse, better) == pytest.approx(p, abs=1e-12)


def test_the_interval_of_a_mean() -> None:
    found = mean_interval([1.0, 2.0, 3.0])  # variance 1, so the half width is 1.95996 / √3
    assert found == pytest.approx({"mean": 2.0, "n": 3, "low": 0.868414, "high": 3.131586}, abs=1e-6)
    assert mean_interval([4.0]) == {"mean": 4.0, "n": 1, "low": 4.0, "high": 4.0}
    assert mean_interval([]) == {"mean": None, "n": 0, "low": None, "high": None}
