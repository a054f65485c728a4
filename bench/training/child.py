"""One measurement in a process of its own, so that its peak of memory is its own: `python -m bench.training.child IN OUT`."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.training.work import Work


def measure(work: Work) -> dict[str, Any]:
    """Do a piece of work and tell its figures."""
    if work.kind == "limit":
        from transformers import AutoConfig

        from bench.training import limit

        return dict(limit.measure(AutoConfig.from_pretrained(work.base)))
    if work.by == "stock":
        from bench.training import stock

        return stock.TRAINERS[work.kind](work)
    from bench.training import ours

    return ours.TRAINERS[work.kind](work)


def main() -> None:
    """Read what is wanted, measure, write what was found."""
    work, out = Work.read(Path(sys.argv[1])), Path(sys.argv[2])
    load = round(os.getloadavg()[0], 2)
    found = {"load_before": load, "trl": version("trl")} | measure(work)
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
