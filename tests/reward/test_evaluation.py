"""Figures of an evaluation against numbers computed by hand, and where they say that they are undefined."""

import random
from math import exp, log

import pytest

from feedback.dataset import Preference
from reward.evaluation import (
    auc,
    calibrate_pairs,
    calibration,
    evaluate_pairs,
    fit_temperature,
    histogram,
    length_bucket,
    length_only_accuracy,
)


def sized(chosen: int, rejected: int, **more: str) -> Preference:
    return Preference([], "x" * chosen, "y" * rejected, **more)


def test_length_only_accuracy_by_hand() -> None:
    longer, shorter, tie = sized(3, 1), sized(1, 3), sized(2, 2)
    assert length_only_accuracy([longer], [longer, longer, shorter, tie]) == 2.5 / 4
    assert length_only_accuracy([shorter], [longer, longer, shorter, tie]) == 1.5 / 4
    assert length_only_accuracy([longer, shorter], [shorter]) == 0.0  # undecided: the longer side
    assert length_only_accuracy([longer, tie, tie], [longer]) == 1.0
    assert length_only_accuracy([shorter, shorter, longer], [tie, tie]) == 0.5


@pytest.mark.parametrize(
    ("chosen", "rejected", "bucket"),
    [
        (10, 10, "-10…10"),
        (20, 10, "-10…10"),
        (21, 10, "11…50"),
        (0, 11, "-50…-11"),
        (0, 300, "…-201"),
        (300, 0, "201…"),
    ],
)
def test_length_buckets(chosen: int, rejected: int, bucket: str) -> None:
    assert length_bucket(sized(chosen, rejected)) == bucket


def test_calibration_by_hand() -> None:
    found = calibration([0.56, 0.58, 0.96, 1.0], [1, 0, 1, 1], low=0.5)
    assert [(round(b["low"], 2), b["n"], round(b["said"], 3), b["was"]) for b in found["bins"]] == [
        (0.55, 2, 0.57, 0.5), (0.95, 2, 0.98, 1.0),
    ]  # fmt: skip
    assert found["ece"] == pytest.approx((2 * 0.07 + 2 * 0.02) / 4)
    assert found["brier"] == pytest.approx((0.44**2 + 0.58**2 + 0.04**2 + 0) / 4)
    assert calibration([], []) == {"ece": None, "brier": None, "bins": []}


def test_the_temperature_is_where_confidence_is_right() -> None:
    """Gaps of 3 that are right three times of four: σ(3 / T) = 0.75 at T = 3 / log 3."""
    assert fit_temperature([3.0, 3.0, 3.0, -3.0] * 10) == pytest.approx(3 / log(3), rel=1e-3)
    assert fit_temperature([1.0] * 10) == pytest.approx(0.05, rel=0.01)  # nothing is wrong: as sure as allowed
    assert fit_temperature([2.0, -2.0], [0.75, 0.25]) == pytest.approx(2 / log(3), rel=1e-3)
    assert fit_temperature([1.0, -1.0]) == pytest.approx(20, rel=0.01)  # a coin: as unsure as allowed


def over_confident(n: int) -> tuple[list[float], list[str]]:
    """Gaps drawn so that σ(gap / 4) is the chance of being right, in clusters of two."""
    rng = random.Random(0)
    gaps = []
    for _ in range(n):
        size = rng.uniform(0, 12)
        gaps.append(size if rng.random() < 1 / (1 + exp(-size / 4)) else -size)
    return gaps, [f"{rng.getrandbits(64):016x}" for _ in range(n // 2) for _ in range(2)]


def test_scaling_brings_the_error_down() -> None:
    gaps, clusters = over_confident(2000)
    found = calibrate_pairs(gaps, clusters)
    assert found["temperature"] == pytest.approx(4, rel=0.15)
    assert found["ece"] > 0.1
    assert found["ece_scaled"] < 0.04
    assert found["brier_scaled"] < found["brier"]
    assert sum(b["n"] for b in found["bins_scaled"]) == 2000


def test_a_cluster_is_fitted_on_or_reported() -> None:
    """All of one half are wrong: what is reported of them rests on the temperature of the other half alone."""
    right, wrong = ["0" * 15 + "0"] * 20, ["0" * 15 + "1"] * 20
    found = calibrate_pairs([2.0] * 20 + [-2.0] * 20, [*right, *wrong])
    (surest, unsure) = sorted(found["bins_scaled"], key=lambda b: -b["said"])
    assert (surest["was"], unsure["was"]) == (0.0, 1.0)  # fitted on those that are right: sure of those that are wrong


def test_too_few_pairs_leave_scaling_undefined() -> None:
    found = calibrate_pairs([1.0] * 12, ["0" * 16] * 9 + ["1" * 16] * 3)
    assert found["undefined"] == "only 3 pairs are in the smaller half of the held-out clusters; 10 are needed"
    assert "ece_scaled" not in found
    assert found["n"] == 12
    assert "temperature" not in calibrate_pairs([], [])


def test_auc_by_hand() -> None:
    found = auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    assert (found["value"], found["n"], found["positives"]) == (0.75, 4, 2)
    assert found["low"] < 0.75 < found["high"] <= 1.0
    assert auc([0.5, 0.5], [True, False])["value"] == 0.5
    perfect = auc([0.9, 0.1], [True, False])
    assert (perfect["value"], perfect["high"]) == (1.0, 1.0)
    assert perfect["low"] < 0.1  # two verdicts show next to nothing
    assert auc([0.9] * 30 + [0.1] * 30, [True] * 30 + [False] * 30)["low"] > 0.95
    assert auc([0.1, 0.2], [True, True]) == {"n": 2, "positives": 2, "undefined": "all 2 verdicts are on one side"}
    assert auc([], []) == {"n": 0, "positives": 0, "undefined": "there are no verdicts"}


def test_the_interval_of_auc_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(200):
        positive = [i % 3 == 0 for i in range(90)]
        found = auc([rng.gauss(1.0 if p else 0.0, 1) for p in positive], positive)
        held += found["low"] <= 0.7602 <= found["high"]  # Φ(1 / √2)
    assert held >= 180


def test_histogram_by_hand() -> None:
    found = histogram({"chosen": [0.0, 1.0, 1.0], "rejected": [-1.0]})
    assert (found["edges"][0], found["edges"][-1], len(found["edges"])) == (-1.0, 1.0, 21)
    assert sum(found["counts"]["chosen"]) == 3
    assert found["counts"]["rejected"][0] == 1
    assert found["mean"] == 0.25
    assert histogram({"chosen": [2.0, 2.0]})["counts"]["chosen"][0] == 2
    assert histogram({"chosen": []})["edges"] == []


def test_an_evaluation_by_hand() -> None:
    pairs = [sized(9, 9, category="a"), sized(90, 9, category="a"), sized(9, 90), sized(9, 9)]
    found = evaluate_pairs(pairs, [1.0, 0.0, 2.0, 0.5], [0.0, 1.0, 0.0, 0.5], length_only=0.5)
    assert (found["accuracy"], found["n"]) == (0.5, 4)  # equal scores are not right
    assert [(row["name"], row["rate"], row["n"]) for row in found["by_category"]] == [("", 0.5, 2), ("a", 0.5, 2)]
    assert [(row["name"], row["rate"]) for row in found["by_length"]] == [
        ("-200…-51", 1.0),
        ("-10…10", 0.5),
        ("51…200", 0.0),
    ]
    assert not found["clears_bar"]
    assert evaluate_pairs(pairs * 20, [1.0] * 80, [0.0] * 80, length_only=0.5)["clears_bar"]
    assert not evaluate_pairs(pairs * 20, [1.0] * 80, [0.0] * 80, length_only=1.0)["clears_bar"]
