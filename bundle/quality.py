"""How near a bundle comes to the full version: both engines on the same frozen prompts, and both models on the same texts.

Nothing here is taken over from elsewhere: each figure is measured while the bundle is made, and says of how many texts it is and how
sure, at 95 %. Engines answer one after the other, so that neither has the other beside it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.intervals import mean_interval, rate
from core.messages import Message, user
from core.settings import Settings
from evals.prober import Item, Prober
from evals.report import judged, summarise
from evals.suites import SuitePrompt, benign, harmful
from policy.client import EngineClient
from policy.protocol import ChatReply, ChatRequest
from training.device import find_device, measuring_dtype
from training.encode import encode_completion, encode_prompt

AT_ONCE = 8
ALONE = 8
"""Prompts that are asked one after the other, to tell the speed of a single caller."""


@dataclass(frozen=True)
class Answers:
    """What an engine wrote to the prompts, greedily.

    Attributes:
        seconds: for all of them, `AT_ONCE` open.
        alone: replies to the first of them, one at a time.
    """

    replies: list[ChatReply]
    seconds: float
    alone: list[ChatReply]


def prompts_of(n: int) -> list[SuitePrompt]:
    """About n prompts of the frozen suites, half of them harmful, spread evenly over the suites; 0: all."""
    each = max(1, n // 2) if n else 0
    return [*harmful("frozen", each), *benign("frozen", each)]


def references_of(prompts: Sequence[SuitePrompt]) -> list[Item]:
    """Prompts with the good answers that stand beside them in the suite."""
    return [(user(p.text), p.reference) for p in prompts if p.reference]


def ask(client: EngineClient, name: str, prompts: Sequence[SuitePrompt], max_tokens: int) -> Answers:
    """Have an engine answer all prompts, after one that warms it up.

    Raises:
        DunnockError: it does not.
    """
    requests = [
        ChatRequest(
            model=name, messages=(Message(role="user", content=p.text),), temperature=0.0, max_tokens=max_tokens
        )
        for p in prompts
    ]
    client.complete(requests[-1])
    alone = [client.complete(request) for request in requests[:ALONE]]
    began = time.perf_counter()
    replies = client.complete_many(requests, AT_ONCE)
    return Answers(replies, time.perf_counter() - began, alone)


def logps_of_weights(base: Path, adapter: Path | None, items: Sequence[Item], settings: Settings) -> list[list[float]]:
    """log p, in nats, of each token of each text by the weights as they were trained."""
    device = find_device(settings.device)
    scored = Prober(base, adapter, device, measuring_dtype(device)).compare(items)
    return [[float(value) for value in text.candidate] for text in scored]


def logps_of_gguf(file: Path, folder: Path, items: Sequence[Item], settings: Settings) -> list[list[float]]:
    """The same by llama.cpp, as it computes with a file."""
    from policy.gguf.base import load_gguf_base
    from policy.gguf.llama import Llama, LlamaSettings

    base = load_gguf_base(
        folder, settings.cache_dir, "f32", settings.max_prompt_tokens + settings.max_completion_tokens, file
    )
    ids = [
        (encode_prompt(base.tokenizer, prompt), encode_completion(base.tokenizer, text, complete=False))
        for prompt, text in items
    ]
    llama = Llama(file, [], LlamaSettings(AT_ONCE, base.context_tokens, settings.gguf.threads or 1))
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda pair: llama.logps(*pair), ids))
    finally:
        llama.close()


def compare(
    prompts: Sequence[SuitePrompt],
    full: Answers,
    edge: Answers,
    full_logps: list[list[float]],
    edge_logps: list[list[float]],
) -> dict[str, Any]:
    """What a manifest says of its quality.

    Returns:
        equal_texts: share of greedy completions that are the full version's, sign by sign;
        reference_logp: nats per token of reference answers, full and edge, and the mean of the paired differences edge − full;
        token_logp_apart: mean over all tokens of |edge − full|, in nats, by text;
        harmful_compliance, benign_refusal: as the judge reads both engines' completions;
        tokens_per_s: completion tokens over time, with `at_once` replies open and with one; the prompts' own time is in it.
    """
    pairs = list(zip(full.replies, edge.replies, strict=True))
    means = [[sum(text) / len(text) for text in logps if text] for logps in (full_logps, edge_logps)]
    apart = [
        sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / len(mine)
        for mine, theirs in zip(full_logps, edge_logps, strict=True)
        if mine
    ]
    sides = {
        name: summarise(judged(prompts, [(r.text, r.completion_tokens) for r in answers.replies]))
        for name, answers in (("full", full), ("edge", edge))
    }
    return {
        "prompts": len(prompts),
        "equal_texts": rate(sum(a.text == b.text for a, b in pairs), len(pairs)),
        "reference_logp": {
            "full": mean_interval(means[0]),
            "edge": mean_interval(means[1]),
            "difference": mean_interval([b - a for a, b in zip(*means, strict=True)]),
        },
        "token_logp_apart": mean_interval(apart),
        **{
            name: {side: found[name] for side, found in sides.items()}
            for name in ("harmful_compliance", "benign_refusal")
        },
        "tokens_per_s": {"at_once": AT_ONCE, "full": _speed(full), "edge": _speed(edge)},
    }


def _speed(answers: Answers) -> dict[str, Any]:
    total = sum(reply.completion_tokens for reply in answers.replies)
    single = [reply.completion_tokens / reply.latency_s for reply in answers.alone]
    return {"together": total / answers.seconds, "tokens": total, "alone": mean_interval(single)}
