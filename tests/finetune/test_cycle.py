"""Cycles: asked for once, their settings fixed, stages run once each and in order, failures written down."""

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db import Database, utcnow
from core.errors import Conflict, LeaseLost, NotFound, StageError
from core.settings import Settings, SnapshotSettings
from feedback.dataset import freeze
from feedback.models import Judgment
from finetune.cycle import (
    LEASE,
    STAGES,
    StageRecord,
    cancel_cycle,
    finish_cycle,
    new_judgments,
    request_cycle,
    run_cycle,
    stage_done,
    still_of,
)
from finetune.lease import HeldLease
from finetune.models import Cycle, Lease, StageRun, StageStep
from tests.factories import make_completion, make_pairwise_task, make_prompt

Stage = Callable[[int, str, HeldLease], None]


@pytest.fixture(params=["database", "postgres_database"])
def db(request: pytest.FixtureRequest) -> Database:
    """A migrated database, once of each kind."""
    return request.getfixturevalue(request.param)


def request(db: Database, settings: Settings, reason: str = "manual", **more: Any) -> Cycle:
    with db.session() as session:
        return request_cycle(session, settings, reason, **more)


def stages(db: Database, ran: list[str], **errors: BaseException) -> Stage:
    """A RunStage that records each stage as the real ones do, or fails as told."""

    def run(cycle_id: int, name: str, lease: HeldLease) -> None:
        ran.append(name)
        record = StageRecord(db, cycle_id, name, lease.check)
        if name in errors:
            record.failed(str(errors[name]))
            raise errors[name]
        with db.session() as session:
            record.done(session, {"name": name}, peak_mb=100.0)
            if name == "promote":
                finish_cycle(session, cycle_id, "promoted", "v1 is active")

    return run


# --- asking


def test_asking_again_gives_the_same_cycle_until_it_is_over(db: Database, settings: Settings) -> None:
    first = request(db, settings)
    again = request(db, settings, "cron", overrides={"update": {"beta": 0.5}})
    assert (again.id, again.reason, again.settings) == (first.id, "manual", first.settings)
    with db.session() as session:
        session.get_one(Cycle, first.id).state = "running"
    assert request(db, settings).id == first.id
    with db.session() as session:
        finish_cycle(session, first.id, "refused", "v1 failed: length")
    assert request(db, settings).id != first.id


def test_many_who_ask_at_once_get_one_cycle(db: Database, settings: Settings) -> None:
    start, found = threading.Barrier(8), list[int]()

    def ask() -> None:
        start.wait()
        with db.session() as session:
            found.append(request_cycle(session, settings, "cron").id)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_settings_are_fixed_when_it_is_asked_for(database: Database, settings: Settings) -> None:
    cycle = request(database, settings, overrides={"update": {"epochs": 1.5}, "gate": {"suite_limit": 3}})
    assert cycle.settings["stages"] == list(STAGES)
    assert cycle.settings["update"] == settings.update.model_dump() | {"epochs": 1.5}
    assert cycle.settings["gate"]["suite_limit"] == 3
    assert cycle.settings["reward"] == settings.reward.model_dump()
    assert (cycle.state, cycle.reason) == ("requested", "manual")


@pytest.mark.parametrize("overrides", [{"update": {"epochs": -1}}, {"update": {"epoch": 1}}])
def test_settings_that_cannot_be_are_refused_when_it_is_asked_for(
    database: Database, settings: Settings, overrides: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(ValidationError):
        request(database, settings, overrides=overrides)
    with database.read() as session:
        assert session.scalar(select(func.count(Cycle.id))) == 0


# --- counting


def judge(session: Session, number: int, choice: str = "a", **more: Any) -> Judgment:
    prompt = make_prompt(session, f"prompt{number} of{number} its{number} own{number}")
    task = make_pairwise_task(session, prompt, a="yes", b="no")
    judgment = Judgment(kind="pairwise", task_id=task.id, choice=choice, strength=2 if choice in "ab" else 0, **more)
    session.add(judgment)
    session.flush()
    return judgment


def test_judgments_are_new_until_they_stand_in_a_snapshot(session: Session, settings: Settings) -> None:
    for number in range(12):
        judge(session, number)
    assert new_judgments(session, include_simulated=False) == 12
    freeze(session, settings.artifact_dir, SnapshotSettings(heldout_frac=0.5))
    session.flush()
    assert new_judgments(session, include_simulated=False) == 0
    judge(session, 99)
    assert new_judgments(session, include_simulated=False) == 1


def test_what_never_counts_is_not_new(session: Session) -> None:
    judge(session, 1, surplus=True)
    judge(session, 2, simulated=True)
    first = judge(session, 3)
    judge(session, 3, "b", supersedes_id=first.id)  # one act, changed
    assert new_judgments(session, include_simulated=False) == 1
    assert new_judgments(session, include_simulated=True) == 2


def test_thumbs_count_too(session: Session) -> None:
    session.add(Judgment(kind="thumbs", thumbs=1, completion_id=make_completion(session).id))
    assert new_judgments(session, include_simulated=False) == 1


def test_ties_are_new_until_the_next_snapshot_only(db: Database, settings: Settings) -> None:
    """No snapshot ever holds a tie: were it new for ever, a worker would start round after round."""
    with db.session() as session:
        for number in range(3):
            judge(session, number, "tie")
    with db.read() as session:
        assert new_judgments(session, include_simulated=False) == 3
    cycle = request(db, settings)
    StageRecord(db, cycle.id, "snapshot").failed("nothing to freeze")
    with db.read() as session:
        assert new_judgments(session, include_simulated=False) == 0
    with db.session() as session:
        judge(session, 9, "tie", created_at=utcnow() + dt.timedelta(seconds=1))
        assert new_judgments(session, include_simulated=False) == 1


# --- running


def test_nothing_to_run(database: Database, settings: Settings) -> None:
    assert run_cycle(database, settings, stages(database, [])) is None


def test_stages_run_in_order_and_each_leaves_its_row(db: Database, settings: Settings) -> None:
    request(db, settings)
    ran: list[str] = []
    cycle = run_cycle(db, settings, stages(db, ran))
    assert cycle is not None
    assert ran == list(STAGES)
    assert (cycle.state, cycle.outcome) == ("promoted", "v1 is active")
    assert cycle.started_at is not None
    assert cycle.finished_at is not None
    assert cycle.started_at <= cycle.finished_at
    with db.read() as session:
        rows = session.scalars(select(StageRun).order_by(StageRun.id)).all()
    assert [(r.name, r.state, r.progress, r.attempts, r.result) for r in rows] == [
        (name, "done", 1.0, 1, {"name": name}) for name in STAGES
    ]
    assert run_cycle(db, settings, stages(db, ran)) is None  # it is over


@pytest.mark.parametrize("name", STAGES)
def test_a_failed_stage_marks_the_cycle_failed_with_its_reason(
    database: Database, settings: Settings, name: str
) -> None:
    request(database, settings)
    ran: list[str] = []
    cycle = run_cycle(database, settings, stages(database, ran, **{name: StageError("3 usable pairs")}))
    assert cycle is not None
    assert (cycle.state, cycle.outcome) == ("failed", f"{name}: 3 usable pairs")
    assert cycle.finished_at is not None
    assert ran == list(STAGES[: STAGES.index(name) + 1])
    with database.read() as session:
        row = session.scalars(select(StageRun).where(StageRun.name == name)).one()
        assert (row.state, row.error) == ("failed", "3 usable pairs")
        assert session.get_one(Cycle, cycle.id).state == "failed"
        assert session.scalars(select(Lease.holder).where(Lease.name == LEASE)).all() == [None]
    assert request(database, settings).id != cycle.id  # another can be asked for


def test_a_killed_round_goes_on_after_its_last_finished_stage(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_cycle(database, settings, stages(database, ran, update=KeyboardInterrupt()))
    with database.read() as session:
        assert session.get_one(Cycle, cycle.id).state == "running"
    assert stage_done(database, cycle.id, "reward")
    assert not stage_done(database, cycle.id, "update")
    assert not stage_done(database, cycle.id, "gate")
    ran.clear()
    done = run_cycle(database, settings, stages(database, ran))
    assert done is not None
    assert (done.id, done.state) == (cycle.id, "promoted")
    assert ran == ["update", "gate", "promote"]
    with database.read() as session:
        attempts = dict(session.execute(select(StageRun.name, StageRun.attempts)).all())
    assert attempts == {name: 2 if name == "update" else 1 for name in STAGES}


def test_a_worker_that_lost_the_lease_leaves_the_cycle_to_the_other(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    with pytest.raises(LeaseLost):
        run_cycle(database, settings, stages(database, [], reward=LeaseLost("gone")))
    with database.read() as session:
        assert session.get_one(Cycle, cycle.id).state == "running"


def test_one_cycle_runs_at_a_time(database: Database, settings: Settings) -> None:
    request(database, settings)
    ran: list[str] = []
    with HeldLease(database, "cycle", 60), pytest.raises(Conflict, match="one at a time"):
        run_cycle(database, settings, stages(database, ran))
    assert ran == []


def test_a_cycle_that_was_cancelled_stays_so(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)

    def run(cycle_id: int, name: str, lease: HeldLease) -> None:
        record = StageRecord(database, cycle_id, name, lease.check)
        with database.session() as session:
            cancel_cycle(session, cycle_id, "ana")
        record.progress(1.0, "nearly done")

    ended = run_cycle(database, settings, run)
    assert ended is not None
    assert (ended.id, ended.state, ended.outcome) == (cycle.id, "cancelled", "cancelled by ana")
    with database.session() as session:
        assert cancel_cycle(session, cycle.id, "ben").outcome == "cancelled by ana"  # the first word stays
        with pytest.raises(NotFound, match="no cycle 77"):
            cancel_cycle(session, 77, "ana")


# --- progress


def test_progress_is_written_at_its_end_and_not_at_every_step(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    record = StageRecord(database, cycle.id, "update")
    record.progress(0.5, "step 5/10")  # within the first second
    with database.read() as session:
        assert session.scalars(select(StageRun.progress)).one() == 0.0
    record.progress(1.0, "step 10/10")
    with database.read() as session:
        assert session.execute(select(StageRun.progress, StageRun.note)).one() == (1.0, "step 10/10")


def test_progress_stops_a_run_whose_lease_is_gone(database: Database, settings: Settings) -> None:
    def gone() -> None:
        raise LeaseLost("gone")

    cycle = request(database, settings)
    with pytest.raises(LeaseLost):
        StageRecord(database, cycle.id, "update", gone).progress(0.5, "step 5/10")


def test_time_and_peak_memory_are_kept_over_attempts(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    first = StageRecord(database, cycle.id, "update")
    first.began -= 10
    first.progress(1.0, "step 9/9")  # and then it is killed
    second = StageRecord(database, cycle.id, "update")
    second.began -= 5
    with database.session() as session:
        second.done(session, {}, peak_mb=300.0)
    with database.read() as session:
        row = session.scalars(select(StageRun)).one()
    assert row.seconds == pytest.approx(15, abs=4)
    assert (row.peak_mb, row.attempts, row.state, row.error) == (300.0, 2, "done", None)
    third = StageRecord(database, cycle.id, "gate")
    with database.session() as session:
        third.done(session, {}, 1.0)
    third.failed("too late")  # what is done stays done
    assert stage_done(database, cycle.id, "gate")


# --- steps, time left, and what records them


def steps_of(db: Database) -> list[tuple[str, int, dict[str, Any]]]:
    with db.read() as session:
        rows = session.scalars(select(StageStep).order_by(StageStep.part, StageStep.step))
        return [(row.part, row.step, row.figures) for row in rows]


def test_steps_are_kept_as_they_are_told(db: Database, settings: Settings) -> None:
    record = StageRecord(db, request(db, settings).id, "reward")
    record.progress(0.2, "step 1/4", [{"step": 1, "loss": 0.7, "part": "preference", "what": "text"}])
    assert steps_of(db) == []  # within the first second
    record._told -= 2
    record.progress(0.4, "step 2/4", [{"step": 2, "loss": float("nan"), "part": "preference"}])
    record.progress(0.6, "step 1/1", [{"step": 1, "loss": 0.4, "part": "rules"}])
    with db.session() as session:
        record.done(session, {}, 1.0)
    expected = [("preference", 1, {"loss": 0.7}), ("preference", 2, {"loss": None}), ("rules", 1, {"loss": 0.4})]
    assert steps_of(db) == expected


def test_a_run_that_is_taken_up_replaces_the_steps_after_its_checkpoint(db: Database, settings: Settings) -> None:
    cycle = request(db, settings)
    first = StageRecord(db, cycle.id, "update")
    first.progress(1.0, "step 5", [{"step": n, "loss": 1.0} for n in range(1, 6)])  # and then it is killed
    second = StageRecord(db, cycle.id, "update")
    second.progress(1.0, "step 3", [{"step": n, "loss": 2.0} for n in range(1, 4)])  # those of its checkpoint
    assert [(step, figures["loss"]) for _, step, figures in steps_of(db)] == [(1, 2.0), (2, 2.0), (3, 2.0)]
    second.progress(1.0, "step 4", [{"step": 4, "loss": 3.0}])
    assert [step for _, step, _ in steps_of(db)] == [1, 2, 3, 4]


def test_steps_of_a_stage_that_failed_are_kept(database: Database, settings: Settings) -> None:
    record = StageRecord(database, request(database, settings).id, "update")
    record.progress(0.2, "step 1/4", [{"step": 1, "loss": 0.7}])
    record.failed("loss is nan at step 2")
    assert steps_of(database) == [("", 1, {"loss": 0.7})]


def test_time_left_is_told_from_measured_steps_and_passes(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    with database.session() as session:
        session.get_one(Cycle, cycle.id).state = "running"
        other = Cycle(reason="manual", settings={"stages": []}, state="done")
        session.add(other)
        session.flush()
        for name, seconds in (("snapshot", 3.0), ("reward", 30.0), ("update", 60.0), ("gate", 40.0), ("promote", 1.0)):
            session.add(StageRun(cycle_id=other.id, name=name, state="done", seconds=seconds))
    record = StageRecord(database, cycle.id, "snapshot")
    with database.read() as session:
        assert session.scalars(select(StageRun).where(StageRun.cycle_id == cycle.id)).one().still_s() == pytest.approx(
            3, abs=1
        )
        assert still_of(session, session.get_one(Cycle, cycle.id)) == pytest.approx(134, abs=1)
    with database.session() as session:
        record.done(session, {}, 1.0)
    record = StageRecord(database, cycle.id, "reward")
    record._pace.left_s(record.began - 10.0, 0.1)  # a tenth takes ten seconds
    record._told -= 2
    record.progress(0.2, "step 2/10")
    with database.session() as session:
        run = session.scalars(select(StageRun).where(StageRun.cycle_id == cycle.id, StageRun.name == "reward")).one()
        assert run.still_s() == pytest.approx(80, rel=0.2)
        assert still_of(session, session.get_one(Cycle, cycle.id)) == pytest.approx(80 + 101, rel=0.2)
        run.told_at = utcnow() - dt.timedelta(seconds=1000)
        assert run.still_s() is None  # longer than was said: nothing is known


class Recorder:
    """What runs beside a stage, as far as its record asks for it."""

    def __init__(self, kwh: float) -> None:
        self.told: list[Any] = []
        self.kwh = kwh

    def tell(self, rows: Any) -> None:
        self.told += rows

    def energy(self) -> dict[str, Any]:
        return {"kwh": self.kwh, "co2_kg": self.kwh / 2, "seconds": 10.0, "watts": 1.0, "cpu": "counters (RAPL)"}

    def close(self) -> list[dict[str, Any]]:
        return [{"name": "mlflow", "steps": 1, "told": 2, "problem": "it broke"}]


def test_energy_adds_up_over_attempts_and_trackers_are_told(database: Database, settings: Settings) -> None:
    cycle = request(database, settings)
    for kwh in (0.5, 0.25):
        record = StageRecord(database, cycle.id, "update")
        record.beside = recorder = Recorder(kwh)  # type: ignore[assignment]
        record.progress(1.0, "step 1/1", [{"step": 1, "loss": 0.7}])
        record.close()
        assert recorder.told == [{"step": 1, "loss": 0.7}]
    assert record.attempt == 2
    with database.read() as session:
        run = session.scalars(select(StageRun)).one()
    assert run.energy is not None
    assert (run.energy["kwh"], run.energy["co2_kg"], run.energy["seconds"]) == (0.75, 0.375, 20.0)
    assert run.trackers == [{"name": "mlflow", "steps": 1, "told": 2, "problem": "it broke"}]
