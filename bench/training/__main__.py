"""Measure how fast we train beside TRL's stock trainers, on this machine, and what each gain brings alone.

    python -m bench.training [--parts limit reward dpo ppo ablation] [--data FILE] [--repeats 2] [--out FILE]
    python -m bench.training --add --parts cost --sizes 250 1000 4000        an hour or two
    python -m bench.training --add --parts memory                             a quarter of an hour
    python -m bench.training --add --parts accuracy --data FILE --seeds 5    some hours

Every measurement is a process of its own, one after the other, ours and theirs in turns. The pairs are those of `--data` (a
file as `make import` takes it, such as the HH-RLHF sample beside a checkout), else made of the product's seed prompts.
Without `--add`, a file holds what was measured in one run and nothing else. The last TRL with a PPO trainer is installed below the
cache folder on first use.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import tools
from bench.machine import ROOT
from bench.tools import NotDone
from bench.training import data
from bench.training.figures import RATES, Figures, flatness, paired_difference
from bench.training.ours import MEMORY, VARIANTS
from bench.training.work import Kind, Work, in_bf16
from commands import processes
from core.children import COMPUTE
from core.settings import get_settings
from feedback.dataset import Preference
from finetune.dpo import MIN_PAIRS

RESULT = Path(__file__).parents[1] / "results" / "training.json"
PARTS = ("limit", "reward", "dpo", "ppo", "ablation", "memory", "cost", "accuracy")
USUAL = ("limit", "reward", "dpo", "ppo", "ablation")
ABLATED: dict[Kind, tuple[str, ...]] = {
    "reward": ("plain", "bf16", "fused", "prefix", "top_plain", "top_kept"),
    "dpo": ("plain", "bf16", "fused", "prefix", "head", "reference", "top_plain", "top_kept"),
    "ppo": ("whole", "unfused", "no_prefix", "generate", "alone"),
}
COUNTED_PAIRS = 16
PPO_POOL = 400
"""Pairs among which PPO's prompts are looked for."""
COSTED: tuple[Kind, ...] = ("reward", "dpo")
SIZES = (250, 1000, 4000)


class Bench:
    """A run of the benchmark: what is asked for, and where figures go."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        from transformers import AutoTokenizer

        from policy.base import base_model_path

        self.options, self.scratch = options, scratch
        self.base = str(options.base.resolve() if options.base else base_model_path(get_settings()))
        self.tokenizer = AutoTokenizer.from_pretrained(self.base)
        work = self.work("reward")
        settings = {k: v for k, v in asdict(work).items() if k not in ("kind", "by", "variant", "base", "folder")}
        self.figures = Figures(
            options.out,
            {
                "base": Path(self.base).name, "pairs": options.pairs, "heldout": options.heldout,
                "data": options.data.name if options.data else "seed prompts", "repeats": options.repeats, **settings,
                "variants": VARIANTS, "memory_variants": MEMORY,
            },
            json.loads(options.out.read_text(encoding="utf-8")) if options.add else None,
        )  # fmt: skip

    def work(self, kind: Kind, **more: Any) -> Work:
        """What is asked of one measurement."""
        options = self.options
        common = {
            "by": "ours", "base": self.base, "folder": "",
            "environment": "plain" if more.get("by") == "stock" else "stage", "epochs": options.epochs, "batch_size": options.batch_size,
            "max_length_tokens": options.max_length, "steps": options.ppo_steps, "prompts": options.ppo_prompts,
        }  # fmt: skip
        return Work(kind=kind, **(common | more))

    def pairs(self, n_train: int, n_heldout: int, seed: int = 0) -> tuple[list[Preference], list[Preference]]:
        """Training and held-out pairs of the data."""
        options = self.options
        return data.split_pairs(self.tokenizer, options.data, n_train, n_heldout, options.max_length, seed=seed)

    def run(self, work: Work, pairs: Sequence[Sequence[Preference]]) -> dict[str, Any]:
        """Measure in a process of its own.

        Raises:
            NotDone: the process failed; the message holds the end of what it said.
        """
        what = f"{work.kind} by {work.by}, {work.variant}, {work.precision}"
        print(f"· {what}, {len(pairs[0])} pairs", file=sys.stderr, flush=True)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        if work.environment == "stage":
            env = COMPUTE | env
        if work.kind == "ppo" and work.by == "stock":
            env["PYTHONPATH"] = str(tools.package_folder(tools.TRL_WITH_PPO))
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            work = replace(work, folder=folder)
            for split, some in zip(("train", "heldout"), pairs, strict=True):
                data.write_pairs(Path(folder), split, some)
            asked, told = Path(folder) / "asked.json", Path(folder) / "told.json"
            work.write(asked)
            command = [sys.executable, "-m", "bench.training.child", str(asked), str(told)]
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotDone(f"{work.kind} by {work.by}, {work.variant}: {done.stderr.strip()[-2000:]}")
            found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
        print(json.dumps({k: v for k, v in found.items() if k != "right"}), file=sys.stderr, flush=True)
        return found

    # --- parts

    def limit(self) -> None:
        """The machine's matmul limit, and what our runs multiply, counted over some of the pairs."""
        train, heldout = self.pairs(self.options.pairs, self.options.heldout)
        self.figures.add("limit", "matmul", self.run(self.work("limit"), ([], [])))
        self.figures.add("limit", "flops", self.run(self.work("flops"), (train[:COUNTED_PAIRS], heldout)))

    def compare(self, kind: Kind) -> None:
        """Ours and the stock trainer in turns, who begins changing each time; then what a round really uses.

        Ours runs in the environment that the stages of a round run in, the stock trainer in the plain one, in fp32 and, where
        the processor multiplies that faster, also in bf16.
        """
        whole, half = {"by": "stock", "precision": "float32"}, {"by": "stock", "precision": "bfloat16"}
        named: list[tuple[str, dict[str, Any]]] = [("stock", whole), ("ours", {"by": "ours"})]
        if in_bf16("auto"):
            named.insert(1, ("stock_bf16", half))
        pairs = self.pairs(PPO_POOL if kind == "ppo" else self.options.pairs, self.options.heldout)
        for repeat in range(self.options.repeats):
            for name, how in reversed(named) if repeat % 2 else named:
                self.figures.add(kind, name, self.run(self.work(kind, **how), pairs))
        self.figures.add(kind, "product", self.run(self.work(kind, variant="product"), pairs))

    def ablation(self) -> None:
        """Each gain alone, over the same loop without any; and the stock DPO trainer at its best here.

        That is with the reference computed before, in the environment of our stages. What `plain` is to pairs, `same` is to PPO:
        its variants take one gain away.
        """
        half = max(self.options.pairs // 2, MIN_PAIRS)
        pairs, pool = (self.pairs(n, self.options.heldout) for n in (half, PPO_POOL))
        for kind, variants in ABLATED.items():
            found: dict[str, float] = {}
            for variant in ("same", *variants):
                run = self.run(self.work(kind, variant=variant), pool if kind == "ppo" else pairs)
                found[variant] = run[RATES[kind]]
                self.figures.add("ablation", f"{kind}_{variant}", run)
            whole = "plain" if "plain" in found else "same"
            gains = {name: round(rate / found[whole], 3) for name, rate in found.items() if name != whole}
            self.figures.put(**{f"{kind}_rate_over_{whole}": gains})
        run = self.run(self.work("dpo", variant="environment", environment="plain"), pairs)
        self.figures.add("ablation", "dpo_environment", run)
        run = self.run(self.work("dpo", by="stock", variant="reference", environment="stage"), pairs)
        self.figures.add("ablation", "dpo_stock_best", run)

    def memory(self) -> None:
        """Peaks of memory, and rates, of what trades one for the other."""
        half = max(self.options.pairs // 2, MIN_PAIRS)
        pairs, pool = (self.pairs(n, self.options.heldout) for n in (half, PPO_POOL))
        for kind in ABLATED:
            peaks = {}
            for variant in ("same", *MEMORY):
                run = self.run(self.work(kind, variant=variant), pool if kind == "ppo" else pairs)
                peaks[variant] = run["peak_mb"]
                self.figures.add("memory", f"{kind}_{variant}", run)
            over = {name: round(peak / peaks["same"], 3) for name, peak in peaks.items() if name != "same"}
            self.figures.put(**{f"{kind}_peak_over_same": over})

    def cost(self) -> None:
        """Seconds per pair as the data grows."""
        for kind in COSTED:
            rates = {}
            for size in self.options.sizes:
                run = self.run(self.work(kind), self.pairs(size, self.options.heldout))
                self.figures.add("cost", f"{kind}_{size}", run)
                rates[size] = run["pairs_per_s"]
            self.figures.put(**{f"{kind}_cost": flatness(rates)})

    def accuracy(self) -> None:
        """Accuracy of reward models on held-out conversations, ours with one member beside the stock trainer, by seed."""
        right: dict[str, list[list[bool]]] = {"ours": [], "stock": []}
        roots: list[list[str]] = []
        for seed in range(self.options.seeds):
            pairs = self.pairs(self.options.accuracy_pairs, self.options.accuracy_heldout, seed)
            roots.append([data.root_of(pair) for pair in pairs[1]])
            for by in ("ours", "stock") if seed % 2 else ("stock", "ours"):
                run = self.run(self.work("reward", by=by, seed=seed), pairs)
                right[by].append(run["right"])
                self.figures.add("accuracy_runs", by, run)
            self.figures.put(accuracy=paired_difference(right["ours"], right["stock"], roots))


def main() -> int:
    """Measure what was asked for; what TRL's experimental trainer cannot do here is written down with its reason."""
    parser = argparse.ArgumentParser(description="Training beside TRL's stock trainers.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL)
    parser.add_argument(
        "--data", type=Path, help="pairs in a form that `make import` takes; default: of the seed prompts"
    )
    parser.add_argument("--base", type=Path, help="folder of a base model; default: the deployment's")
    parser.add_argument("--pairs", type=int, default=48, help="training pairs of a comparison; the ablation takes half")
    parser.add_argument("--heldout", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=160, help="tokens of the longer side, prompt included")
    parser.add_argument("--ppo-steps", type=int, default=1)
    parser.add_argument("--ppo-prompts", type=int, default=8, help="prompts of a step, each with four completions")
    parser.add_argument("--repeats", type=int, default=2, help="runs of ours and of theirs, of which medians are taken")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of pairs of the part cost")
    parser.add_argument("--seeds", type=int, default=5, help="of the part accuracy")
    parser.add_argument("--accuracy-pairs", type=int, default=600)
    parser.add_argument("--accuracy-heldout", type=int, default=120)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--add", action="store_true", help="keep those parts of the file that are not measured now")
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="dk-training-") as scratch:
        bench = Bench(options, Path(scratch))
        failed = False
        for part in options.parts:
            try:
                bench.compare(part) if part in RATES else getattr(bench, part)()
            except NotDone as error:
                failed = True
                bench.figures.put(**{f"{part}_not_done": str(error)})
                print(error, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
