"""Fitting the student's head on states that are computed once: seconds, so it can be done again for each part held out.

States are brought to their principal components first, which leaves fewer weights than there are answers to learn from; the
components are folded into U afterwards, so what is served knows nothing of them. How strongly weights decay is chosen by
cross-entropy on prompt clusters held out in parts, and the same parts give out-of-fold answers for temperature and thresholds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward.guard.student import Weights, logits

COMPONENTS = 128
WIDTH = 48
STEPS = 120
LEARNING_RATE = 3e-2
DROPOUT = 0.2
DECAYS = (0.1, 0.7, 3.0)
FOLDS = 3
LEAST_SHARE = 1e-3
"""A component's variance beside the largest one's, below which it is not made more of: states of other texts may not lie in it."""


@dataclass(frozen=True)
class Answers:
    """What is learnt: each row asks a text, or a part of one, about a rule.

    Attributes:
        at: (M,) rows of the states; rule: (M,) rows of the rules' states.
        target: (M,) P(broken); weight: (M,).
        cluster: (M,) the fold that the text's prompt cluster is in.
    """

    at: Any
    rule: Any
    target: Any
    weight: Any
    fold: Any

    def where(self, kept: Any) -> "Answers":
        """The rows that a mask or a list of places names."""
        return Answers(self.at[kept], self.rule[kept], self.target[kept], self.weight[kept], self.fold[kept])

    def __len__(self) -> int:
        return len(self.target)


def folds_of(clusters: Sequence[str]) -> list[int]:
    """The fold of each text by its prompt cluster's hash; one without a cluster counts as a cluster of its own."""
    names = [cluster or f"text {i}" for i, cluster in enumerate(clusters)]
    return [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % FOLDS for name in names]


def choose(states: Any, rules: Any, answers: Answers, seed: int) -> tuple[float, Any]:
    """The decay with the least out-of-fold cross-entropy, and the (M,) out-of-fold logits under it."""
    import torch

    best: tuple[float, float, Any] | None = None
    for decay in DECAYS:
        out = torch.zeros(len(answers))
        for k in range(FOLDS):
            asked = answers.fold == k
            if asked.any():
                weights = fit(states, rules, answers.where(~asked), decay, seed)
                out[asked] = ask(weights, states, rules, answers.where(asked))
        loss = float(_loss(out, answers))
        if best is None or loss < best[0]:
            best = loss, decay, out
    assert best is not None  # there are decays
    return best[1], best[2]


def ask(weights: Weights, states: Any, rules: Any, answers: Answers) -> Any:
    """(M,) logits of what rows ask."""
    return logits(weights, states, rules)[answers.at, answers.rule]


def fit(states: Any, rules: Any, answers: Answers, decay: float, seed: int) -> Weights:
    """Weights of a head.

    Args:
        states: (N, 3H) of texts and parts of texts; rules: (R, H).
        decay: AdamW's decoupled weight decay.
    """
    import torch

    used, at = answers.at.unique(return_inverse=True)
    mean, basis = _components(states[used])
    seen = (states[used] - mean) @ basis  # (n, k), whole rows are used again by each rule and step
    rows = Answers(at, answers.rule, answers.target, answers.weight, answers.fold)
    cosine = _cosines_of(states, rules, answers)
    generator = torch.Generator().manual_seed(seed)
    width, wide = rules.shape[1], seen.shape[1]

    def drawn(*shape: int, sd: float) -> Any:
        return (torch.randn(*shape, generator=generator) * sd).requires_grad_()

    weights = {
        "U": drawn(WIDTH, wide, sd=wide**-0.5), "u": drawn(WIDTH, sd=0.0), "A": drawn(WIDTH, width, sd=0.3),
        "V": drawn(WIDTH, width, sd=0.3), "S": drawn(WIDTH, 2, sd=0.3), "w": drawn(WIDTH, sd=WIDTH**-0.5),
        "b": drawn(1, sd=0.0),
    }  # fmt: skip
    optimizer = torch.optim.AdamW(
        [
            {"params": [v for n, v in weights.items() if n not in ("u", "b")], "weight_decay": decay},
            {"params": [weights["u"], weights["b"]], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        kept = torch.rand(seen.shape, generator=generator) >= DROPOUT
        at_text = (seen * kept / (1 - DROPOUT)) @ weights["U"].T + weights["u"]
        scale, shift = 1 + rules @ weights["A"].T, rules @ weights["V"].T
        scale, shift = (of.index_select(0, rows.rule) for of in (scale, shift))  # its gradient is far faster than [ ]'s
        inner = at_text.index_select(0, rows.at) * scale + shift + cosine @ weights["S"].T
        loss = _loss(torch.nn.functional.gelu(inner) @ weights["w"] + weights["b"], rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found = {name: value.detach() for name, value in weights.items()}
    projected = found["U"]
    found["U"] = projected @ basis.T
    found["u"] = found["u"] - found["U"] @ mean
    return found


def _components(states: Any) -> tuple[Any, Any]:
    """(3H,) mean and (3H, k) principal directions, scaled so that the largest component has the variance 1."""
    import torch

    mean = states.mean(0)
    centred = states - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(states)))
    k = min(COMPONENTS, len(states), len(values))
    largest = values[-1].clamp(min=1e-8)
    share = (values[-k:] / largest).clamp(min=LEAST_SHARE)
    return mean, vectors[:, -k:] / largest.sqrt() / share**0.25  # halfway between whitened and as they are


def _cosines_of(states: Any, rules: Any, answers: Answers) -> Any:
    """(M, 2) the cosines of each row's rule with its text and context."""
    import torch

    width = rules.shape[1]
    asked = rules[answers.rule]
    pairs = [states[answers.at, :width], states[answers.at, -width:]]
    return torch.stack([torch.nn.functional.cosine_similarity(s, asked, dim=1) for s in pairs], dim=1)


def _loss(logit: Any, answers: Answers) -> Any:
    from reward.loss import rule_loss

    return rule_loss(logit, answers.target, answers.weight)
