"""What the page of a cycle says of an update that learns from rewards."""

import math
from typing import Any

import pytest
from flask import Flask

from console.stage_facts import energy_fact, stage_facts, tracker_facts
from console.steps import curves_of, log_of

RESULT: dict[str, Any] = {
    "method": "ppo", "n_prompts": 3, "dropped_long": 0, "steps": 2, "samples": 1280, "stopped": "", "sampler_counts": {},
    "policy_version": "v4", "log": [{"step": 1, "reward": -0.5, "kl": 0.0}, {"step": 2, "reward": 1.25, "kl": 4.5}],
}  # fmt: skip
LATE = "the KL to the reference, 31.20 nats, is over its limit 30"


def test_facts_of_a_run_as_planned() -> None:
    assert stage_facts("update", RESULT) == [
        "PPO: learnt from 1\u202f280 completions of its own on 3 prompts, in 2 steps.",
        "Mean reward -0.500 at the first step, 1.250 at the last, with a KL to the reference of 4.50 nats per completion.",
        "Made the candidate v4.",
    ]


def test_what_went_otherwise_is_told() -> None:
    told = stage_facts(
        "update", RESULT | {"dropped_long": 1, "stopped": LATE, "sampler_counts": {"encoded_again": 7}, "log": []}
    )
    assert "1 prompt dropped as too long." in told
    assert f"Ended early: {LATE}." in told
    assert "The engine told no tokens of 7 completions; their texts were encoded again." in told


def test_an_end_before_its_time_is_told_in_german(app: Flask) -> None:
    with app.test_request_context(headers={"Accept-Language": "de"}):
        told = " ".join(stage_facts("update", RESULT | {"stopped": LATE}))
    assert "Vorzeitig beendet: die KL zur Referenz, 31.20 Nats, liegt über ihrer Grenze 30." in told
    assert "in 2 Schritten" in told


@pytest.mark.parametrize("log", [None, [], ["x"], [{"step": 1}], [{"step": 1, "reward": math.nan, "kl": None}]])
def test_a_log_that_lacks_something_breaks_nothing(log: Any) -> None:
    assert stage_facts("update", {"method": "ppo", "log": log})
    assert curves_of("update", "", log_of("update", {"method": "ppo", "log": log})[""]) == []


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_what_is_drawn_is_the_reward(method: str) -> None:
    assert stage_facts("update", RESULT | {"method": method})[0].startswith(f"{method.upper()}: learnt from")
    reward, kl = curves_of("update", "", log_of("update", RESULT | {"method": method})[""])
    assert (reward.figures, reward.axis) == ([(1, -0.5), (2, 1.25)], "reward")
    assert (kl.figures, kl.axis) == ([(1, 0.0), (2, 4.5)], "nats per completion")


ENERGY: dict[str, Any] = {
    "kwh": 0.0123, "co2_kg": 0.0047, "seconds": 405.0, "watts": 109.3, "country": "DEU", "gpu": "none",
    "cpu": "load times nominal power, 16 W", "ram": "by its size", "estimated_by": "codecarbon 3.3.2",
}  # fmt: skip


def test_energy_is_told_as_estimated_and_with_how_it_is_known(app: Flask) -> None:
    assert energy_fact([ENERGY, ENERGY | {"kwh": 1.0, "co2_kg": 0.5, "country": ""}]) == (
        "Estimated for the whole machine: 1.01\u202fkWh of energy, 505\u202fg of CO2 (the world's average)."
        " Processor: load times nominal power, 16 W; GPU: none; memory: by its size."
    )
    assert energy_fact([]) == ""
    with app.test_request_context(headers={"Accept-Language": "de"}):
        told = energy_fact([ENERGY])
    assert told.startswith("Geschätzt für die ganze Maschine: 12,3\u202fWh Energie, 4,7\u202fg CO2 (Strom aus DEU).")
    assert "Prozessor: Auslastung mal Nennleistung, 16 W" in told


def test_what_became_of_trackers() -> None:
    assert tracker_facts([{"name": "mlflow", "steps": 78, "told": 78, "problem": ""}]) == [
        "mlflow was told all 78 steps."
    ]
    assert tracker_facts([{"name": "aim", "steps": 0, "told": 9, "problem": "it is not installed"}]) == [
        "aim took 0 of 9 steps: it is not installed."
    ]


def test_what_an_update_by_pairs_left_out_and_how_pairs_weigh() -> None:
    found = {
        "method": "dpo", "n_pairs": 40, "dropped_long": 2, "ties": 3, "dropped_equal": 1, "steps": 5, "loss": 1.5,
        "trainable_parameters": 100, "weights": {"mean": 0.8, "least": 0.5, "most": 1.0},
        "label_smoothing": {"value": 0.0, "why": "only the loss robust allows for flipped judgments"},
    }  # fmt: skip
    assert stage_facts("update", found) == [
        "Trained on 40 pairs, 2 dropped as too long; 5 steps.",
        "3 ties left out: they prefer no side.",
        "1 pair left out whose sides are equal as far as they are learnt.",
        "Mean loss over the run 1.500 nats; 100 trained parameters.",
        "Pairs weigh 0.50 to 1.00, 0.80 on average.",
        "Label smoothing 0.000: only the loss robust allows for flipped judgments.",
    ]
    alike = stage_facts("update", found | {"weights": {"mean": 1.0, "least": 1.0, "most": 1.0}})
    assert not any(told.startswith("Pairs weigh") for told in alike)


SNAPSHOT: dict[str, Any] = {"n_train": 310, "n_heldout": 84, "n_simulated": 0, "counts": {"from_choice": 394}}


def test_what_a_snapshot_merged_and_held_back() -> None:
    held = {"n": 9, "most": 0.62, "limit": 0.25, "held_back": 1, "left": 0.25}
    shares = {"annotators": held, "prompts": {"n": 0}, "categories": held | {"held_back": 2, "limit": 0.5}}
    told = stage_facts(
        "snapshot",
        SNAPSHOT | {"counts": {"from_choice": 394, "merged_equal": 3, "merged_near": 12}, "shares": shares},
    )
    assert "Became part of pairs that ask and compare the same: 3 equal pairs, 12 near-duplicates." in told
    percents = "the largest share went from 62.0\u202f% to 25.0\u202f%."
    assert f"1 annotator had more than 25.0\u202f% of the weight; {percents}" in told
    assert f"2 categories had more than 50.0\u202f% of the weight; {percents}" in told
    assert not any("prompt" in fact for fact in told)
    assert len(stage_facts("snapshot", SNAPSHOT)) == len(told) - 3  # an older cycle says nothing of it


def test_shares_are_told_in_german(app: Flask) -> None:
    held = {"n": 9, "most": 0.62, "limit": 0.25, "held_back": 1, "left": 0.25}
    with app.test_request_context(headers={"Accept-Language": "de"}):
        told = " ".join(stage_facts("snapshot", SNAPSHOT | {"shares": {"annotators": held}}))
    assert "1 Annotator hatte mehr als 25,0\u202f% des Gewichts" in told
