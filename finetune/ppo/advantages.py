"""From scores and log-probabilities to advantages and returns: functions of tensors, without models or settings.

Shapes: N completions of up to T tokens, padded on the right; `mask` (N, T) is true on tokens. What stands on padding is
ignored, and comes out as 0. Log-probabilities and KL are in nats.
"""

import torch
from torch import Tensor

MOST_ERROR = 0.2  # clip of the relative error of the KL; Ziegler et al.


def token_kl(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """One sample's estimate of KL(policy || reference) at each token, of any shape: k1 = log p - log q.

    Unbiased, and as a reward its policy gradient is that of the KL. The steadier k3 = q/p - 1 - log(q/p) is unbiased too,
    but as a reward it has the gradient of KL(p || q) - KL(q || p), which drives the policy away: use it for reading only.
    Source: Schulman 2020, "Approximating KL Divergence"; Tang and Munos 2025, arXiv:2506.09477.
    """
    return logps - reference_logps


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(N,) scores and (N, T) KL → (N, T) rewards: -beta·KL everywhere, and the score on the last token.

    That is the end of turn where a completion came to one, never padding. Source: Ziegler et al. 2019, arXiv:1909.08593,
    eq. 2; Stiennon et al. 2020, arXiv:2009.01325, section 3.4.
    """
    rewards = (-beta * kl).masked_fill(~mask, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (N, T) advantages, and returns (advantages + values) for the value model.

    A_t = δ_t + γλ A_(t+1), δ_t = r_t + γ V_(t+1) - V_t; after a completion's last token there is nothing more to come,
    also where it was cut. Source: Schulman et al. 2015, arXiv:1506.02438, eq. 11 and 16.
    """
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    after = values.new_zeros(len(values))  # A_(t+1)
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(after)
        delta = rewards[:, t] + gamma * following - values[:, t]
        after = torch.where(mask[:, t], delta + gamma * lam * after, 0.0)
        advantages[:, t] = after
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """(N, T) with mean 0 and standard deviation 1 over all tokens; a constant becomes 0.

    Source: Huang et al. 2024, arXiv:2403.17031, detail "advantage whitening".
    """
    chosen = values[mask]
    spread = chosen.std(unbiased=False)
    return ((values - chosen.mean()) / (spread + 1e-8)).masked_fill(~mask, 0.0)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over tokens (M,): 1 is a perfect value model, 0 one that tells nothing.

    NaN where the returns do not vary.
    """
    spread = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / spread) if spread > 0 else float("nan")


class AdaptiveKl:
    """The weight of the KL in the reward, led to a target. Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    Args:
        beta: the weight to begin with.
        target: KL to the reference in nats per completion; 0 keeps `beta` as it is.
        gain: K_beta, the share by which `beta` changes for a relative error of 1.
    """

    def __init__(self, beta: float, target: float, gain: float) -> None:
        self.beta, self.target, self.gain = beta, target, gain

    def update(self, kl: float) -> None:
        """Take the measured KL, in nats per completion."""
        if self.target > 0:
            error = min(max(kl / self.target - 1, -MOST_ERROR), MOST_ERROR)
            self.beta *= 1 + self.gain * error
