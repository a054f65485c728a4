"""Choosing the next token of each row: batched arithmetic, but each row draws from its own seeded stream."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from policy.engine.generation import Sampling

NUCLEUS_CANDIDATES = 256


@dataclass
class Chooser:
    """The sampling state of one row: its random stream and what it has written so far."""

    sampling: Sampling
    stream: random.Random = field(init=False)
    written: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.stream = random.Random(self.sampling.seed)

    @property
    def penalised(self) -> bool:
        return bool(self.sampling.presence_penalty or self.sampling.frequency_penalty)


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each row.

    Args:
        logits: (rows, vocabulary); rows with penalties are changed in place.
        choosers: one per row.
    """
    for row, chooser in enumerate(choosers):
        if chooser.penalised and chooser.written:
            _penalise(logits[row], chooser)
    drawn = [i for i, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    tokens = logits.argmax(-1).tolist() if len(drawn) < len(choosers) else [0] * len(choosers)
    for nucleus in (False, True):
        rows = [i for i in drawn if (choosers[i].sampling.top_p < 1) == nucleus]
        if rows:
            chosen = logits if len(rows) == len(choosers) else logits[rows]
            picked = _draw(chosen.float(), [choosers[i] for i in rows], nucleus)
            for row, token in zip(rows, picked, strict=True):
                tokens[row] = token
    for token, chooser in zip(tokens, choosers, strict=True):
        if chooser.penalised:
            chooser.written[token] += 1
    return tokens


def chosen_logprobs(logits: torch.Tensor, tokens: Sequence[int], choosers: Sequence[Chooser]) -> list[float | None]:
    """log p of each row's token in nats; None for rows that do not ask.

    Of the distribution that the token was drawn from, after penalties and temperature and over the whole vocabulary
    (greedy rows: as at temperature 1), which vLLM calls processed.

    Args:
        logits: (rows, vocabulary), as `choose` left them.
    """
    rows = [i for i, chooser in enumerate(choosers) if chooser.sampling.logprobs]
    found: list[float | None] = [None] * len(choosers)
    if rows:
        temperatures = [[choosers[i].sampling.temperature or 1.0] for i in rows]
        scaled = logits[rows].float() / torch.tensor(temperatures, device=logits.device)
        chosen = torch.tensor([[tokens[i]] for i in rows], device=logits.device)
        logps = scaled.gather(1, chosen)[:, 0] - scaled.logsumexp(-1)
        for row, value in zip(rows, logps.tolist(), strict=True):
            found[row] = value
    return found


def _penalise(logits: torch.Tensor, chooser: Chooser) -> None:
    ids = torch.tensor(list(chooser.written), device=logits.device)
    counts = torch.tensor(list(chooser.written.values()), device=logits.device, dtype=logits.dtype)
    logits[ids] -= chooser.sampling.presence_penalty + chooser.sampling.frequency_penalty * counts


def _draw(logits: torch.Tensor, choosers: list[Chooser], nucleus: bool) -> list[int]:
    """Inverse-CDF draws, (rows, vocabulary) -> one token per row; `nucleus` applies top_p."""
    device = logits.device
    scaled = logits / torch.tensor([[c.sampling.temperature] for c in choosers], device=device)
    uniform = torch.tensor([[c.stream.random()] for c in choosers], device=device)
    if not nucleus:
        cdf = scaled.softmax(-1).cumsum(-1)
        at = torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True)
        return at.clamp_(max=cdf.shape[1] - 1).squeeze(1).tolist()
    top_p = torch.tensor([[c.sampling.top_p] for c in choosers], device=device)
    probabilities = scaled.softmax(-1)
    top, ids = probabilities.topk(min(NUCLEUS_CANDIDATES, scaled.shape[1]))
    cdf = top.cumsum(-1)
    if bool((cdf[:, -1:] < top_p).any()):  # a flat distribution: its nucleus is wider than the candidates
        top, ids = probabilities.sort(descending=True)
        cdf = top.cumsum(-1)
    last = torch.searchsorted(cdf, top_p).clamp_(max=cdf.shape[1] - 1)  # the token that reaches top_p belongs to it
    at = torch.searchsorted(cdf, uniform * cdf.gather(1, last), right=True)
    return ids.gather(1, torch.minimum(at, last)).squeeze(1).tolist()
