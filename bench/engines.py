"""The engines of one machine beside each other: how fast they answer, and how near their texts come to the base's own.

    python -m bench.engines [--repeats 3] [--engines transformers gguf:q4_1 gguf:q8_0 gguf:f16]
                                                      writes bench/results/engines.json

Each engine is a process of its own with the base and an adapter of the shape that rounds train; they are asked in turns,
so that a busy machine slows all of them. Texts are greedy, and are held to those of the first engine, which is the embedded
one: the base in fp32 by transformers, whose texts the tests hold to `generate`.

- `equal`: prompts of `PROMPTS` that give the same text
- `nll_more`: nats per token that the fp32 base finds the engine's texts less likely than its own greedy ones
- `told_off`: mean distance, in nats, of the log-probabilities that the engine tells and the fp32 base's of those tokens
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import AutoModelForCausalLM

from bench.engine import engine, machine, requests, save_adapter, timed_streams
from core.settings import get_settings
from policy.base import base_model_path
from policy.client import EngineClient
from policy.protocol import ChatRequest

RESULT = Path(__file__).parent / "results" / "engines.json"
ENGINES = ("transformers", "gguf:q4_1", "gguf:q8_0", "gguf:f16")
STREAMS = (1, 8)
PROMPTS, TOKENS = 20, 48


def environment(name: str) -> dict[str, str]:
    """The settings that start an engine, named as on the command line."""
    kind, _, stored = name.partition(":")
    return {"DUNNOCK_ENGINE": kind} | ({"DUNNOCK_GGUF__TYPE": stored} if stored else {})


def greedy(client: EngineClient, count: int) -> list[dict[str, Any]]:
    """Prompt ids, token ids and told log-probabilities of greedy completions."""
    fields = {"temperature": 0.0, "top_p": 1.0, "max_tokens": TOKENS, "logprobs": True, "return_token_ids": True}
    asked = [ChatRequest(**(r.model_dump() | fields)) for r in requests("base", count)]
    return [
        {"prompt": r.prompt_token_ids, "ids": r.token_ids, "told": r.logprobs} for r in client.complete_many(asked, 8)
    ]


def logps(model: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> list[float]:
    """The fp32 base's log-probability of each token, nats."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    values: list[float] = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist()
    return values


def nearness(model: Any, told: list[dict[str, Any]], own: list[dict[str, Any]], own_nll: list[float]) -> dict[str, Any]:
    """How near an engine's greedy texts are to those of the fp32 base; see the module."""
    theirs = [logps(model, text["prompt"], text["ids"]) for text in told]
    off = [
        abs(a - b) for text, plain in zip(told, theirs, strict=True) for a, b in zip(text["told"], plain, strict=True)
    ]
    return {
        "equal": sum(text["ids"] == base["ids"] for text, base in zip(told, own, strict=True)),
        "nll_more": round(mean(-mean(plain) - nll for plain, nll in zip(theirs, own_nll, strict=True)), 4),
        "told_off": round(mean(off), 4),
    }


def measure(names: list[str], repeats: int) -> dict[str, Any]:
    """All figures, with what they were made on."""
    path = base_model_path(get_settings())
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.set_num_threads(1)
    own: list[dict[str, Any]] = []
    own_nll: list[float] = []
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as engines:
        adapter = Path(scratch).resolve() / "artifacts" / "adapter"
        save_adapter(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), adapter)
        clients: dict[str, EngineClient] = {}
        for name in names:
            clients[name], pid = engines.enter_context(engine(Path(scratch), environment(name)))
            start = time.perf_counter()
            clients[name].load_adapter("adapter", adapter)
            results[name]["adapter_loaded_s"] = round(time.perf_counter() - start, 2)
            told = greedy(clients[name], PROMPTS)
            own = own or told
            own_nll = own_nll or [-mean(logps(model, text["prompt"], text["ids"])) for text in own]
            results[name] |= nearness(model, told, own, own_nll)
            print(name, results[name], file=sys.stderr)
            for kind in ("base", "adapter"):
                timed_streams(clients[name], kind, 8)  # the first run of each warms up
            results[name]["rss_mb"] = round(psutil.Process(pid).memory_info().rss / 1e6)
        rates: dict[tuple[str, str, int], list[float]] = {}
        for _, kind, count, name in product(range(repeats), ("base", "adapter"), STREAMS, names):
            run = timed_streams(clients[name], kind, count)
            print(name, kind, count, run["tokens_per_s"], file=sys.stderr)
            rates.setdefault((name, kind, count), []).append(run["tokens_per_s"])
    for (name, kind, count), values in rates.items():
        results[name][f"{kind}_{count}"] = {
            "tokens_per_s": round(median(values), 1),
            "of": [round(v, 1) for v in values],
        }
    return {"machine": machine(), "base": path.name, "repeats": repeats, "prompts": PROMPTS, "results": results}


def main() -> None:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(description="The engines of one machine beside each other.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), help="the first one in fp32")
    options = parser.parse_args()
    text = json.dumps(measure(options.engines, options.repeats), indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
