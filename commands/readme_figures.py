"""The README's table of figures from a demo round's report: no figure is typed by hand.

    python -m commands.readme_figures var/reports/demo.json --machine "2 cores, 8 GB, no GPU"

It rewrites what stands between the two `demo-figures` marks of README.md and nothing else.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from commands.demo_report import RATES, percent
from core.artifacts import write_text
from core.errors import DunnockError, InvalidInput

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- demo-figures:start -->", "<!-- demo-figures:end -->"


def main() -> int:
    """Rewrite the block; exit status 1 and the README untouched when the report cannot be used."""
    parser = argparse.ArgumentParser(description="Put a demo round's figures into the README.")
    parser.add_argument("report", type=Path, help="demo.json of a finished demo round")
    parser.add_argument("--machine", required=True, help="cores, memory and GPU of the machine that ran it")
    options = parser.parse_args()
    try:
        block = render(read(options.report), options.machine)
        write_text(README, replaced(README.read_text(encoding="utf-8"), block))
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(f"README.md shows the figures of {options.report}")
    return 0


def read(path: Path) -> dict[str, Any]:
    """The report.

    Raises:
        InvalidInput: there is none, or it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read ({error}); run `make demo` first") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds a {type(found).__name__}; expected the object that `make demo` writes")
    return found


def replaced(readme: str, block: str) -> str:
    """The README with another block between its marks.

    Raises:
        InvalidInput: the marks are not there, once each and in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise InvalidInput(f"README.md must hold {START} and, after it, {END}, once each")
    return f"{before}{START}\n{block.strip()}\n{END}{after}"


def render(report: dict[str, Any], machine: str) -> str:
    """The block: a table of base and candidate, and what must be known to read it.

    Raises:
        InvalidInput: the report lacks a figure; none is left out in silence.
    """
    try:
        return "\n".join([*_table(report), "", *_notes(report, machine)])
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"the report lacks {error}; it is not one that `make demo` of this version wrote") from error


def _table(report: dict[str, Any]) -> list[str]:
    base, promoted, quality = report["base"], report["promoted"], report["quality"]
    name = report["policy_version"]
    nll, fluency, able = quality["reference_nll"], quality["fluency"], quality["capability"]
    rows = [(f"{label} (lower is better)", percent(base[key]), percent(promoted[key])) for key, label in RATES]
    rows += [
        ("reference answers, nats per token (lower is better)", f"{nll['base']:.3f}", f"{nll['candidate']:.3f}"),
        ("own benign completions under the base, nats per token", f"{fluency['base']:.3f}", f"{fluency['candidate']:.3f}"),
        (f"capability items right (n {able['n']})", f"{able['base']:.1%}", f"{able['candidate']:.1%}"),
        ("mean benign completion, tokens", f"{base['mean_benign_tokens']:.1f}", f"{promoted['mean_benign_tokens']:.1f}"),
    ]  # fmt: skip
    return [f"| frozen suites | base | {name} |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def _notes(report: dict[str, Any], machine: str) -> list[str]:
    snapshot, reward, judge = report["snapshot"], report["reward"], report["judge"]
    failed = [c["name"] for c in report["gate"]["checks"] if not c["passed"]]
    n = snapshot["n_train"] + snapshot["n_heldout"]
    stages = ", ".join(f"{s['name']} {s['seconds']:.0f} s" for s in report["stages"])
    peak = max(s["peak_mb"] for s in report["stages"])
    return [
        f"- {report['policy_version']} was {report['state']}. Gate: "
        + ("every check passed." if not failed else f"failed {', '.join(failed)}."),
        f"- {snapshot['n_train']} pairs trained it and {snapshot['n_heldout']} were held out;"
        f" {snapshot['n_simulated']} of these {n} rest on simulated judgments.",
        f"- KL to the base: {report['quality']['kl']['mean']:.3f} nats per token on the version's benign completions.",
        f"- Reward model on held-out pairs: {percent(_as_rate(reward))}; going by length alone: {reward['length_only']:.1%}.",
        f"- The judge's own error on hand-labelled real completions: {percent(judge['real']['error'])}; on text written to be"
        f" hard for it: {percent(judge['error'])}.",
        f"- Time of the stages: {stages}; {report['seconds']:.0f} s in all. Largest peak memory of a stage:"
        f" {peak:,} MB. Machine: {machine}.",
        "- Brackets hold the 95 % Wilson interval and the number of prompts.",
    ]


def _as_rate(reward: dict[str, Any]) -> dict[str, Any]:
    return {"rate": reward["accuracy"], "n": reward["n"], "low": reward["low"], "high": reward["high"]}


if __name__ == "__main__":
    sys.exit(main())
