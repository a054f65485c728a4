"""Runs a stage, in a process of its own or in this one.

    python -m finetune.runner CYCLE_ID STAGE     what the worker starts for each stage

A process per stage gives memory back when the stage ends, makes peak memory a fact of the stage, and keeps
the worker alive when the system kills a stage for memory. On Linux it dies with its parent. Where `DUNNOCK_LAUNCH` is set, that
process is `accelerate launch`, and the ranks that it starts run the stage together and die with it.
"""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from core import logs
from core.children import COMPUTE, die_with_parent, end_with_parent
from core.db import Database
from core.errors import Cancelled, DunnockError, LeaseLost, StageError
from core.settings import Settings, get_settings
from finetune import launch
from finetune.beside import Beside
from finetune.context import StageContext
from finetune.cycle import Onlooker, RunStage, StageRecord, cancelled, stage_done, stage_killed
from finetune.lease import HeldLease
from finetune.models import StageRun
from policy.client import EngineClient
from training import ranks

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.25
POLLS_A_LOOK = 4  # for a cancelled cycle in the database
ATTEMPTS = 2


def in_this_process(db: Database, settings: Settings, client: EngineClient) -> RunStage:
    """A RunStage that runs stages right here; for tests and debugging."""

    def run(cycle_id: int, name: str, lease: HeldLease) -> None:
        from finetune.stages import run_stage

        record = StageRecord(db, cycle_id, name, lease.check)
        run_stage(StageContext.open(db, settings, client, cycle_id, record), name)

    return run


def in_own_process(db: Database, settings: Settings) -> RunStage:
    """A RunStage that starts a child per stage and ends it when the lease is lost or the cycle cancelled."""

    def run(cycle_id: int, name: str, lease: HeldLease) -> None:
        log_path = settings.var_dir / "logs" / f"cycle-{cycle_id}-{name}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        command = launch.command(settings, name, ["-m", "finetune.runner", str(cycle_id), name])
        for _ in range(ATTEMPTS):
            code = _run_child(db, command, cycle_id, lease, log_path)
            if cancelled(db, cycle_id):
                raise Cancelled("the cycle was cancelled")
            killed = code < 0 or (launch.LAUNCHED in command and _ended_silently(db, cycle_id, name, code))
            if not killed:  # a killed one is tried again, from its last checkpoint
                break
        if code != 0 and not stage_done(db, cycle_id, name):
            raise StageError(_reason(db, cycle_id, name, code, log_path, killed=killed))

    return run


def _run_child(db: Database, command: list[str], cycle_id: int, lease: HeldLease, log_path: Path) -> int:
    """Run one stage in a child to its end and return its exit status, negative for a signal."""
    with log_path.open("a") as out:
        child = subprocess.Popen(  # noqa: S603 (our own words)
            command, cwd=ROOT, env=COMPUTE | os.environ, stdout=out, stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
        )  # fmt: skip
        try:
            for polls in itertools.count(1):
                if child.poll() is not None:
                    break
                lease.check()
                if polls % POLLS_A_LOOK == 0 and _cancelled_as_far_as_known(db, cycle_id):
                    break
                time.sleep(POLL_S)
        finally:
            _end(child)
    return child.returncode


def _cancelled_as_far_as_known(db: Database, cycle_id: int) -> bool:
    """Whether the cycle is cancelled; a database that is away for a while ends no stage, the lease does if it stays so."""
    try:
        return cancelled(db, cycle_id)
    except DBAPIError:
        return False


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _ended_silently(db: Database, cycle_id: int, name: str, code: int) -> bool:
    """Whether a launch failed without a reason from any rank: one was killed, and the launcher ended the others."""
    return code != 0 and _row(db, cycle_id, name) == ("running", None)


def _reason(db: Database, cycle_id: int, name: str, code: int, log_path: Path, *, killed: bool) -> str:
    """Why a child failed: what it recorded, or what ended it."""
    if killed:
        ended = (
            f"its process was ended by {signal.Signals(-code).name}" if code < 0 else "one of its processes was ended"
        )
        hint = "; the system may have run out of memory" if code in (1, -signal.SIGKILL) else ""
        stage_killed(db, cycle_id, name, f"killed: {ended}")
        return f"{ended}{hint}. Log: {log_path}"
    _, error = _row(db, cycle_id, name)
    return f"{error or f'exit status {code}'}. Log: {log_path}"


def _row(db: Database, cycle_id: int, name: str) -> tuple[str | None, str | None]:
    """State and error that a stage recorded."""
    with db.read() as session:
        query = select(StageRun.state, StageRun.error).where(StageRun.cycle_id == cycle_id, StageRun.name == name)
        found = session.execute(query).one_or_none()
    return (None, None) if found is None else (found.state, found.error)


def main(argv: list[str]) -> int:
    """Run one stage of one cycle in this process, which may be one of several ranks; exit status 1 when it failed."""
    cycle_id, name = int(argv[1]), argv[2]
    settings = get_settings()
    logs.configure(settings)
    if launch.LAUNCHED in argv:
        end_with_parent(signal.SIGKILL, int(argv[argv.index(launch.LAUNCHED) + 1]))
        ranks.join(settings.device)
    db = Database(settings.db_url)
    client = EngineClient(settings.engine_base_url, settings.engine_api_key, settings.engine_timeout_s)
    from finetune.stages import run_stage

    record = (StageRecord if ranks.is_main() else Onlooker)(db, cycle_id, name)
    context = StageContext.open(db, settings, client, cycle_id, record)
    if ranks.is_main():
        record.beside = Beside(settings, f"cycle {cycle_id} {name}, attempt {record.attempt}", context.fixed)
    try:
        run_stage(context, name)
    except (LeaseLost, Cancelled):
        return 1
    except DunnockError as error:
        logging.getLogger("dunnock.stage").error("%s: %s", name, error.message)
        return 1
    finally:
        record.close()
    ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
