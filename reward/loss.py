"""The two losses of reward models, each in one place. Inputs and outputs are tensors; nothing else is done here."""

from typing import Any


def preference_loss(chosen: Any, rejected: Any, target: Any, margin: Any, weight: Any, *, centre: float) -> Any:
    """Weighted soft Bradley-Terry cross-entropy with margins, and a term that keeps rewards near zero.

    Of a pair with rewards c and r, target t = P(chosen is better), margin m and weight w:

        w · −(t log σ(c − r − m) + (1 − t) log σ(r − c − m))  +  centre · (c + r)²

    t = 1, m = 0, w = 1 is Ouyang et al. 2022 (arXiv:2203.02155, eq. 1), the margin Touvron et al. 2023 (arXiv:2307.09288,
    eq. 2), the last term Eisenstein et al. 2023 (arXiv:2312.09244). A tie (t = 0.5, m = 0) is least where c = r.

    Args:
        chosen, rejected: (B,) rewards.
        target, margin, weight: (B,); weights should have the mean 1 over all of the training pairs.

    Returns:
        A scalar, the mean over B. It is not divided by the weights of the batch: a pair counts the same in whatever company.
    """
    from torch.nn.functional import logsigmoid

    gap = chosen - rejected
    each = -(target * logsigmoid(gap - margin) + (1 - target) * logsigmoid(-gap - margin))
    return (weight * each).mean() + centre * (chosen + rejected).square().mean()


def rule_loss(logit: Any, broken: Any, weight: Any) -> Any:
    """Weighted cross-entropy of P(broken) = σ(logit) against soft targets; (B,) each, a scalar: the mean over B."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(logit, broken, weight=weight)
