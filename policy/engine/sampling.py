"""Choosing the next token of each row: batched arithmetic, but each row draws from its own seeded stream."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from policy.engine.generation import Likelihood, Sampling
from policy.engine.grammar import Matcher

NUCLEUS_CANDIDATES = 256


@dataclass
class Chooser:
    """The sampling state of one row: its random stream, what it has written so far, and where it stands in its grammar."""

    sampling: Sampling
    grammar: Matcher | None = None
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
        logits: (rows, vocabulary); rows with penalties or grammars are changed in place.
        choosers: one per row.
    """
    for row, chooser in enumerate(choosers):
        if chooser.penalised and chooser.written:
            _penalise(logits[row], chooser)
    bound = [row for row, chooser in enumerate(choosers) if chooser.grammar is not None]
    if bound:
        _bind(logits, bound, choosers)
    drawn = [i for i, chooser in enumerate(choosers) if chooser.sampling.temperature > 0]
    tokens = logits.argmax(-1).tolist() if len(drawn) < len(choosers) else [0] * len(choosers)
    for nucleus in (False, True):
        rows = [i for i in drawn if (choosers[i].sampling.top_p < 1) == nucleus]
        if rows:
            chosen = logits if len(rows) == len(choosers) else logits[rows]
            picked = _draw(chosen.float(), [choosers[i] for i in rows], nucleus)
            for row, token in zip(rows, picked, strict=True):
                tokens[row] = token
    for row in bound:
        _advance(logits[row], tokens, row, choosers[row])
    for token, chooser in zip(tokens, choosers, strict=True):
        if chooser.penalised:
            chooser.written[token] += 1
    return tokens


def chosen_likelihoods(
    logits: torch.Tensor, tokens: Sequence[int], choosers: Sequence[Chooser]
) -> list[Likelihood | None]:
    """How likely each row's token was; None for rows that do not ask.

    By the distribution that the token was drawn from, after penalties, grammar and temperature and over the whole vocabulary
    (greedy rows: as at temperature 1), which vLLM calls processed.

    Args:
        logits: (rows, vocabulary), as `choose` left them.
    """
    rows = [i for i, chooser in enumerate(choosers) if chooser.sampling.logprobs]
    found: list[Likelihood | None] = [None] * len(choosers)
    if rows:
        temperatures = [[choosers[i].sampling.temperature or 1.0] for i in rows]
        scaled = logits[rows].float() / torch.tensor(temperatures, device=logits.device)
        tops = [choosers[i].sampling.top_logprobs for i in rows]
        for row, each in zip(rows, likelihoods(scaled, [tokens[i] for i in rows], tops), strict=True):
            found[row] = each
    return found


def likelihoods(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[Likelihood]:
    """How likely one token is in each row, and so many of the likeliest.

    Args:
        logits: (rows, vocabulary).
    """
    normal = logits.logsumexp(-1)
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    logps = (logits.gather(1, chosen)[:, 0] - normal).tolist()
    if not (most := min(max(tops), logits.shape[1])):
        return [Likelihood(logp) for logp in logps]
    best, ids = logits.topk(most)
    values = (best - normal[:, None]).tolist()
    told = [  # what a grammar rules out is none of the likeliest
        tuple((i, v) for i, v in zip(row_ids[:top], row[:top], strict=True) if v > -math.inf)
        for row_ids, row, top in zip(ids.tolist(), values, tops, strict=True)
    ]
    return [Likelihood(logp, top) for logp, top in zip(logps, told, strict=True)]


def _bind(logits: torch.Tensor, rows: list[int], choosers: Sequence[Chooser]) -> None:
    """Rule out what their grammars do not let follow."""
    for row in rows:
        if grammar := choosers[row].grammar:
            ruled_out = torch.from_numpy(~grammar.allowed()).to(logits.device)
            logits[row].masked_fill_(ruled_out, -math.inf)


def _advance(logits: torch.Tensor, tokens: list[int], row: int, chooser: Chooser) -> None:
    """Take a row's token into its grammar; one that rounding has drawn from among the ruled out ones is drawn anew, greedily."""
    assert chooser.grammar is not None
    if logits[tokens[row]] == -math.inf:
        tokens[row] = int(logits.argmax())
    chooser.grammar.take(tokens[row])


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
