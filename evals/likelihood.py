"""Measures that need the model's own probabilities: KL to the base, reference answers, capability.

One model is loaded, with the candidate's adapter beside it; "base" is adapters off. All on the same
texts, so that candidate and base are compared pair by pair. No text is generated here.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.intervals import mean_interval
from evals.suites import CapabilityItem
from training.encode import encode_completion, encode_prompt

BATCH = 16


@dataclass(frozen=True)
class Likelihoods:
    """What the candidate does to the base's probabilities.

    Attributes:
        kl: per-token KL(candidate ‖ base) in nats over the candidate's own benign completions: mean, n, low, high.
        reference_nll: nats per token on reference answers: candidate, base, and their paired difference.
        capability: share of items whose right option is the likeliest: candidate and base, with n.
        fluency: nats per token that the *base* gives to each policy's benign completions, and paired difference.
    """

    kl: dict[str, Any]
    reference_nll: dict[str, Any]
    capability: dict[str, Any]
    fluency: dict[str, Any]


class Prober:
    """Log-probabilities of completions under the candidate and under the base.

    Args:
        base: folder of the base model.
        adapter: folder of the candidate's adapter; None compares the base with itself.
    """

    def __init__(self, base: Path, adapter: Path | None, device: Any, dtype: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device).eval()
        self.adapted = adapter is not None
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter)).eval()

    def token_logps(self, items: Sequence[tuple[list[dict[str, str]], str]], *, as_base: bool) -> list[Any]:
        """Per item a (T,) tensor of log p(token) over its completion's tokens, in nats."""
        return self._walk(items, as_base, lambda logps, ids: logps.gather(1, ids[:, None])[:, 0])

    def kl_per_token(self, items: Sequence[tuple[list[dict[str, str]], str]]) -> list[float]:
        """Per item the mean over tokens of the exact KL(candidate ‖ base) of the next-token distributions, in nats."""
        found = []
        for start in range(0, len(items), BATCH):  # whole distributions are large: a batch at a time
            part = items[start : start + BATCH]
            ours, theirs = (self._walk(part, as_base, lambda logps, ids: logps) for as_base in (False, True))
            found += [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(ours, theirs, strict=True)]
        return found

    def _walk(
        self, items: Sequence[tuple[list[dict[str, str]], str]], as_base: bool, take: Callable[[Any, Any], Any]
    ) -> list[Any]:
        import torch

        off = self.model.disable_adapter() if as_base and self.adapted else nullcontext()
        found: list[Any] = []
        with torch.inference_mode(), off:
            for start in range(0, len(items), BATCH):
                found += self._batch(items[start : start + BATCH], take)
        return found

    def _batch(self, items: Sequence[tuple[list[dict[str, str]], str]], take: Callable[[Any, Any], Any]) -> list[Any]:
        import torch

        heads = [encode_prompt(self.tokenizer, prompt) for prompt, _ in items]
        tails = [encode_completion(self.tokenizer, text, complete=False) for _, text in items]
        rows = [torch.tensor(h + t) for h, t in zip(heads, tails, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.model.device)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True).to(ids.device)
        model = self.model.get_base_model() if self.adapted else self.model
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found = []
        for i, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            span = hidden[i, len(head) - 1 : len(head) + len(tail) - 1]  # (T, H): what predicts each completion token
            logps = model.get_output_embeddings()(span).float().log_softmax(-1)
            found.append(take(logps, ids[i, len(head) : len(head) + len(tail)]))
        return found


def measure(
    prober: Prober,
    own: Sequence[tuple[list[dict[str, str]], str]],
    base_own: Sequence[tuple[list[dict[str, str]], str]],
    references: Sequence[tuple[list[dict[str, str]], str]],
    items: Sequence[CapabilityItem],
) -> Likelihoods:
    """All likelihood measures of a candidate.

    Args:
        own: benign prompts with the candidate's completions; `base_own` with the base's, in the same order.
        references: benign prompts with good answers that we wrote.
    """

    def nll(pairs: Sequence[tuple[list[dict[str, str]], str]], as_base: bool) -> list[float]:
        return [-float(t.mean()) if len(t) else 0.0 for t in prober.token_logps(pairs, as_base=as_base)]

    usable = [
        (mine, theirs) for mine, theirs in zip(own, base_own, strict=True) if mine[1].strip() and theirs[1].strip()
    ]
    mine, theirs = [u[0] for u in usable], [u[1] for u in usable]
    return Likelihoods(
        kl=mean_interval(prober.kl_per_token(mine)),
        reference_nll=_paired(nll(references, False), nll(references, True)),
        capability={
            "n": len(items),
            "candidate": _capability(prober, items, as_base=False),
            "base": _capability(prober, items, as_base=True),
        },
        fluency=_paired(nll(mine, True), nll(theirs, True)),
    )


def _paired(candidate: list[float], base: list[float]) -> dict[str, Any]:
    return {
        "candidate": mean_interval(candidate)["mean"],
        "base": mean_interval(base)["mean"],
        "difference": mean_interval([c - b for c, b in zip(candidate, base, strict=True)]),
    }


def _capability(prober: Prober, items: Sequence[CapabilityItem], *, as_base: bool) -> float:
    """Share of items whose right option has the highest mean token log-probability."""
    options = [(item, text) for item in items for text in (item.right, *item.wrong)]
    pairs = [([{"role": "user", "content": item.question}], text) for item, text in options]
    scores: dict[str, list[float]] = {}
    for (item, _), logps in zip(options, prober.token_logps(pairs, as_base=as_base), strict=True):
        scores.setdefault(item.id, []).append(float(logps.mean()))
    return sum(max(s) == s[0] for s in scores.values()) / len(scores) if scores else float("nan")
