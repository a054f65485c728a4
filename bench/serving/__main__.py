"""Measure serving beside what else there is; write the figures.

    python -m bench.serving [--parts gateway streams engine swaps best_of soak] [--round var] [--repeats 3] [--add] [--out FILE]

- `gateway`: whole calls at 100 a second to an upstream that costs nothing, straight, through Dunnock (guard on, everything
  stored) and through LiteLLM's proxy; then the highest rate at which each answers all calls within a second
- `streams`: a thousand streams at once
- `soak`: callers that leave at random moments, for `--soak-s` seconds; slots, sockets, threads and memory of the web process by minutes
- `engine`: the same weights, prompts and tokens by the embedded engine alone, by Dunnock in front of it, and by `transformers serve`
- `best_of`: `--prompts` prompts of the frozen suites, with four completions each, as adaptive best-of-N, always one and always four would
  have answered them; needs `--round`
- `swaps`: versions that take turns under eight open streams, whose texts must be those of their versions; needs `--round`

Every measurement is a process of its own, in turns. `--round` names the `var` of a finished round (`make demo`), whose active
version, adapter and guard's model are then served; without it, the base is, and no model is asked about rules.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench import machine
from bench.serving import best_of, peers
from bench.serving.installed import Served, free_port, installed, rss_mb, sockets, threads
from bench.serving.load import Found, left, steady, streams
from bench.serving.swaps import under_swaps
from bench.tools import NotDone
from commands import processes
from core.db import Database
from policy.base import base_model_path

RESULT = Path(__file__).parents[1] / "results" / "serving.json"
PARTS = ("gateway", "streams", "engine", "swaps", "best_of", "soak")
USUAL = ("gateway", "streams", "engine")
RATE, SECONDS = 100, 20
RATES = (50, 100, 150, 200, 250, 300, 350, 400, 500, 600, 800)
RATE_SECONDS = 6
LATE_MS = 1000.0
OPEN, PIECES, PAUSE_MS = 1000, 40, 500
LEFT = 300
STREAMS = (1, 8)
SWAPS = 20
TOKENS = 64
PROMPTS = (
    "How do I keep basil alive on a windowsill?", "Write a short note to a neighbour about a parcel.",
    "What is the difference between weather and climate?", "Give me three ideas for a rainy Sunday.",
    "How does a bicycle stay upright?", "Explain compound interest to a child.", "What should I pack for a week by the sea?",
    "Tell me how bread rises.",
)  # fmt: skip


@contextmanager
def upstream(pieces: int = 32, pause_ms: int = 0) -> Iterator[str]:
    """An engine that costs nothing: its `/v1` URL."""
    port = free_port()
    command = [sys.executable, "-m", "bench.serving.upstream", str(port), str(pieces), str(pause_ms)]
    process = subprocess.Popen(command, cwd=machine.ROOT)
    try:
        while not processes.answers(f"http://127.0.0.1:{port}/health"):
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


class Bench:
    """A run: what is asked for, and the figures so far, which are written as they come.

    Attributes:
        origin: machine, versions and whether there is a round; parts that an earlier run measured keep theirs (`measured`).
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        earlier = json.loads(options.out.read_text(encoding="utf-8")) if options.add and options.out.exists() else {}
        self.origin = {
            "machine": machine.machine(), "round": options.round is not None,
            "versions": machine.versions(["uvicorn", "aiohttp", "flask", "sqlalchemy", "torch", "transformers"]),
        }  # fmt: skip
        measured = {part: {name: earlier.get(name) for name in self.origin} for part in PARTS if part in earlier}
        self.figures: dict[str, Any] = {**earlier, **self.origin, "measured": measured | earlier.get("measured", {})}
        self.figures.setdefault("ratios", {})

    def folder(self, name: str) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))

    def write(self) -> None:
        """What there is so far."""
        machine.write_figures(self.options.out, self.figures)

    def say(self, name: str, found: Any) -> None:
        """To the terminal."""
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)

    # --- parts

    def gateway(self) -> None:
        """Latency added at a steady rate, and the highest rate without an error."""
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            direct = stack.enter_context(upstream())
            ours = stack.enter_context(installed(self.folder("ours"), upstream=direct))
            targets = {"direct": (direct, "none"), "dunnock": (ours.url, ours.key)}
            try:
                url, found["litellm_version"] = stack.enter_context(peers.litellm(self.folder("litellm"), direct))
                targets["litellm"] = (url, "sk-bench")
            except NotDone as error:
                found["litellm_not_done"] = str(error)
            runs: dict[str, list[Found]] = {name: [] for name in targets}
            for _ in range(self.options.repeats):
                for name, (url, key) in targets.items():
                    runs[name].append(asyncio.run(steady(url, key, RATE, SECONDS)))
                    self.say(name, _latency(runs[name][-1]))
            for name, of in runs.items():
                figures = [_latency(run) for run in of]
                found[name] = {k: median(f[k] for f in figures) for k in ("p50_ms", "p99_ms")} | {
                    "errors": sum(f["errors"] for f in figures), "n": sum(f["n"] for f in figures),
                }  # fmt: skip
            for name, (url, key) in targets.items():
                found[name]["max_rate"] = self._highest(url, key)
                self.say(name, found[name])
        ratios = {
            "gateway_p50_ms": round(found["dunnock"]["p50_ms"] - found["direct"]["p50_ms"], 2),
            "gateway_p99_ms": round(found["dunnock"]["p99_ms"] - found["direct"]["p99_ms"], 2),
        }
        if found.get("litellm", {}).get("max_rate"):
            ratios["max_rate_vs_litellm"] = round(found["dunnock"]["max_rate"] / found["litellm"]["max_rate"], 2)
        self.figures |= {"gateway": found}
        self.figures["ratios"] |= ratios

    def _highest(self, url: str, key: str) -> int:
        """The highest of RATES with no error and 99 % of calls within LATE_MS; rates above the first that fails are not tried."""
        highest = 0
        for rate in RATES:
            run = asyncio.run(steady(url, key, rate, RATE_SECONDS))
            if run.errors or run.quantile_ms(0.99) > LATE_MS:
                break
            highest = rate
        return highest

    def streams(self) -> None:
        """A thousand at once, each some twenty seconds long."""
        with upstream(PIECES, PAUSE_MS) as direct, installed(self.folder("streams"), upstream=direct) as ours:
            before = {"rss_mb": rss_mb(ours.web), "threads": threads(ours.web)}
            run = asyncio.run(self._watched(ours))
            after = {"rss_mb": rss_mb(ours.web), "threads": threads(ours.web)}
        whole = {len(text) for text in run["found"].texts}
        found = {
            "open": OPEN, "ended_whole": len(run["found"].texts) if len(whole) == 1 else 0,
            "errors": len(run["found"].errors), "first_error": run["found"].errors[:1],
            "seconds_alone": PIECES * PAUSE_MS / 1000, "seconds_p50": round(run["found"].quantile_ms(0.5) / 1000, 2),
            "seconds_p99": round(run["found"].quantile_ms(0.99) / 1000, 2), "before": before, "during": run["during"],
            "after": after,
        }  # fmt: skip
        self.say("streams", found)
        self.figures["streams"] = found

    async def _watched(self, ours: Served) -> dict[str, Any]:
        asked = asyncio.create_task(streams(ours.url, ours.key, OPEN))
        await asyncio.sleep(PIECES * PAUSE_MS / 2000)
        during = {"rss_mb": rss_mb(ours.web), "threads": threads(ours.web)}
        return {"found": await asked, "during": during}

    def soak(self) -> None:
        """Streams that are left, round after round; what the web process holds once all are gone."""
        rows, errors, n = [], 0, 0
        began = time.monotonic()
        with upstream(30, 20) as direct, installed(self.folder("soak"), upstream=direct) as ours:
            while time.monotonic() - began < self.options.soak_s:
                minute = time.monotonic()
                while time.monotonic() - minute < min(60.0, self.options.soak_s):
                    errors += len(asyncio.run(left(ours.url, ours.key, LEFT, 50, seed=n, model="dunnock")))
                    n += LEFT
                time.sleep(2)
                rows.append({
                    "streams": n, "open": _open_streams(ours), "sockets": sockets(ours.web), "threads": threads(ours.web),
                    "rss_mb": rss_mb(ours.web),
                })  # fmt: skip
                self.say("soak", rows[-1])
        self.figures["soak"] = {"seconds": round(time.monotonic() - began), "errors": errors, "minutes": rows}

    def swaps(self) -> None:
        """Twenty swaps under eight open streams."""
        if self.options.round is None:
            raise NotDone("swaps need two versions: name the `var` of a finished round by --round")
        with installed(self.folder("swaps"), of_round=self.options.round) as ours:
            db = Database(ours.db_url)
            found = asyncio.run(under_swaps(ours, db, PROMPTS, SWAPS, TOKENS))
            db.dispose()
        self.say("swaps", found)
        self.figures["swaps"] = found

    def best_of(self) -> None:
        """Adaptive best-of-N beside always one and always N."""
        if self.options.round is None:
            raise NotDone("best-of-N needs reward models: name the `var` of a finished round by --round")
        with installed(self.folder("best-of"), of_round=self.options.round, several=True) as ours:
            found = best_of.compare(asyncio.run(best_of.draw(ours, self.options.prompts)))
        self.say("best_of", found)
        self.figures["best_of"] = found
        self.figures["ratios"]["adaptive_tokens_vs_always_n"] = found["tokens_vs_always_n"]

    def engine(self) -> None:
        """Tokens per second of the same weights."""
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            ours = stack.enter_context(installed(self.folder("engine"), of_round=self.options.round))
            targets = {"raw": (ours.engine_url, "none", ours.model), "dunnock": (ours.url, ours.key, "dunnock")}
            try:
                merged = self._merged()
                url = stack.enter_context(peers.transformers_serve(self.folder("transformers"), merged))
                targets["transformers_serve"] = (url, "none", str(merged))
            except NotDone as error:
                found["transformers_serve_not_done"] = str(error)
            for url, key, model in targets.values():  # the first calls load and warm
                asyncio.run(_tokens_per_s(url, key, model, 8))
            runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for _ in range(self.options.repeats):
                for n in STREAMS:
                    for name, (url, key, model) in targets.items():
                        run = asyncio.run(_tokens_per_s(url, key, model, n))
                        self.say(f"{name}, {n}", {k: v for k, v in run.items() if k != "texts"})
                        runs.setdefault((name, n), []).append(run)
        for (name, n), of in runs.items():
            found.setdefault(name, {})[str(n)] = {
                "tokens_per_s": round(median(run["tokens_per_s"] for run in of), 1),
                "first_text_s": round(median(run["first_text_s"] for run in of), 3),
                "errors": sum(run["errors"] for run in of), "of": [round(run["tokens_per_s"], 1) for run in of],
            }  # fmt: skip
        same = runs["raw", 8][0]["texts"] == runs["dunnock", 8][0]["texts"]
        found["same_texts_as_raw"] = same
        self.figures["engine"] = found
        rate = {name: {n: found[name][str(n)]["tokens_per_s"] for n in STREAMS} for name in targets}
        ratios = {f"tokens_per_s_{n}_vs_raw": round(rate["dunnock"][n] / rate["raw"][n], 3) for n in STREAMS}
        first = {name: found[name]["1"]["first_text_s"] for name in targets}
        ratios["first_text_1_vs_raw"] = round(first["dunnock"] / first["raw"], 3)
        if "transformers_serve" in rate:
            ratios["tokens_per_s_8_vs_transformers_serve"] = round(
                rate["dunnock"][8] / rate["transformers_serve"][8], 2
            )
        self.figures["ratios"] |= ratios

    def _merged(self) -> Path:
        """The weights that are served, base and adapter in one, as `transformers serve` takes them."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from core.settings import get_settings

        base, out = base_model_path(get_settings()), self.folder("merged")
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        if self.options.round is not None:
            adapters = sorted((self.options.round / "artifacts" / "adapters").iterdir())
            model = PeftModel.from_pretrained(model, str(adapters[-1])).merge_and_unload()
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
        return out


async def _tokens_per_s(url: str, key: str, model: str, n: int) -> dict[str, Any]:
    """Greedy streams of the prompts, `n` at a time; tokens are those of the texts that came, by the base's tokenizer."""
    began = time.perf_counter()
    found = [Found() for _ in range(n)]

    async def one(k: int) -> None:
        for prompt in PROMPTS[k::n][: max(1, len(PROMPTS) // n)]:
            run = await streams(
                url,
                key,
                1,
                model=model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=TOKENS,
                temperature=0,
            )
            found[k].texts += run.texts
            found[k].first_s += run.first_s
            found[k].errors += run.errors

    await asyncio.gather(*(one(k) for k in range(n)))
    seconds = time.perf_counter() - began
    texts = [text for each in found for text in each.texts]
    return {
        "tokens_per_s": _count(texts) / seconds, "first_text_s": median(s for each in found for s in each.first_s),
        "errors": sum(len(each.errors) for each in found), "texts": texts,
    }  # fmt: skip


def _count(texts: list[str]) -> int:
    from transformers import AutoTokenizer

    from core.settings import get_settings

    tokenizer = AutoTokenizer.from_pretrained(base_model_path(get_settings()))
    return sum(len(tokenizer(text)["input_ids"]) for text in texts)


def _open_streams(ours: Served) -> float:
    """As `/metrics` tells it."""
    told = httpx.get(f"{ours.url.removesuffix('/v1')}/metrics", timeout=30).text
    return float(next(line.split()[1] for line in told.splitlines() if line.startswith("dunnock_open_streams ")))


def _latency(run: Found) -> dict[str, Any]:
    return {
        "p50_ms": round(run.quantile_ms(0.5), 2), "p99_ms": round(run.quantile_ms(0.99), 2), "errors": len(run.errors),
        "n": len(run.latencies_s),
    }  # fmt: skip


def main() -> int:
    """Measure what was asked for; exit status 1 where something could not be done."""
    parser = argparse.ArgumentParser(description="Serving beside what else answers chat calls.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL)
    parser.add_argument("--round", type=Path, help="`var` of a finished round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=200, help="of the part best_of; half of them choose its risk")
    parser.add_argument("--soak-s", type=float, default=1200.0)
    parser.add_argument("--add", action="store_true", help="keep those parts of the file that are not measured now")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    failed = False
    with tempfile.TemporaryDirectory(prefix="dk-serving-") as scratch:
        bench = Bench(options, Path(scratch))
        for part in options.parts:
            try:
                getattr(bench, part)()
                bench.figures["measured"][part] = bench.origin
            except NotDone as error:
                failed = True
                bench.figures[f"{part}_not_done"] = str(error)
                print(error, file=sys.stderr)
            bench.write()
    print(json.dumps(bench.figures["ratios"], indent=1))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
