"""Where a member begins: a linear probe of the frozen base, fitted before any adapter learns.

What the base knows of a text can be read from its states by a linear model, and a few hundred judgments are enough to fit
one, where a head that begins at random spends them on finding a direction at all, and bends the features on its way
(Kumar et al. 2022, arXiv:2202.10054: first probe, then fine-tune). The probe is a logistic regression on the pooled states, its
ridge as strong as cross-validation over prompt clusters finds best. In: arrays. Out: weights and a bias for a member's head.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STRENGTHS: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-10, -2))
"""Inverse strengths of the ridge, on features whose mean variance is 1, weakest last: 1e-5 to 10^-1.5."""
FOLDS = 5
WITHOUT_FOLDS = 1e-3
"""The strength where there are fewer clusters than folds."""
MOST_STEPS = 300
"""In double precision: in single, the line search cannot see how little a strong ridge lets the loss fall."""
SURELY_NOT = 1e-3
"""Targets are held this far from 0 and 1: no judgment is surer, and a fold of the same answers can be fitted."""


@dataclass(frozen=True)
class Probe:
    """weight: (F,) and bias, for raw features; strength: what cross-validation chose."""

    weight: Any
    bias: float
    strength: float


def fit_pairs(
    chosen: Any, rejected: Any, target: Any, weight: Any, clusters: Sequence[str], *, strength: float | None = None
) -> Probe:
    """A probe whose difference is the Bradley-Terry logit; its bias brings the mean reward of all texts to 0.

    Args:
        chosen, rejected: (N, F) features of the two sides.
        target: (N,) P(chosen is better); a half for a tie.
        weight: (N,) what each pair counts.
        clusters: of each pair; a cluster is in one fold as a whole.
        strength: of the ridge; None: by cross-validation.
    """
    import numpy as np

    chosen, rejected = chosen.astype(float), rejected.astype(float)
    both = np.concatenate([chosen, rejected])
    scale = _scale(both)
    difference = (chosen - rejected) / scale
    strength = strength or _best(difference, target, weight, clusters, intercept=False)
    found, _ = _fit(difference, target, weight, strength, intercept=False)
    raw = found / scale
    return Probe(raw, -float(both.mean(0) @ raw), strength)


def fit_labels(
    features: Any, target: Any, weight: Any, clusters: Sequence[str], *, strength: float | None = None
) -> Probe:
    """A probe whose value is the logit of `target`, (N,) probabilities; else as `fit_pairs`."""
    features = features.astype(float)
    mean, scale = features.mean(0), _scale(features)
    scaled = (features - mean) / scale
    strength = strength or _best(scaled, target, weight, clusters, intercept=True)
    found, bias = _fit(scaled, target, weight, strength, intercept=True)
    raw = found / scale
    return Probe(raw, bias - float(mean @ raw), strength)


def _scale(features: Any) -> float:
    """One number for all features: each by its own would make much of those that hardly change."""
    return float(features.var(0).mean()) ** 0.5 or 1.0


def _best(x: Any, target: Any, weight: Any, clusters: Sequence[str], *, intercept: bool) -> float:
    """The strength with the least held-out loss over folds of clusters."""
    import numpy as np

    fold = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % FOLDS for name in clusters])
    if len(set(fold)) < FOLDS:
        return WITHOUT_FOLDS

    def loss(strength: float) -> float:
        total = 0.0
        for k in range(FOLDS):
            inside, outside = fold != k, fold == k
            w, b = _fit(x[inside], target[inside], weight[inside], strength, intercept=intercept)
            logit = x[outside] @ w + b
            each = target[outside] * np.logaddexp(0, -logit) + (1 - target[outside]) * np.logaddexp(0, logit)
            total += float((weight[outside] * each).sum())
        return total

    return float(min(STRENGTHS, key=loss))


def _fit(x: Any, target: Any, weight: Any, strength: float, *, intercept: bool) -> tuple[Any, float]:
    """(F,) weights and the bias of a ridge logistic regression with soft targets: each row twice, once for each answer."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    n = len(x)
    target = np.clip(target, SURELY_NOT, 1 - SURELY_NOT)
    y = np.r_[np.ones(n), np.zeros(n)]
    counts = np.r_[weight * target, weight * (1 - target)]
    model = LogisticRegression(C=strength, fit_intercept=intercept, max_iter=MOST_STEPS)
    model.fit(np.concatenate([x, x]), y, sample_weight=counts)
    return model.coef_[0], float(model.intercept_[0]) if intercept else 0.0
