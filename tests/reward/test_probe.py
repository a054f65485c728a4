"""The linear probe that members begin with: what it finds, what its ridge does, and that it is where a member begins."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from core.settings import RewardSettings
from reward import probe
from reward.members import Members
from reward.preference import RewardScorer, encode_pair, train_reward
from tests.reward.test_preference import SMALL, toy
from tests.tiny import make_tiny_base

WIDTH = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def made(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Pairs whose first feature decides, on a scale of its own, by a Bradley-Terry draw."""
    random = np.random.default_rng(seed)
    chosen, rejected = random.normal(size=(2, n, WIDTH)) * np.array([3.0, 1, 1, 1, 1, 0.01]) + 3
    better = random.random(n) < 1 / (1 + np.exp(-(chosen - rejected)[:, 0]))
    sides = np.where(better[:, None], chosen, rejected), np.where(better[:, None], rejected, chosen)
    return *sides, np.ones(n), [f"cluster {i % 40}" for i in range(n)]


def test_pairs_are_told_apart_by_the_feature_that_decides() -> None:
    chosen, rejected, ones, clusters = made(400)
    found = probe.fit_pairs(chosen, rejected, ones, ones, clusters)
    share = np.abs(found.weight * np.array([3.0, 1, 1, 1, 1, 0.01]))
    assert share[0] > 5 * share[1:].max()
    fresh_chosen, fresh_rejected, *_ = made(400, seed=1)
    assert ((fresh_chosen - fresh_rejected) @ found.weight > 0).mean() > 0.75
    both = np.concatenate([chosen, rejected])
    assert (both @ found.weight + found.bias).mean() == pytest.approx(0, abs=1e-9)


def test_the_fit_is_the_least_of_its_stated_loss() -> None:
    """Against a minimiser of another library, with weights and soft targets."""
    chosen, rejected, _, clusters = made(60)
    random = np.random.default_rng(5)
    target, weight, strength = random.choice([0.5, 0.8, 0.99], 60), random.random(60) + 0.5, 0.03
    scale = math.sqrt(np.concatenate([chosen, rejected]).var(0).mean())
    x = (chosen - rejected) / scale

    def loss(w: np.ndarray) -> float:
        logit = x @ w
        each = target * np.logaddexp(0, -logit) + (1 - target) * np.logaddexp(0, logit)
        return float(strength * (weight * each).sum() + 0.5 * w @ w)

    expected = minimize(loss, np.zeros(WIDTH), method="BFGS").x
    found = probe.fit_pairs(chosen, rejected, target, weight, clusters, strength=strength)
    assert found.weight * scale == pytest.approx(expected, abs=1e-3)


def test_a_pair_turned_round_with_its_target_says_the_same() -> None:
    chosen, rejected, ones, clusters = made(80)
    turned = np.arange(80) % 2 == 0
    a, b = np.where(turned[:, None], rejected, chosen), np.where(turned[:, None], chosen, rejected)
    one = probe.fit_pairs(chosen, rejected, ones, ones, clusters, strength=0.01)
    other = probe.fit_pairs(a, b, np.where(turned, 0.0, 1.0), ones, clusters, strength=0.01)
    assert other.weight == pytest.approx(one.weight, abs=1e-4)


def test_noise_is_held_by_a_stronger_ridge_than_a_clear_signal() -> None:
    chosen, rejected, ones, clusters = made(200)
    random = np.random.default_rng(3)
    noise = random.normal(size=(2, 200, WIDTH))
    clear = probe.fit_pairs(chosen, rejected, ones, ones, clusters)
    nothing = probe.fit_pairs(noise[0], noise[1], ones, ones, clusters)
    assert nothing.strength < clear.strength
    assert np.linalg.norm(nothing.weight) < 0.1


def test_few_clusters_leave_the_ridge_at_its_default() -> None:
    chosen, rejected, ones, _ = made(30)
    assert probe.fit_pairs(chosen, rejected, ones, ones, ["one"] * 30).strength == probe.WITHOUT_FOLDS


def test_labels_have_a_bias_for_how_often_they_hold() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, WIDTH)) * 4 + 50
    target = np.full(300, 0.1)
    found = probe.fit_labels(features, target, np.ones(300), [f"{i % 30}" for i in range(300)])
    said = 1 / (1 + np.exp(-(features @ found.weight + found.bias)))
    assert said == pytest.approx(target, abs=0.01)


def test_verdicts_that_are_all_alike_but_for_one_fold_can_be_fitted() -> None:
    random = np.random.default_rng(2)
    features, target = random.normal(size=(40, WIDTH)), np.zeros(40)
    target[:2] = 1.0
    found = probe.fit_labels(features, target, np.ones(40), ["first"] * 2 + [f"c{i}" for i in range(38)])
    assert np.isfinite(found.weight).all()
    assert found.bias < 0


def test_a_feature_that_never_changes_weighs_nothing() -> None:
    chosen, rejected, ones, clusters = made(50)
    chosen[:, 2] = rejected[:, 2] = 7.0
    assert probe.fit_pairs(chosen, rejected, ones, ones, clusters).weight[2] == 0


def test_features_are_the_last_state_and_the_mean_of_all(base: Path) -> None:
    members = Members.fresh(base, 2, RewardSettings(lora_rank=2, lora_top_layers=1), "cpu")
    rows = [[5, 6, 7, 8], [5, 6, 9], [11, 12, 13, 14, 15, 16]]
    found = members.features(rows)
    for k, row in enumerate(rows):
        with torch.no_grad():
            states = members.trunk.plain_forward(torch.tensor([row]), use_cache=False).last_hidden_state[0]  # type: ignore[union-attr]
        expected = torch.cat([states[-1], states.mean(0)])
        assert torch.allclose(found[k], expected, atol=1e-5)


def test_members_begin_as_the_probe(base: Path, tmp_path: Path) -> None:
    """With no step to speak of, scores are the probe's; a head that began at random would tell no toy preference."""
    settings = SMALL.model_copy(update={"epochs": 0.01, "learning_rate": 1e-12})
    (tmp_path / "out").mkdir()
    facts = train_reward(toy(0, 40), toy(100, 30), base, tmp_path / "work", tmp_path / "out", settings, device="cpu")
    assert facts["accuracy"] >= 0.9
    scorer = RewardScorer.load(tmp_path / "out", base, "cpu")
    pairs = [encode_pair(scorer.tokenizer, pair) for pair in toy(0, 40)]
    chosen, rejected = (scorer.members.features([p[s] for p in pairs]).numpy() for s in ("chosen_ids", "rejected_ids"))
    ones = np.ones(len(pairs))
    expected = probe.fit_pairs(chosen, rejected, ones, ones, [""] * len(pairs))
    found = scorer.members.head("member-0").weight[0].detach().numpy()
    assert found == pytest.approx(expected.weight, abs=1e-4)


@pytest.mark.parametrize("seed", [*range(20)])
def test_states_in_single_precision_that_hardly_differ_are_fitted_without_a_warning(seed: int) -> None:
    """A minimiser in single precision gives up on such states: five of sixty such draws warned before."""
    random = np.random.default_rng(seed)
    sides = (random.normal(size=128) + 1e-2 * random.normal(size=(2, 40, 128))).astype(np.float32)
    target = np.where(random.random(40) < 0.5, 0.5, random.random(40))
    found = probe.fit_pairs(*sides, target, random.random(40), [str(i // 2) for i in range(40)])
    assert np.isfinite(found.weight).all()
