"""The losses of PPO, per token. M tokens of any completions side by side; log-probabilities in nats.

The trainer sums them and divides by the tokens of a whole minibatch, so that how it is cut changes nothing.
"""

import torch
from torch import Tensor


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, (M,) each: -w min(r A, clip(r, 1 ± ε) A) with r = p / p_old; and where the clip holds it.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; the weights w: `importance_weights`.
    """
    ratio = (logps - old_logps).exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    losses = -torch.minimum(free, held)
    return losses if weights is None else weights * losses, held < free


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, (M,), the worse of the value and of the value held within ± `clip` of the old one.

    Also where the clip holds it. Source: Schulman et al. 2017 (their code); Huang et al. 2024, arXiv:2403.17031.
    """
    held = old_values + (values - old_values).clamp(-clip, clip)
    free_error, held_error = (values - returns).square(), (held - returns).square()
    return 0.5 * torch.maximum(free_error, held_error), held_error > free_error


def importance_weights(logps: Tensor, sampler_logps: Tensor, cap: float) -> Tensor:
    """(M,) min(p / p_sampler, cap): truncated importance sampling for a sampler whose numerics are not the trainer's.

    Both are the same weights; engine and trainer compute them in other kernels or precisions, which makes rollouts a
    little off-policy. 1 where the sampler did not tell (NaN). Source: Ionides 2008, "Truncated importance sampling";
    for language models Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    return (logps - sampler_logps).nan_to_num(0.0).exp().clamp(max=cap)


def step_kl(logps: Tensor, old_logps: Tensor) -> Tensor:
    """Sum over tokens of the k3 estimate of KL(old || new) from samples of the old policy."""
    ratio = logps - old_logps
    return (ratio.exp() - 1 - ratio).sum()
