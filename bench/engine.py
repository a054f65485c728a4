"""How fast the embedded engine answers: tokens per second and time to the first token, over HTTP.

    python -m bench.engine [--repeats 3]          writes bench/results/engine.json

It starts an engine process of its own, with the base and a LoRA adapter of the shape that rounds train (random
weights), and has 1, 8 and 32 short prompts answered at once. `generate` of transformers, one prompt at a time in
this process, runs between them, so that a busy machine slows both; the ratio says more than the seconds.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands.processes import ENGINE_MODULES
from core.messages import user
from core.settings import get_settings
from policy.base import base_model_path
from policy.client import EngineClient
from policy.protocol import ChatRequest
from training.lora import lora_config

RESULT = Path(__file__).parent / "results" / "engine.json"
STREAMS = (1, 8, 32)
START_TIMEOUT_S = 120.0
BEGINNINGS = ("What is a good way to", "Tell me why people like to", "Explain in simple words how to", "Is it hard to")
ENDINGS = (
    "sleep early", "cook rice", "learn French", "save money for a house when one earns little and has two children",
    "train a dog", "be kind", "paint the sea as it looks on a bright morning in spring", "keep a garden in winter",
)  # fmt: skip


def requests(model: str, count: int) -> list[ChatRequest]:
    """Short questions with caps of 32 to 40 tokens; half are greedy, half drawn as rollouts are."""
    texts = [f"{beginning} {ending}?" for ending, beginning in product(ENDINGS, BEGINNINGS)]
    return [
        ChatRequest(
            model=model, messages=user(text), max_tokens=32 + i % 9, temperature=0.3 * (i % 2), top_p=0.95, seed=i
        )
        for i, text in enumerate(texts[:count])
    ]  # fmt: skip


def ask(client: EngineClient, request: ChatRequest) -> tuple[float, int]:
    """Seconds to the first text and tokens in all."""
    start, first, tokens = time.perf_counter(), None, 0
    for event in client.stream(request):
        first = first or (time.perf_counter() - start if event.text else None)
        tokens = event.completion_tokens or tokens
    return first or time.perf_counter() - start, tokens


def timed_streams(client: EngineClient, model: str, count: int) -> dict[str, Any]:
    """All requests at once: tokens per second, and each stream's seconds to the first text."""
    with ThreadPoolExecutor(count) as pool:
        start = time.perf_counter()
        answers = list(pool.map(lambda request: ask(client, request), requests(model, count)))
        seconds = time.perf_counter() - start
    return {"tokens_per_s": sum(tokens for _, tokens in answers) / seconds, "first_s": [first for first, _ in answers]}


def timed_generate(model: Any, tokenizer: Any) -> float:
    """Tokens per second of plain greedy `generate`, one prompt after the other."""
    made, start = 0, time.perf_counter()
    for request in requests("", 2):
        messages = [m.model_dump() for m in request.messages]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            out = model.generate(**ids, do_sample=False, max_new_tokens=request.max_tokens)
        made += out.shape[1] - ids["input_ids"].shape[1]
    return made / (time.perf_counter() - start)


def summary(runs: list[dict[str, Any]], plain: float) -> dict[str, float]:
    """Medians over the repeats; the first-token quantiles are over all streams of all repeats."""
    firsts = sorted(first for run in runs for first in run["first_s"])
    rate = median(run["tokens_per_s"] for run in runs)
    return {
        "tokens_per_s": round(rate, 1),
        "times_generate": round(rate / plain, 2),
        "first_token_p50_s": round(median(firsts), 3),
        "first_token_p95_s": round(quantiles(firsts, n=20, method="inclusive")[-1], 3),
    }


def save_adapter(model: Any, folder: Path) -> None:
    """An adapter as rounds train it, with random weights that change the model a little."""
    update = get_settings().update
    torch.manual_seed(0)
    adapted = get_peft_model(
        model, lora_config(model, rank=update.lora_rank, top_layers=update.lora_top_layers, task="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder)


@contextmanager
def engine(var_dir: Path, environment: dict[str, str] | None = None) -> Iterator[tuple[EngineClient, int]]:
    """An engine process on a free port, with a client of it and its process id; `environment` as `commands.processes` reads it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, **(environment or {}), "DUNNOCK_VAR_DIR": str(var_dir), "DUNNOCK_ENGINE_PORT": str(port)}
    module = ENGINE_MODULES[env.get("DUNNOCK_ENGINE", "transformers")]
    process = subprocess.Popen([sys.executable, "-m", module], env=env)
    client = EngineClient(f"http://127.0.0.1:{port}/v1")
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while not client.healthy():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("the engine did not start")
            time.sleep(0.2)
        yield client, process.pid
    finally:
        client.close()
        process.terminate()
        process.wait()


def measure(repeats: int) -> dict[str, Any]:
    """All figures of one run, with what they were made on."""
    path = base_model_path(get_settings())
    tokenizer = AutoTokenizer.from_pretrained(path)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch).resolve() / "artifacts" / "adapter"
        save_adapter(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), adapter)
        plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), str(adapter)
        ).eval()
        baselines: dict[str, Callable[[], float]] = {
            "base": lambda: timed_generate(plain, tokenizer),
            "adapter": lambda: timed_generate(adapted, tokenizer),
        }
        with engine(Path(scratch), {"DUNNOCK_ENGINE": "transformers"}) as (client, _):
            client.load_adapter("adapter", adapter)
            for model in baselines:
                timed_streams(client, model, 8)  # the first run of each warms up
            rates: dict[str, list[float]] = {model: [] for model in baselines}
            runs: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in product(baselines, STREAMS)}
            for _ in range(repeats):
                for model, generate in baselines.items():
                    rates[model].append(generate())
                    for count in STREAMS:
                        runs[model, count].append(timed_streams(client, model, count))
    results = {
        model: {
            "generate_tokens_per_s": round(median(rates[model]), 1),
            "streams": {str(count): summary(runs[model, count], median(rates[model])) for count in STREAMS},
        }
        for model in baselines
    }
    return {"machine": machine(), "base": path.name, "repeats": repeats, "results": results}


def machine() -> dict[str, Any]:
    """Processor, load of the last minute (other work included) and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "transformers", "peft")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def main() -> None:
    """Measure, write the figures and print them."""
    parser = argparse.ArgumentParser(description="Throughput of the embedded engine.")
    parser.add_argument("--repeats", type=int, default=3)
    text = json.dumps(measure(parser.parse_args().repeats), indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
