"""Measure Dunnock, Label Studio and Potato, one after the other, on this machine.

    python -m bench.annotation [--targets dunnock label-studio potato] [--sizes 10000 1000000] [--seconds 60] [--out FILE]

The load generator shares the machine with what it measures. Dunnock has both loops at every size, the others the closed
loop at up to 100 thousand tasks. What cannot be done is written down with its reason. First use of the others installs
them below the cache folder, which takes some minutes.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.annotation.dunnock import Dunnock
from bench.annotation.figures import Figures
from bench.annotation.http import Refused
from bench.annotation.label_studio import LabelStudio
from bench.annotation.load import CLOSED_ANNOTATORS, OPEN_ANNOTATORS, WARM_UP_S, Target, closed_loop, open_loop
from bench.annotation.potato import Potato
from bench.tools import NotDone
from commands import processes
from commands.throwaway_postgres import PostgresServer
from core.errors import DunnockError

RESULT = Path(__file__).parents[1] / "results" / "annotation.json"
TARGETS = ("dunnock", "label-studio", "potato")
SIZES = (10_000, 100_000, 1_000_000)
POSTGRES = ("shared_buffers=512MB", "max_wal_size=4GB", "checkpoint_timeout=15min")


def main() -> None:
    """Measure what was asked for and write the figures as they come."""
    parser = argparse.ArgumentParser(description="Latency and throughput of annotation.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--seconds", type=float, default=60, help="of each open loop; the closed ones take half of it")
    parser.add_argument("--workers", type=int, default=2, help="Dunnock's web worker processes")
    parser.add_argument("--limit", type=float, default=300, help="seconds that an import of another tool may take")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    processes.end_children_on_sigterm()
    settings = {
        "open_annotators": OPEN_ANNOTATORS, "closed_annotators": CLOSED_ANNOTATORS, "seconds": options.seconds,
        "warm_up_s": WARM_UP_S, "import_limit_s": options.limit,
    }  # fmt: skip
    figures = Figures(options.out, settings)
    with postgres() as server:
        setups: dict[str, list[Callable[[], Target]]] = {
            "dunnock": [lambda: Dunnock(server, options.workers)],
            "label-studio": [LabelStudio, lambda: LabelStudio(server)],
            "potato": [Potato, lambda: Potato(one_at_a_time=True)],
        }
        for size in options.sizes:
            for make in (make for name in options.targets for make in setups[name]):
                measure(make(), size, options.seconds, options.limit, figures)


def measure(target: Target, size: int, seconds: float, limit_s: float, figures: Figures) -> None:
    """All figures of one target at one size; a failure of another tool is a finding, one of ours ends the run."""

    def put(**found: Any) -> None:
        print(target.name, size, json.dumps(found), flush=True)
        figures.put(target.name, size, found)

    if size > target.largest:
        put(not_done=f"not tried with more than {target.largest} tasks")
        return
    try:
        put(load_before=round(os.getloadavg()[0], 2), **target.prepare(size, limit_s))
        asyncio.run(drive(target, seconds, put))
        if page := target.page():
            put(page=page)
        checked = target.check()
        checked["judgments_lost"] = max(0, target.acknowledged - checked["judgments"])
        put(checked=checked)
        if target.strict and any(count for name, count in checked.items() if name != "judgments"):
            raise SystemExit(f"{target.name} stored what it should not, or lost something: {checked}")
    except (NotDone, Refused, DunnockError, OSError, ValueError, LookupError) as error:
        put(not_done=str(error) or type(error).__name__)
        if target.strict:
            raise
    finally:
        target.stop()


async def drive(target: Target, seconds: float, put: Callable[..., None]) -> None:
    """The loops of a target, one after the other, over the same connections."""
    try:
        if target.open_too:
            put(open=await open_loop(target, seconds))
        put(closed=await closed_loop(target, seconds / 2))
    finally:
        for caller in target.callers:
            caller.close()


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that syncs to its disk, for the run."""
    folder = Path(tempfile.mkdtemp(prefix="dk-pg-"))  # short: the path of a Unix socket is at most 107 bytes
    try:
        server = PostgresServer(folder, POSTGRES)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
