"""Log-probabilities of given texts under a candidate and under the base, side by side. No text is generated here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.encode import encode_completion, encode_prompt
from training.prefix import Key, Packing, Plan
from training.run import Progress, silent
from training.trunk import is_llama_shaped, run_blocks

BATCH = 16  # prompts, each with all its completions
POSITIONS = 512  # of which whole distributions are held at once
NOTE = "likelihoods"
Item = tuple[list[dict[str, str]], str]
"""A prompt's messages and a completion."""


@dataclass(frozen=True)
class Scored:
    """What candidate and base make of one completion of T tokens.

    Attributes:
        candidate, base: (T,) log p(token) in nats.
        kl: mean over tokens of the exact KL(candidate ‖ base) of the next-token distributions, in nats.
    """

    candidate: Any
    base: Any
    kl: float

    @property
    def nll(self) -> float:
        """Nats per token under the candidate; 0 for an empty completion."""
        return _mean_nll(self.candidate)

    @property
    def base_nll(self) -> float:
        """Nats per token under the base."""
        return _mean_nll(self.base)


class Prober:
    """Log-probabilities of completions under the candidate and under the base, side by side.

    What prompts begin with alike is read once for a batch, a prompt once for its completions, and the blocks below the
    first adapted one once for both policies.

    Args:
        base: folder of the base model.
        adapter: folder of the candidate's adapter; None compares the base with itself.
    """

    def __init__(self, base: Path, adapter: Path | None, device: Any, dtype: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device).eval()
        self.decoder, self.head = self.model.base_model, self.model.get_output_embeddings()
        self.adapted = adapter is not None
        self.first_adapted = 0
        self.merged: Any = None
        if adapter is not None:
            import torch
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter)).eval()
            self.first_adapted = first_adapted_block(self.decoder)
            if dtype is torch.float32 and is_llama_shaped(self.decoder):
                self.merged = merged_blocks(self.decoder.layers[self.first_adapted :])

    def tokens(self, prompt: list[dict[str, str]], *texts: str) -> int:
        """Tokens of a prompt with the longest of its completions."""
        longest = max(len(encode_completion(self.tokenizer, text)) for text in texts)
        return len(encode_prompt(self.tokenizer, prompt)) + longest

    def compare(self, items: Sequence[Item], *, kl: int = 0, progress: Progress = silent) -> list[Scored]:
        """Both policies on each completion, in the order given; the KL of all but the first `kl` items is NaN."""
        import torch

        heads: dict[Key, list[int]] = {}  # items by the ids of their prompt
        for i, (prompt, _) in enumerate(items):
            heads.setdefault(tuple(encode_prompt(self.tokenizer, prompt)), []).append(i)
        tails = [encode_completion(self.tokenizer, text, complete=False) for _, text in items]
        prompts = sorted(heads.items(), key=lambda found: len(found[0]) + sum(len(tails[i]) for i in found[1]))
        found: list[Scored | None] = [None] * len(items)
        with torch.inference_mode():
            for start in range(0, len(prompts), BATCH):
                for i, scored in self._batch(prompts[start : start + BATCH], tails, kl):
                    found[i] = scored
                progress(min(1.0, (start + BATCH) / len(prompts)), NOTE)
        return [scored for scored in found if scored is not None]

    def _batch(
        self, prompts: Sequence[tuple[Key, list[int]]], tails: Sequence[list[int]], kl: int
    ) -> Iterator[tuple[int, Scored]]:
        """Each item of these prompts with what both policies make of it."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        items = [(i, head) for head, mine in prompts for i in mine]
        keys = [(*head, *tails[i]) for i, head in items]
        at = {i: row for row, (i, _) in enumerate(items)}
        ids = pad_sequence([torch.tensor(key) for key in keys], batch_first=True)  # (N, T)
        packing = Packing(Plan(keys, [[at[i] for i in mine] for _, mine in prompts]), ids.shape[1], self.model.device)
        both = self._states(packing.pack(ids.to(self.model.device)), packing.positions, packing.mask)
        for with_kl in (True, False):
            order = [(row, i, len(head)) for row, (i, head) in enumerate(items) if (i < kl) == with_kl]
            sizes = [len(tails[i]) for _, i, _ in order]
            # The state before a token predicts it.
            columns = [
                c for (_, _, begin), n in zip(order, sizes, strict=True) for c in range(begin - 1, begin + n - 1)
            ]
            rows = [row for (row, _, _), n in zip(order, sizes, strict=True) for _ in range(n)]
            wanted = torch.tensor([token for _, i, _ in order for token in tails[i]], dtype=torch.long)
            where = (packing.packed_row[rows, 0], packing.packed_column[rows, columns])
            scored = self._score(both[0][where], both[1][where], wanted.to(self.model.device), with_kl)
            for (_, i, _), candidate, base, apart in zip(order, *(each.split(sizes) for each in scored), strict=True):
                yield i, Scored(candidate, base, float(apart.mean()))

    def _states(self, ids: Any, positions: Any, seen: Any) -> list[Any]:
        """(R, P, H) final states of packed rows under the candidate and under the base."""
        forward = self.decoder.forward
        inputs = {"attention_mask": seen, "position_ids": positions, "use_cache": False}
        first = self.first_adapted
        if first:
            embedded = self.decoder.embed_tokens(ids)
            below = self.decoder.layers[:first]
            lower = run_blocks(self.decoder, below, forward, norm=False, inputs_embeds=embedded, **inputs)
            inputs["inputs_embeds"] = lower.last_hidden_state
        else:
            inputs["input_ids"] = ids
        above = self.decoder.layers[first:] if first else None

        def upper(blocks: Any) -> Any:
            if blocks is None:
                return forward(**inputs).last_hidden_state
            return run_blocks(self.decoder, blocks, forward, **inputs).last_hidden_state

        candidate = upper(above if self.merged is None else self.merged)
        if not self.adapted:
            return [candidate, candidate]
        with self.model.disable_adapter():
            return [candidate, upper(above)]

    def _score(self, candidate: Any, base: Any, ids: Any, kl: bool) -> tuple[Any, Any, Any]:
        """(M, H) states of both policies and (M,) token ids → (M,) log p of each, and (M,) KL or NaN."""
        import torch

        found: list[tuple[Any, Any, Any]] = []
        for ours, theirs, wanted in zip(*(each.split(POSITIONS) for each in (candidate, base, ids)), strict=True):
            if kl:
                p, q = (self.head(states).float().log_softmax(-1) for states in (ours, theirs))  # (POSITIONS, V)
                logps, base_logps = (each.gather(1, wanted[:, None])[:, 0] for each in (p, q))
                found.append((logps, base_logps, (p.exp() * (p - q)).sum(-1)))
            else:
                logps, base_logps = (self._logps(states, wanted) for states in (ours, theirs))
                found.append((logps, base_logps, torch.full_like(logps, float("nan"))))
        candidate_logps, base_logps, kls = (torch.cat(each) for each in zip(*found, strict=True))
        return candidate_logps, base_logps, kls

    def _logps(self, states: Any, ids: Any) -> Any:
        """(M, H) states and (M,) token ids → (M,) log p; no distribution is written out."""
        logits = self.head(states).float()
        return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def first_adapted_block(decoder: Any) -> int:
    """Index of the first block with an adapter; 0 where the decoder cannot be run in parts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not is_llama_shaped(decoder):
        return 0
    adapted = (any(isinstance(m, BaseTunerLayer) for m in block.modules()) for block in decoder.layers)
    return next((i for i, found in enumerate(adapted) if found), 0)


def merged_blocks(blocks: Any) -> Any:
    """A copy of adapted blocks with the adapter added to their weights: as served on a CPU, and a sixth faster.

    In float32 only: half precision would round the change away.
    """
    from copy import deepcopy

    from peft.tuners.tuners_utils import BaseTunerLayer

    copied = deepcopy(blocks)
    for block in copied:
        adapted = [(name, m) for name, m in block.named_modules() if isinstance(m, BaseTunerLayer)]
        for name, layer in adapted:
            layer.merge()
            block.set_submodule(name, layer.get_base_layer())
    return copied


def _mean_nll(logps: Any) -> float:
    return -float(logps.mean()) if len(logps) else 0.0
