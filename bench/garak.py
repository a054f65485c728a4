"""garak's probes against the base and a round's version, without and with the guard; write the figures.

    python -m bench.garak --round var [--prompts 8] [--probes dan encoding …] [--out FILE]

garak is installed into an environment of its own below the cache folder and speaks to `/v1` as to any OpenAI server. An attempt
counts as a hit where garak's own detector says so; what stands in a refusal or behind a cut was not said. `--prompts` is
the most that garak takes of each probe.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from bench import machine, tools
from bench.serving.installed import Served, installed
from bench.tools import NotDone
from commands import processes
from core.db import Database
from core.intervals import rate
from policy.models import PolicyVersion

RESULT = Path(__file__).parent / "results" / "garak.json"
GARAK = ("torch==2.13.0", "garak==0.17.1")
PROBES = ("promptinject", "dan", "encoding", "leakreplay", "latentinjection")
TOKENS = 64
AT_ONCE = 8
UNGUARDED = {
    f"DUNNOCK_GUARD__{check}": "off"
    for check in ("INPUT_INJECTION", "INPUT_SECRETS", "OUTPUT_SECRETS", "OUTPUT_PII", "OUTPUT_LEAK", "OUTPUT_RULES")
}


def measure(ours: Served, models: Sequence[str], home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Hits by module of probes, for each of the models."""
    return {model: _hits(_asked(ours, model, home, options)) for model in models}


def _asked(ours: Served, model: str, home: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What garak says of each probe and detector.

    Raises:
        NotDone: it fails.
    """
    with tempfile.TemporaryDirectory(prefix="dk-garak-") as folder:
        config = {
            "run": {"generations": 1, "soft_probe_prompt_cap": options.prompts, "seed": 0},
            "system": {"parallel_attempts": AT_ONCE, "lite": True},
            "plugins": {
                "target_type": "openai.OpenAICompatible", "target_name": model,
                "generators": {"openai": {"OpenAICompatible": {
                    "uri": f"{ours.url}/", "max_tokens": TOKENS, "temperature": 0.7,
                }}},
            },
            "reporting": {"report_dir": folder, "report_prefix": "asked"},
        }  # fmt: skip
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        spec = ",".join(f"probes.{name}" for name in options.probes)
        command = [str(home / "bin" / "python"), "-m", "garak", "--config", f"{folder}/config.json", "--spec", spec]
        environment = {
            **os.environ,
            "OPENAICOMPATIBLE_API_KEY": ours.key,
            "XDG_DATA_HOME": folder,
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        reports = list(Path(folder).rglob("*.report.jsonl"))
        if done.returncode or not reports:
            raise NotDone(f"garak ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        lines = reports[0].read_text(encoding="utf-8").splitlines()
        return [entry for line in lines if (entry := json.loads(line))["entry_type"] == "eval"]


def _hits(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By module: attempts, and how many of them hit, with the 95 % Wilson interval."""
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        module = entry["probe"].removeprefix("probes.").split(".")[0]
        n = int(entry["total_evaluated"])
        for name in (module, "all"):
            counted[name][0] += n - int(entry["passed"])
            counted[name][1] += n
    return {name: rate(hits, n) for name, (hits, n) in sorted(counted.items())}


def _models(db_url: str) -> list[str]:
    """The version that was active first, and the one that is now."""
    db = Database(db_url)
    with db.read() as session:
        first = session.scalars(select(PolicyVersion.name).order_by(PolicyVersion.id)).first()
        active = session.scalars(select(PolicyVersion.name).where(PolicyVersion.state == "active")).one()
    db.dispose()
    return [first or active, active]


def main() -> int:
    """Measure; exit status 1 where garak cannot do it here."""
    parser = argparse.ArgumentParser(description="garak before and after a round, without and with the guard.")
    parser.add_argument("--round", type=Path, required=True, help="`var` of a finished round")
    parser.add_argument("--prompts", type=int, default=8, help="most prompts of a probe")
    parser.add_argument("--probes", nargs="+", default=PROBES)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    try:
        home = tools.environment("garak", GARAK)
        figures: dict[str, Any] = {
            "machine": machine.machine(), "versions": machine.versions(["torch", "transformers"]) | tools.versions(home, ("garak",)),
            "prompts_per_probe": options.prompts, "tokens": TOKENS,
        }  # fmt: skip
        for guard, environment in (("guard_off", UNGUARDED), ("guard_on", {})):
            with (
                tempfile.TemporaryDirectory(prefix="dk-garak-") as folder,
                installed(Path(folder), of_round=options.round, environment=environment) as ours,
            ):
                figures[guard] = measure(ours, _models(ours.db_url), home, options)
            print(guard, json.dumps(figures[guard]), file=sys.stderr, flush=True)
            machine.write_figures(options.out, figures)
    except NotDone as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
