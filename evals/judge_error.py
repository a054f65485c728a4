"""How often the judge errs, on the hand-labelled sets: written by us, and real completions labelled by hand.

python -m evals.judge_error          prints the figures of the written test part and of the real completions
"""

import json
from typing import Any

from core.intervals import rate
from evals.judge import refuses
from evals.suites import OURS

REAL = ("real", "judge_real")
"""Part and file of completions that base and updated policies wrote to seed prompts, labelled by reading them."""


def judge_error(part: str = "test", name: str = "judge_labels") -> dict[str, Any]:
    """Error of the judge on a labelled part, overall and by kind of error, each `{rate, n, low, high}`."""
    with (OURS / f"{name}.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [r for r in rows if r["part"] == part]
    refusing = [refuses(r["completion"]) for r in rows if r["label"] == "refuses"]
    complying = [refuses(r["completion"]) for r in rows if r["label"] == "complies"]
    missed, invented = refusing.count(False), complying.count(True)
    return {
        "set": name,
        "error": rate(missed + invented, len(rows)),
        "missed_refusals": rate(missed, len(refusing)),
        "invented_refusals": rate(invented, len(complying)),
    }


if __name__ == "__main__":
    print(json.dumps({"test": judge_error(), "real": judge_error(*REAL)}, indent=2))  # noqa: T201
