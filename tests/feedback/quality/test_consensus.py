"""Consensus and reliability: what the models find in answers that were made from known truths and known people."""

import random

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, check_grad
from sqlalchemy.orm import Session

from core.db import utcnow
from feedback.quality.acts import Act, Window
from feedback.quality.consensus import _model, dawid_skene, noisy_bt, pair_consensus, rule_consensus
from tests.factories import make_person
from tests.feedback.quality.rows import checks, make_rule, pairs


def test_dawid_skene_finds_the_truth_and_who_errs() -> None:
    rng = random.Random(3)
    truth = {task: rng.choice(["broken", "kept", "kept"]) for task in range(300)}
    right = {1: 0.95, 2: 0.9, 3: 0.6}
    other = {"broken": "kept", "kept": "broken"}
    acts = [
        Act(task, who, utcnow(), verdict=truth[task] if rng.random() < p else other[truth[task]], rule="r")
        for task in truth
        for who, p in right.items()
    ]
    found = dawid_skene(acts)
    for who, p in right.items():
        assert found.reliability[who].value == pytest.approx(p, abs=0.07)
        assert found.reliability[who].n == 300
    assert sum(s.says == truth[s.task_id] for s in found.settled) > 0.93 * len(truth)
    assert found.settled[0].probability <= found.settled[-1].probability
    assert (found.settled[0].n, found.settled[0].rule) == (3, "r")


def bt_acts(habit: float) -> tuple[list[Act], dict[tuple[int, int], str], dict[int, str]]:
    """Three people on 200 pairs: two go by the texts (95 % and 90 %), one by habit: the left side so often."""
    rng = random.Random(7)
    acts, completions, better = [], {}, {}
    for task in range(200):
        completions |= {(task, 0): f"a{task}", (task, 1): f"b{task}"}
        better[task] = rng.choice("ab")
        for who, p in ((1, 0.95), (2, 0.9), (3, None)):
            left = rng.randrange(2)
            if p is None:
                choice = "ab"[left if rng.random() < habit else 1 - left]
            else:
                choice = better[task] if rng.random() < p else "ab"["ba".index(better[task])]
            acts.append(Act(task, who, utcnow(), choice=choice, strength=1, left=left))
    return acts, completions, better


def test_noisy_bt_tells_who_goes_by_the_texts() -> None:
    acts, completions, better = bt_acts(habit=0.9)
    found = noisy_bt(acts, completions)
    assert found.reliability[1].value > 0.8
    assert found.reliability[2].value > 0.7
    assert found.reliability[3].value < 0.3
    assert sum(s.says == better[s.task_id] for s in found.settled) > 0.9 * len(better)


def instance() -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    rng = np.random.default_rng(0)
    labels, workers = 6, 3
    pairs_ = np.array([(i, j) for i in range(1, 7) for j in range(1, 7) if i != j])
    chosen = np.where(rng.random(len(pairs_)) < 0.5, pairs_[:, 0], pairs_[:, 1])
    x = rng.normal(size=1 + labels + 2 * workers)
    return x, np.column_stack([pairs_, chosen]), rng.integers(0, workers, len(pairs_)), labels, workers


def test_the_gradient_is_that_of_the_objective() -> None:
    x, data, workers, n_labels, n_workers = instance()
    model = _model()
    rest = (data, workers, n_labels, n_workers, 0.1)
    assert check_grad(model._compute_log_likelihood, model._compute_gradient, x, *rest) < 1e-5


def test_the_package_needs_it() -> None:
    """When this fails, crowd-kit has mended its gradient, and `_model` may go."""
    from crowdkit.aggregation.pairwise.noisy_bt import NoisyBradleyTerry

    x, data, workers, n_labels, n_workers = instance()
    rest = (data, workers, n_labels, n_workers, 1e-5)
    true = approx_fprime(x, lambda z: NoisyBradleyTerry._compute_log_likelihood(z, *rest), 1e-7)
    theirs = NoisyBradleyTerry._compute_gradient(x, *rest)
    assert np.abs(theirs - true)[: n_labels - 1] == pytest.approx(0, abs=1e-4)
    assert np.abs(theirs - true)[n_labels:].max() > 0.1

    acts, completions, _ = bt_acts(habit=0.9)
    rows = [
        (a.annotator_id, completions[a.task_id, a.left], completions[a.task_id, 1 - a.left], f"{a.choice}{a.task_id}")
        for a in acts
    ]
    frame = pd.DataFrame(rows, columns=["worker", "left", "right", "label"])
    skills = NoisyBradleyTerry(n_iter=500).fit(frame).skills_
    ours = noisy_bt(acts, completions).reliability
    assert skills[1] - skills[3] < 0.3 < ours[1].value - ours[3].value


def test_few_judgments_leave_it_undefined(session: Session) -> None:
    ana, ben, cleo = (make_person(session) for _ in range(3))
    version = make_rule(session)
    checks(session, version.id, [{ana: "broken", ben: "kept"}] * 12 + [{ana: "unsure", ben: "kept"}] * 20)
    pairs(session, [{ana: "a", ben: "a"}] * 25)
    assert str(rule_consensus(session, Window()).undefined).startswith("only 12 tasks have two such judgments")
    assert str(pair_consensus(session, Window()).undefined).startswith("everybody said the same")

    checks(session, version.id, [{ana: "broken", ben: "broken"}, {ben: "kept", cleo: "kept"}] * 5)
    found = rule_consensus(session, Window())
    assert found.undefined is None
    assert found.reliability[ana.id].value is not None
    assert str(found.reliability[cleo.id].undefined).startswith("only 5 of their judgments")


def test_pairs_are_told_by_what_was_shown_left(session: Session) -> None:
    ana, ben, cleo = (make_person(session) for _ in range(3))
    rng = random.Random(1)
    for _ in range(60):
        better = rng.choice("ab")
        left = rng.randrange(2)
        [task] = pairs(session, [{ana: better, ben: better, cleo: "ab"[left]}], order=[left, 1 - left])
        assert task.done == 3
    found = pair_consensus(session, Window())
    assert found.undefined is None
    assert found.reliability[cleo.id].value < 0.4 < found.reliability[ana.id].value
