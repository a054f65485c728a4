"""The clipped losses, the correction for the sampler and the KL of a step against numbers worked out by hand."""

import math

import pytest
import torch

from finetune.ppo.loss import importance_weights, policy_loss, step_kl, value_loss


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values).log()


def test_the_clipped_surrogate_by_hand() -> None:
    """Ratios 1, 1.5, 0.5 with ε 0.2: gains are held at 1.2 and losses at 0.8, and the worse side is never held."""
    old = logs(0.4, 0.4, 0.4, 0.4, 0.4)
    new = logs(0.4, 0.6, 0.6, 0.2, 0.2)
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    losses, held = policy_loss(new, old, advantages, clip=0.2)
    assert losses.tolist() == pytest.approx([-2.0, -2.4, 3.0, -1.0, 1.6])
    assert held.tolist() == [False, True, False, False, True]
    weighted, _ = policy_loss(new, old, advantages, 0.2, torch.tensor([1.0, 2.0, 1.0, 0.5, 0.0]))
    assert weighted.tolist() == pytest.approx([-2.0, -4.8, 3.0, -0.5, 0.0])


def test_a_held_token_teaches_nothing_and_the_first_gradient_is_the_policy_gradient() -> None:
    old = logs(0.4, 0.4)
    new = logs(0.4, 0.6).requires_grad_()
    losses, _ = policy_loss(new, old, torch.tensor([2.0, 2.0]), clip=0.2)
    losses.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [-2.0, 0.0]


def test_the_clipped_value_loss_by_hand() -> None:
    """Old 1, clip 0.5. 1.2 → free; 3 held at 1.5, and the worse of (3-2)² and (1.5-2)² counts; towards the return it is
    the held one: 2 held at 1.5."""
    values, returns = torch.tensor([1.2, 3.0, 2.0]), torch.tensor([2.0, 2.0, 2.0])
    losses, held = value_loss(values, torch.ones(3), returns, clip=0.5)
    assert losses.tolist() == pytest.approx([0.5 * 0.64, 0.5 * 1.0, 0.5 * 0.25])
    assert held.tolist() == [False, False, True]


def test_importance_weights_are_ratios_up_to_a_cap_and_1_where_the_sampler_is_silent() -> None:
    sampler = logs(0.2, 0.2, 0.1, 0.1)
    sampler[3] = math.nan
    weights = importance_weights(logs(0.2, 0.1, 0.8, 0.4), sampler, cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 0.5, 2.0, 1.0])


def test_step_kl_by_hand() -> None:
    """r = 2: 2 - 1 - ln 2; r = 1: 0."""
    assert step_kl(logs(0.4, 0.5), logs(0.2, 0.5)).item() == pytest.approx(1 - math.log(2))
