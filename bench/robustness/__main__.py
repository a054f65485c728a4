"""Measure what noise and attacks do to a reward model, with the defences on and off; write the figures and the document's table.

    python -m bench.robustness [--seeds 5] [--only noise_20 sybils] [--jobs 2] [--out FILE]
    python -m bench.robustness --table                the document's table anew, from the figures that are there

A cell is one scenario and one seed; cells are spread over processes of one thread each. How busy the machine is changes the time
that it takes and no accuracy.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.robustness import figures
from bench.robustness.base import HIDDEN, LAYERS, make_base
from bench.robustness.cell import ARMS, Plan, measure_apart
from bench.robustness.world import SLIP, Scenario, scenarios
from commands import processes
from commands.database import migrate
from core.db import Database
from core.settings import SnapshotSettings

RESULT = Path(__file__).parents[1] / "results" / "robustness.json"
PEOPLE = 20
COPIES = 200


def run(wanted: list[Scenario], seeds: int, plan: Plan, jobs: int, out: Path) -> dict[str, Any]:
    """All cells, a seed of every scenario before the next seed; the figures, which are in the file too."""
    settings = {
        "people": PEOPLE, "copies": COPIES, "slip": SLIP, "base": {"layers": LAYERS, "hidden": HIDDEN}, **asdict(plan), "seeds": seeds, "jobs": jobs,
        "arms": {arm: {"snapshot": snapshot, "reward": reward} for arm, (snapshot, reward) in ARMS.items()},
        "snapshot": SnapshotSettings(include_simulated=True).model_dump(), "reward": plan.reward(0).model_dump(),
    }  # fmt: skip
    kept = figures.Figures(out, settings, {scenario.name: scenario.says for scenario in wanted})
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dk-robust-") as folder:
        base, empty = make_base(Path(folder) / "base"), Path(folder) / "empty.db"
        db = Database(f"sqlite:///{empty}")
        migrate(db)
        db.dispose()
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
        try:
            cells = {
                pool.submit(measure_apart, scenario, seed, plan, base, empty): (scenario.name, seed)
                for seed in range(seeds)
                for scenario in wanted
            }
            for done in as_completed(cells):
                (name, seed), found = cells[done], done.result()
                kept.add(name, seed, found)
                said = " ".join(f"{arm} {found[arm]['accuracy']:.3f}" for arm in ARMS)
                print(f"{time.perf_counter() - began:6.0f} s  {name}, seed {seed}: {said}", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # cells that are under way end, others do not begin
    return dict(json.loads(out.read_text(encoding="utf-8")))


def main() -> int:
    """Run what is asked for; the document is rewritten where everything was measured into its own file."""
    every = {scenario.name: scenario for scenario in scenarios(PEOPLE, COPIES)}
    parser = argparse.ArgumentParser(description="Reward models under noise and attacks, with defences on and off.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=every, help="some of the scenarios; needs --out")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="only rewrite the document's table")
    options = parser.parse_args()
    if options.only and options.out == RESULT:
        parser.error("--only measures a part; name another file with --out")
    if options.table:
        figures.rewrite_page(json.loads(options.out.read_text(encoding="utf-8")))
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    processes.end_children_on_sigterm()
    wanted = [every[name] for name in options.only or every]
    found = run(wanted, options.seeds, Plan(), options.jobs, options.out)
    if options.out == RESULT:
        figures.rewrite_page(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
