"""A cycle: one round of the loop, as stages in order, each recorded, each run at most once to its end.

    request_cycle(...)   writes the row that a worker will take up, its settings fixed there and then
    run_cycle(...)       runs the oldest unfinished cycle; a killed one goes on from its last finished stage

One cycle runs at a time across all hosts (`lease.HeldLease`). A stage that fails marks the cycle failed with
its reason; a gate that refuses marks it refused. Stages themselves are in `stages.py`.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session, aliased

from core.db import Database, utcnow
from core.errors import Cancelled, Conflict, DunnockError, LeaseLost, NotFound
from core.language import gettext
from core.settings import Settings
from feedback.models import Judgment, SnapshotJudgment
from finetune.beside import Beside
from finetune.events import tell_finished
from finetune.lease import HeldLease, take_turns
from finetune.models import Cycle, StageRun, StageStep
from finetune.pace import Pace
from training.energy import added
from training.run import Row

LEASE = "cycle"
STAGES = ("snapshot", "reward", "update", "gate", "promote")
DEMO_STAGES = ("collect", "rate", *STAGES)
UNFINISHED = ("requested", "running")
log = logging.getLogger("dunnock.cycle")

RunStage = Callable[[int, str, HeldLease], None]
"""Runs one stage of a cycle to its end, in this process or another; raises DunnockError with the reason."""


def request_cycle(
    session: Session,
    settings: Settings,
    reason: str,
    *,
    stages: Sequence[str] = STAGES,
    overrides: dict[str, dict[str, Any]] | None = None,
    compare: tuple[str, str] | None = None,
) -> Cycle:
    """Ask for a round; while one is unfinished, that one is returned and no other is made.

    Args:
        overrides: settings by stage that differ from the deployment's, e.g. `{"update": {"epochs": 1}}`.
        compare: names of the candidate and the incumbent, for the stage `compare`.
    """
    take_turns(session, "cycle request")
    waiting = unfinished_cycle(session)
    if waiting is not None:
        return waiting
    fixed: dict[str, Any] = {"stages": list(stages)}
    for name in ("collect", "snapshot", "reward", "update", "ppo", "gate"):
        model = getattr(settings, name)
        fixed[name] = type(model)(**(model.model_dump() | (overrides or {}).get(name, {}))).model_dump()
    if compare is not None:
        fixed["compare"] = dict(zip(("candidate", "incumbent"), compare, strict=True))
    cycle = Cycle(reason=reason, settings=fixed)
    session.add(cycle)
    session.flush()
    return cycle


def unfinished_cycle(session: Session) -> Cycle | None:
    """The oldest cycle that is requested or running."""
    return session.scalar(select(Cycle).where(Cycle.state.in_(UNFINISHED)).order_by(Cycle.id).limit(1))


def cancel_cycle(session: Session, cycle_id: int, actor: str) -> Cycle:
    """Mark an unfinished cycle cancelled; its worker ends the running stage within seconds and starts no other."""
    cycle = session.get(Cycle, cycle_id, with_for_update=True, populate_existing=True)
    if cycle is None:
        raise NotFound(gettext("there is no cycle %(cycle_id)s", cycle_id=cycle_id))
    if cycle.state in UNFINISHED:
        cycle.state, cycle.outcome, cycle.finished_at = "cancelled", f"cancelled by {actor}", utcnow()
        tell_finished(session, cycle)
    return cycle


def reopen_cycle(session: Session, cycle_id: int) -> Cycle:
    """Take a failed cycle up again; it goes on from its last finished stage.

    Raises:
        Conflict: it did not fail, or another one is unfinished.
    """
    cycle = session.get(Cycle, cycle_id)
    if cycle is None:
        raise NotFound(gettext("there is no cycle %(cycle_id)s", cycle_id=cycle_id))
    if cycle.state != "failed" or unfinished_cycle(session) is not None:
        raise Conflict(
            gettext(
                "cycle %(cycle_id)s is %(state)s; only a failed one is taken up again, and only while none is unfinished",
                cycle_id=cycle_id,
                state=cycle.state,
            )
        )
    cycle.state, cycle.outcome, cycle.finished_at = "requested", None, None
    return cycle


def new_judgments(session: Session, *, include_simulated: bool) -> int:
    """How many judgments that count are new since the last snapshot was taken.

    One that no snapshot will ever hold (a tie, say) is new until then only: else it would ask for rounds for ever.
    """
    later = aliased(Judgment)
    query = select(func.count(Judgment.id)).where(
        Judgment.id.not_in(select(SnapshotJudgment.judgment_id)),
        Judgment.id.not_in(select(later.supersedes_id).where(later.supersedes_id.is_not(None))),
        Judgment.surplus.is_(False),
    )
    last = session.scalar(select(func.max(StageRun.started_at)).where(StageRun.name == "snapshot"))
    if last is not None:
        query = query.where(Judgment.created_at > last)
    if not include_simulated:
        query = query.where(Judgment.simulated.is_(False))
    return session.scalar(query) or 0


def run_cycle(db: Database, settings: Settings, run_stage: RunStage) -> Cycle | None:
    """Run the oldest unfinished cycle to its end and return it; None when there is none.

    Raises:
        Conflict: another worker holds the lease.
    """
    with HeldLease(db, LEASE, settings.cycle_lease_s) as lease:
        with db.session() as session:
            cycle = unfinished_cycle(session)
            if cycle is None:
                return None
            cycle.state = "running"
            cycle.started_at = cycle.started_at or utcnow()
            cycle_id, stages = cycle.id, list(cycle.settings["stages"])
        try:
            for name in stages:
                if cancelled(db, cycle_id):
                    break
                if not stage_done(db, cycle_id, name):
                    log.info("cycle %d: %s", cycle_id, name)
                    run_stage(cycle_id, name, lease)
            _finish(db, cycle_id, "done", f"finished: {', '.join(stages)}")  # a round that was to promote has its end
        except LeaseLost:
            raise
        except Cancelled:
            log.info("cycle %d: %s was ended, the cycle is cancelled", cycle_id, name)
        except DunnockError as error:
            log.error("cycle %d failed in %s: %s", cycle_id, name, error.message)
            _finish(db, cycle_id, "failed", f"{name}: {error.message}")
        with db.read() as session:
            return session.get_one(Cycle, cycle_id)


def stage_done(db: Database, cycle_id: int, name: str) -> bool:
    """Whether this stage finished in an earlier attempt."""
    with db.read() as session:
        found = session.scalar(select(StageRun.state).where(StageRun.cycle_id == cycle_id, StageRun.name == name))
        return found == "done"


def cancelled(db: Database, cycle_id: int) -> bool:
    """Whether somebody cancelled this cycle."""
    with db.read() as session:
        return session.scalar(select(Cycle.state).where(Cycle.id == cycle_id)) == "cancelled"


def _finish(db: Database, cycle_id: int, state: str, outcome: str) -> None:
    with db.session() as session:
        cycle = session.get_one(Cycle, cycle_id, with_for_update=True)
        if cycle.state in UNFINISHED:
            cycle.state, cycle.outcome, cycle.finished_at = state, outcome, utcnow()
            tell_finished(session, cycle)


def finish_cycle(session: Session, cycle_id: int, state: str, outcome: str) -> None:
    """Set the end of a cycle in the caller's transaction, so that it stands or falls with what decided it."""
    cycle = session.get_one(Cycle, cycle_id, with_for_update=True)
    if cycle.state == "cancelled":
        raise Cancelled("the cycle was cancelled")
    cycle.state, cycle.outcome, cycle.finished_at = state, outcome, utcnow()
    tell_finished(session, cycle)


class StageRecord:
    """The row of one stage while it runs: progress and steps at most once a second, time and peak memory at its end.

    Attributes:
        beside: what else records the stage while it runs; close the record where there is any.
        attempt: which one this is, from 1.
    """

    def __init__(self, db: Database, cycle_id: int, name: str, check: Callable[[], None] = lambda: None) -> None:
        """Begin, or begin again; `check` raises where the stage should stop."""
        self.db, self.cycle_id, self.name, self.check = db, cycle_id, name, check
        self.beside: Beside | None = None
        self.began = self._told = time.monotonic()
        self.before_s = 0.0  # of earlier attempts, as far as they told
        self._before_energy: dict[str, Any] | None = None
        self._steps: list[Row] = []  # told and not written yet
        with db.session() as session:
            row, before = self._row(session), (0.0, 0.0)
            if row is None:
                row = StageRun(cycle_id=cycle_id, name=name)
                session.add(row)
            else:
                self.before_s, self._before_energy = row.seconds, row.energy
                before = (row.seconds, row.progress)
                row.state, row.error, row.attempts, row.started_at = "running", None, row.attempts + 1, utcnow()
            self.attempt = row.attempts or 1
            self._pace = Pace(self.began, before=before, last_s=_took_last(session, name))
            row.left_s, row.told_at = self._pace.guess(self.began, before[1]), utcnow()

    def progress(self, done_frac: float, note: str, rows: Sequence[Row] = ()) -> None:
        """Tell how far the stage is and what its steps were; raises LeaseLost or Cancelled when it should stop."""
        self.check()
        self._steps.extend(rows)
        if rows and self.beside is not None:
            self.beside.tell(rows)
        now = time.monotonic()
        if now - self._told < 1.0 and done_frac < 1.0:
            return
        self._told = now
        with self.db.session() as session:
            row = self._row(session)
            if row is None or session.get_one(Cycle, self.cycle_id).state == "cancelled":
                raise Cancelled("the cycle was cancelled")
            row.progress, row.note = done_frac, note
            row.left_s, row.told_at = self._pace.left_s(now, done_frac), utcnow()
            self._write(session, row)

    def done(self, session: Session, result: dict[str, Any], peak_mb: float) -> None:
        """Mark the stage done in the caller's transaction, together with what it made."""
        row = self._row(session)
        assert row is not None
        row.state, row.progress, row.result, row.finished_at = "done", 1.0, result, utcnow()
        row.peak_mb = max(row.peak_mb, peak_mb)
        self._write(session, row)

    def failed(self, error: str) -> None:
        """Mark the stage failed, with its reason."""
        with self.db.session() as session:
            row = self._row(session)
            if row is not None and row.state == "running":
                row.state, row.error, row.finished_at = "failed", error, utcnow()
                self._write(session, row)

    def close(self) -> None:
        """End what runs beside the stage, and write down what became of it."""
        trackers = self.beside.close() if self.beside is not None else []
        if trackers:
            with self.db.session() as session:
                row = self._row(session)
                if row is not None:
                    row.trackers = trackers

    def _write(self, session: Session, row: StageRun) -> None:
        """What has gathered since the last time: seconds, energy and steps. Steps that are told again replace what was."""
        row.seconds = self.before_s + time.monotonic() - self.began
        if self.beside is not None:
            row.energy = added(self._before_energy, self.beside.energy())
        by_part: dict[str, dict[int, Row]] = {}
        for told in self._steps:
            by_part.setdefault(told.get("part", ""), {})[int(told["step"])] = told
        for part, steps in by_part.items():
            mine = (StageStep.stage_run_id == row.id, StageStep.part == part)
            session.execute(delete(StageStep).where(*mine, StageStep.step >= min(steps)))
            values = [
                {"stage_run_id": row.id, "part": part, "step": step, "figures": _figures(told)}
                for step, told in steps.items()
            ]
            session.execute(insert(StageStep), values)
        self._steps.clear()

    def _row(self, session: Session) -> StageRun | None:
        return session.scalar(select(StageRun).where(StageRun.cycle_id == self.cycle_id, StageRun.name == self.name))


def stage_killed(db: Database, cycle_id: int, name: str, error: str) -> None:
    """Mark a stage failed whose process was ended and could not do it; what it told stays."""
    with db.session() as session:
        query = select(StageRun).where(
            StageRun.cycle_id == cycle_id, StageRun.name == name, StageRun.state == "running"
        )
        row = session.scalar(query)
        if row is not None:
            row.state, row.error, row.finished_at = "failed", error, utcnow()


def still_of(session: Session, cycle: Cycle) -> float | None:
    """Seconds that an unfinished cycle still takes: its running stage's estimate, and for stages to come what they took in the
    last round that finished them. None where one of these is not known.
    """
    if cycle.state != "running":
        return None
    runs = {run.name: run for run in session.scalars(select(StageRun).where(StageRun.cycle_id == cycle.id))}
    total = 0.0
    for name in cycle.settings.get("stages", []):
        run = runs.get(name)
        if run is not None and run.state == "done":
            continue
        seconds = run.still_s() if run is not None else _took_last(session, name)
        if seconds is None:
            return None
        total += seconds
    return total


def _took_last(session: Session, name: str) -> float | None:
    """Seconds that this stage took in the newest round that finished it."""
    last = select(StageRun.seconds).where(StageRun.name == name, StageRun.state == "done")
    return session.scalar(last.order_by(StageRun.id.desc()).limit(1))


def _figures(row: Row) -> dict[str, Any]:
    """A step's numbers as JSON holds them, None where one is not finite."""
    kept = {k: v for k, v in row.items() if k not in ("step", "part") and isinstance(v, int | float)}
    return {k: v if math.isfinite(v) else None for k, v in kept.items()}


class Onlooker(StageRecord):
    """The record of a rank that is not the main one: it tells nothing but its own failure, where that is the first."""

    def __init__(self, db: Database, cycle_id: int, name: str) -> None:
        self.db, self.cycle_id, self.name, self.beside = db, cycle_id, name, None
        self.began, self.before_s = time.monotonic(), 0.0
        self._before_energy, self._steps = None, []

    def progress(self, done_frac: float, note: str, rows: Sequence[Row] = ()) -> None:
        """Nothing: the main rank tells, and ends all when it should stop."""

    def done(self, session: Session, result: dict[str, Any], peak_mb: float) -> None:
        """Nothing: the main rank registers what was made."""
