"""Likelihood measures with a tiny model, put together from what the prober says."""

import math

import pytest

from core.messages import user
from evals.likelihood import measure
from evals.prober import Item, Prober
from evals.suites import CapabilityItem
from tests.evals.items import ITEMS, kls_of, logps_of

CAPABILITY = [CapabilityItem(str(n), f"What is {n}?", f"right {n}", (f"wrong {n}", "Paris", "bread")) for n in range(8)]


def nll(prober: Prober, items: list[Item], *, as_base: bool) -> list[float]:
    return [-float(t.mean()) for t in logps_of(prober, items, as_base=as_base)]


def test_measures_put_candidate_and_base_side_by_side(prober: Prober) -> None:
    own, base_own, references = ITEMS[:2], [(p, "Butter.") for p, _ in ITEMS[:2]], ITEMS[2:]
    found = measure(prober, own, base_own, references, CAPABILITY)

    kl = kls_of(prober, own)
    assert found.kl["mean"] == pytest.approx(sum(kl) / 2)
    assert found.kl["n"] == 2
    mine, theirs = nll(prober, references, as_base=False), nll(prober, references, as_base=True)
    assert found.reference_nll["candidate"] == pytest.approx(sum(mine) / 2)
    assert found.reference_nll["base"] == pytest.approx(sum(theirs) / 2)
    assert found.reference_nll["difference"]["mean"] == pytest.approx(sum(mine) / 2 - sum(theirs) / 2)
    judged_by_base = nll(prober, own, as_base=True)
    assert found.fluency["candidate"] == pytest.approx(sum(judged_by_base) / 2)
    assert found.fluency["base"] == pytest.approx(sum(nll(prober, base_own, as_base=True)) / 2)
    for as_base, name in ((False, "candidate"), (True, "base")):
        right = 0
        for item in CAPABILITY:
            options = [(user(item.question), text) for text in (item.right, *item.wrong)]
            scores = [-value for value in nll(prober, options, as_base=as_base)]
            right += scores.index(max(scores)) == 0
        assert found.capability[name] == right / 8
    assert found.capability["n"] == 8


def test_the_base_with_itself_differs_in_nothing(alone: Prober) -> None:
    found = measure(alone, ITEMS, ITEMS, ITEMS, CAPABILITY)
    assert found.kl["mean"] == pytest.approx(0.0, abs=1e-7)
    assert found.reference_nll["difference"]["mean"] == 0.0
    assert found.fluency["difference"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert found.capability["candidate"] == found.capability["base"]


def test_empty_completions_are_left_out_in_pairs(prober: Prober) -> None:
    own = [ITEMS[0], (ITEMS[1][0], "  "), ITEMS[2]]
    base_own = [(ITEMS[0][0], ""), ITEMS[1], ITEMS[2]]
    found = measure(prober, own, base_own, ITEMS, CAPABILITY)
    assert (found.kl["n"], found.fluency["difference"]["n"], found.reference_nll["difference"]["n"]) == (1, 1, 4)


def test_nothing_to_measure_is_no_number(prober: Prober) -> None:
    found = measure(prober, [], [], [], [])
    assert found.kl["mean"] is found.reference_nll["difference"]["mean"] is found.fluency["base"] is None
    assert math.isnan(found.capability["candidate"])
    assert (found.kl["n"], found.capability["n"]) == (0, 0)
