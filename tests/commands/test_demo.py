"""`make demo` with the real base model, killed with -9 in every stage and started again: nothing is lost or doubled."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from core.db import Database
from core.settings import Settings
from feedback.models import Completion, Judgment, Snapshot, Task
from finetune.cycle import DEMO_STAGES
from finetune.models import Cycle, StageRun
from policy.models import GateReport, PolicyVersion, Promotion
from reward.models import RewardModel

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 24  # of each suite; a small round
STAGE_LIMIT_S = 600.0
KILLED_AT = {"collect": 0.4, "reward": 0.3, "update": 0.5, "gate": 0.3}
"""Share of a stage that is done when it is killed; the others are killed when they are seen to run."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def state_of(database: Database, stage: str) -> str | None:
    with database.read() as session:
        return session.scalar(select(StageRun.state).where(StageRun.name == stage))


@pytest.mark.slow
def test_a_demo_killed_in_every_stage_goes_on_and_doubles_nothing(tmp_path: Path) -> None:
    ports = {"DUNNOCK_WEB_PORT": free_port(), "DUNNOCK_ENGINE_PORT": free_port()}
    environment = {
        **os.environ,
        **{name: str(port) for name, port in ports.items()},
        "DUNNOCK_VAR_DIR": str(tmp_path),
        "DUNNOCK_DATABASE_URL": "",  # whatever a developer's own .env says
        "DUNNOCK_ENGINE_URL": "",
        "DUNNOCK_BASE_MODEL": "",
        "DUNNOCK_SUITES_DIR": "",
        "DUNNOCK_COLLECT__PROMPTS_PER_SUITE": str(PROMPTS),
        "DUNNOCK_GATE__SUITE_LIMIT": "16",
        "DUNNOCK_UPDATE__EPOCHS": "1",
        "DUNNOCK_UPDATE__SAVE_STEPS": "2",
        "DUNNOCK_REWARD__SAVE_STEPS": "1",
    }
    database = Database(Settings(_env_file=None, var_dir=tmp_path).db_url)
    log = (tmp_path / "demo.log").open("w")

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "commands.demo"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    killed = []
    for stage in DEMO_STAGES:
        demo = start()
        try:
            until = time.monotonic() + STAGE_LIMIT_S
            while not (tmp_path / "dunnock.db").exists() or _not_there_yet(database, stage):
                assert demo.poll() is None, (tmp_path / "demo.log").read_text()[-3000:]
                assert time.monotonic() < until, f"{stage} did not begin"
                time.sleep(0.01)
            if state_of(database, stage) == "running":
                killed.append(stage)
        finally:
            demo.send_signal(signal.SIGKILL)
            demo.wait()
        until = time.monotonic() + 30
        while any(answers(port) for port in ports.values()):  # engine and web end with the demo
            assert time.monotonic() < until, "a killed demo left somebody on its ports"
            time.sleep(0.1)
    demo = start()
    try:
        code = demo.wait(2 * STAGE_LIMIT_S)
    finally:
        demo.kill()
        demo.wait()
        log.close()

    assert code in (0, 1), (tmp_path / "demo.log").read_text()[-3000:]
    assert len(killed) >= len(DEMO_STAGES) - 1, killed  # the last stage may be over before it is seen
    report = json.loads((tmp_path / "reports" / "demo.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == list(DEMO_STAGES)
    with database.read() as session:

        def count(model: type) -> int:
            return session.scalar(select(func.count()).select_from(model)) or 0

        cycle = session.scalars(select(Cycle)).one()
        assert cycle.state == report["state"] == ("promoted" if code == 0 else "refused")
        assert set(session.scalars(select(StageRun.state))) == {"done"}
        assert count(Task) == count(Judgment) == 2 * PROMPTS
        collected = select(func.count(Completion.id)).where(Completion.once.like("cycle:%"))  # others answer the demo
        assert session.scalar(collected) == 4 * PROMPTS  # the policy's own, and a refusal set against each
        assert count(Snapshot) == count(RewardModel) == count(GateReport) == 1
        assert count(PolicyVersion) == 2  # the base and the candidate
        assert count(Promotion) == (2 if code == 0 else 1)
    database.dispose()


def _not_there_yet(database: Database, stage: str) -> bool:
    """Whether a stage is still to be waited for; a database that is not migrated yet has none."""
    try:
        with database.read() as session:
            row = session.execute(select(StageRun.state, StageRun.progress).where(StageRun.name == stage)).first()
    except OperationalError:
        return True
    return row is None or (row.state != "done" and row.progress < KILLED_AT.get(stage, 0.0))
