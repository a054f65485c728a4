"""The losses of reward models against numbers computed by hand, and what they are least at."""

from math import exp, log

import pytest
import torch

from reward.loss import preference_loss, rule_loss


def loss(chosen, rejected, target=(1.0,), margin=(0.0,), weight=(1.0,), centre=0.0) -> float:
    values = (torch.tensor(v, dtype=torch.float64) for v in (chosen, rejected, target, margin, weight))
    return preference_loss(*values, centre=centre).item()


def test_by_hand() -> None:
    assert loss([0.0], [0.0]) == pytest.approx(log(2))
    assert loss([1.5], [0.5]) == pytest.approx(log(1 + exp(-1)))  # −log σ(1)
    assert loss([1.5], [0.5], margin=[0.25]) == pytest.approx(log(1 + exp(-0.75)))
    assert loss([1.0], [-1.0], target=[0.5]) == pytest.approx(0.5 * log(1 + exp(-2)) + 0.5 * log(1 + exp(2)))
    assert loss([1.0], [0.0], target=[0.75], margin=[0.5]) == pytest.approx(
        0.75 * log(1 + exp(-0.5)) + 0.25 * log(1 + exp(1.5))
    )
    assert loss([1.0], [0.5], centre=0.1) == pytest.approx(log(1 + exp(-0.5)) + 0.1 * 2.25)


def test_weights_and_the_mean_by_hand() -> None:
    found = loss([1.0, 0.0], [0.0, 2.0], target=[1.0, 1.0], margin=[0.0, 0.0], weight=[1.5, 0.5], centre=0.01)
    assert found == pytest.approx((1.5 * log(1 + exp(-1)) + 0.5 * log(1 + exp(2))) / 2 + 0.01 * (1 + 4) / 2)


@pytest.mark.parametrize(("target", "best"), [(0.5, 0.0), (0.75, log(3)), (0.9, log(9))])
def test_it_is_least_where_the_gap_says_the_target(target: float, best: float) -> None:
    gaps = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    each = [loss([gap], [0.0], target=[target]) for gap in gaps.tolist()]
    assert gaps[each.index(min(each))].item() == pytest.approx(best, abs=0.006)


def test_the_gradient_of_a_hard_pair_is_that_of_bradley_terry() -> None:
    chosen = torch.tensor([0.3], requires_grad=True)
    rejected, one, none = torch.tensor([-0.4]), torch.ones(1), torch.zeros(1)
    preference_loss(chosen, rejected, one, none, one, centre=0.0).backward()
    assert chosen.grad.item() == pytest.approx(-1 / (1 + exp(0.7)))  # σ(gap) − 1


def test_large_gaps_stay_finite() -> None:
    assert loss([1e4], [-1e4]) == 0.0
    assert loss([-1e4], [1e4]) == pytest.approx(2e4)


def test_rules_by_hand() -> None:
    logit, broken, weight = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.5])
    second = 0.25 * log(1 + exp(-1)) + 0.75 * log(1 + exp(1))
    assert rule_loss(logit, broken, weight).item() == pytest.approx((log(2) + 0.5 * second) / 2)
