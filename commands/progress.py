"""A round with its progress in the terminal: a line per stage with its share and the time left, from the rows of the page.

Where a worker runs the round already, it is followed; where that worker dies, the round goes on here.
"""

import threading
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import select
from sqlalchemy.orm import defer

from core.db import Database
from core.errors import Conflict, LeaseLost
from core.settings import Settings
from finetune.cycle import UNFINISHED, run_cycle, still_of, unfinished_cycle
from finetune.models import Cycle, StageRun
from finetune.runner import in_own_process

POLL_S = 0.5
LINE_S = 30.0
"""Between two lines of a stage under way, where there is no terminal to draw bars in."""


def run_with_progress(db: Database, settings: Settings) -> Cycle | None:
    """Run or follow the oldest unfinished cycle to its end while telling how far it is; None when there is none."""
    with db.read() as session:
        waiting = unfinished_cycle(session)
        if waiting is None:
            return None
        cycle_id, stages = waiting.id, list(waiting.settings["stages"])
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(db, cycle_id, stages, ended), daemon=True)
    watcher.start()
    try:
        return _run_or_follow(db, settings, cycle_id)
    finally:
        ended.set()
        watcher.join(5)


def _run_or_follow(db: Database, settings: Settings, cycle_id: int) -> Cycle:
    while True:
        try:
            run_cycle(db, settings, in_own_process(db, settings))
        except (Conflict, LeaseLost):  # somebody else holds the lease
            time.sleep(POLL_S)
        with db.read() as session:
            cycle = session.get_one(Cycle, cycle_id)
        if cycle.state not in UNFINISHED:
            return cycle


def _watch(db: Database, cycle_id: int, stages: list[str], ended: threading.Event) -> None:
    console = Console()
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        shown = {name: bars.add_task(name, total=1.0, start=False, note="", left="") for name in stages}
        whole = bars.add_task("in all", total=len(stages), note="", left="")
        told: set[str] = set()
        next_line = time.monotonic() + LINE_S
        while True:
            last = ended.is_set()
            rows, still_s = _look(db, cycle_id)
            bars.update(whole, completed=sum(row.progress for row in rows), left=_left(still_s))
            for row in rows:
                task = shown[row.name]
                if not bars.tasks[task].started:
                    bars.start_task(task)
                bars.update(task, completed=row.progress, note=row.note, left=_left(row.still_s()))
                if row.state == "done":
                    bars.stop_task(task)
                if row.state == "done" and row.name not in told:
                    told.add(row.name)
                    if not console.is_terminal:
                        print(f"  {row.name:<9} done in {row.seconds:6.1f} s, peak {row.peak_mb:,.0f} MB", flush=True)
                elif row.state == "running" and not console.is_terminal and time.monotonic() > next_line:
                    next_line = time.monotonic() + LINE_S
                    whole_left = f", {_left(still_s)} in all" if still_s is not None else ""
                    words = [f"{row.progress:4.0%}", row.note, f"{_left(row.still_s())}{whole_left}"]
                    print(f"  {row.name:<9} {'  '.join(word for word in words if word)}", flush=True)
            if last:
                return
            time.sleep(POLL_S)


def _left(still_s: float | None) -> str:
    """About how long something still takes, as far as it can be said."""
    if still_s is None:
        return ""
    minutes, seconds = divmod(round(still_s), 60)
    return f"about {f'{minutes} min ' if minutes else ''}{seconds} s left"


def _look(db: Database, cycle_id: int) -> tuple[list[StageRun], float | None]:
    """The stages that have begun, and the seconds that the whole round still takes."""
    with db.read() as session:
        query = select(StageRun).options(defer(StageRun.result)).where(StageRun.cycle_id == cycle_id)
        rows = list(session.scalars(query.order_by(StageRun.id)))
        return rows, still_of(session, session.get_one(Cycle, cycle_id))
