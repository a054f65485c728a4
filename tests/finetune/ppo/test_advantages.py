"""Rewards, KL, advantages and whitening against numbers worked out by hand."""

import math

import pytest
import torch

from finetune.ppo.advantages import AdaptiveKl, explained_variance, gae, token_kl, token_rewards, whiten

TWO_AND_THREE = torch.tensor([[True, True, False], [True, True, True]])


def test_kl_of_a_token_by_hand() -> None:
    """p = 1/2 and q = 1/4: log p - log q = ln 2."""
    p, q = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert token_kl(p, q).item() == pytest.approx(math.log(2))
    assert token_kl(q, p).item() == pytest.approx(-math.log(2))


def test_as_a_reward_it_has_the_gradient_of_the_kl() -> None:
    """Sum of p ∇log p · k1 against ∇KL(p || q), over a distribution of four. With k3 this does not hold."""
    q = torch.tensor([0.4, 0.1, 0.25, 0.25]).log()
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().requires_grad_()
    logps = logits.log_softmax(-1)
    (logps.exp() * (logps - q)).sum().backward()
    assert logits.grad is not None
    expected, logits.grad = logits.grad.clone(), None
    logps = logits.log_softmax(-1)
    (logps * (logps.exp() * token_kl(logps, q)).detach()).sum().backward()
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_the_score_stands_on_the_last_token_and_never_on_padding() -> None:
    kl = torch.tensor([[0.5, 1.0, 99.0], [0.0, 2.0, 1.0]])
    rewards = token_rewards(torch.tensor([3.0, -1.0]), kl, TWO_AND_THREE, beta=0.1)
    assert rewards.tolist() == [pytest.approx([-0.05, 2.9, 0.0]), pytest.approx([0.0, -0.2, -1.1])]


def test_advantages_by_hand() -> None:
    """γ 0.9, λ 0.5. Second row backwards: δ = 1 - 3 = -2; δ = 0 + 0.9·3 - 2 = 0.7, A = 0.7 - 0.9 = -0.2;
    δ = 0 + 0.9·2 - 1 = 0.8, A = 0.8 - 0.09 = 0.71. First: δ = 1 - 2 = -1; δ = 0.9·2 - 1 = 0.8, A = 0.8 - 0.45 = 0.35."""
    rewards = torch.tensor([[0.0, 1.0, 7.0], [0.0, 0.0, 1.0]])
    values = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, TWO_AND_THREE, gamma=0.9, lam=0.5)
    assert advantages.tolist() == [pytest.approx([0.35, -1.0, 0.0]), pytest.approx([0.71, -0.2, -2.0])]
    assert returns.tolist() == [pytest.approx([1.35, 1.0, 0.0]), pytest.approx([1.71, 1.8, 1.0])]


def test_with_lambda_1_returns_are_discounted_rewards_whatever_the_values_are() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    for values in (torch.zeros(1, 3), torch.tensor([[5.0, -2.0, 1.0]])):
        _, returns = gae(rewards, values, mask, gamma=0.5, lam=1.0)
        assert returns.tolist() == [pytest.approx([3.0, 4.0, 4.0])]


def test_whitening_by_hand() -> None:
    """1, 3, 2, 2, 2 have mean 2 and variance 2/5; what stands on padding takes no part."""
    values = torch.tensor([[1.0, 3.0, 50.0], [2.0, 2.0, 2.0]])
    spread = math.sqrt(0.4)
    expected = [pytest.approx([-1 / spread, 1 / spread, 0.0]), pytest.approx([0.0, 0.0, 0.0])]
    assert whiten(values, TWO_AND_THREE).tolist() == expected
    assert whiten(torch.full((2, 3), 4.0), TWO_AND_THREE).abs().max() == 0


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns) == pytest.approx(0.0)
    assert explained_variance(torch.tensor([2.0, 2.0, 2.0]) - returns, returns) == pytest.approx(1 - 4)
    assert math.isnan(explained_variance(returns, torch.ones(3)))


def test_the_weight_of_the_kl_is_led_to_its_target() -> None:
    """Twice the target is an error of 1, held to 0.2: 10 % of it is 2 %."""
    kl = AdaptiveKl(0.5, target=6.0, gain=0.1)
    kl.update(12.0)
    assert kl.beta == pytest.approx(0.5 * 1.02)
    kl.update(6.6)
    assert kl.beta == pytest.approx(0.5 * 1.02 * 1.01)
    kl.update(-3.0)
    assert kl.beta == pytest.approx(0.5 * 1.02 * 1.01 * 0.98)
    fixed = AdaptiveKl(0.5, target=0.0, gain=0.1)
    fixed.update(100.0)
    assert fixed.beta == 0.5
