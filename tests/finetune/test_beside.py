"""A stage in a process of its own, with a tiny base: its steps stand in the database and in MLflow, a tracker that fails ends
nothing, and the energy that was measured is kept.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database
from core.settings import Settings
from finetune.cycle import request_cycle, run_cycle
from finetune.models import StageRun, StageStep
from finetune.runner import in_own_process
from tests.conftest import ROOT
from tests.finetune.test_reward_stage import SMALL, judge_pairs
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def environment(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a stage's process is to see: the test's database and folder, a tiny base, trackers."""
    found = {
        "DUNNOCK_DATABASE_URL": settings.db_url, "DUNNOCK_VAR_DIR": str(settings.var_dir), "DUNNOCK_DEVICE": "cpu",
        "DUNNOCK_BASE_MODEL": str(make_tiny_base(tmp_path / "base")), "OMP_NUM_THREADS": "1",
        "DUNNOCK_TRACKING__REPORT_TO": "mlflow,no_such_tracker", "DUNNOCK_ENERGY__COUNTRY": "DEU",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }  # fmt: skip
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_a_stage_in_its_own_process_is_recorded_beside(
    database: Database, settings: Settings, environment: dict[str, str]
) -> None:
    import mlflow

    judge_pairs(database)
    with database.session() as session:
        overrides: dict[str, dict[str, Any]] = {**SMALL, "reward": SMALL["reward"] | {"epochs": 2.0}}
        request_cycle(session, settings, "manual", stages=("snapshot", "reward"), overrides=overrides)
    cycle = run_cycle(database, settings, in_own_process(database, settings))
    assert cycle is not None
    assert cycle.state == "done", cycle.outcome

    with database.read() as session:
        run = session.scalars(select(StageRun).where(StageRun.name == "reward")).one()
        steps = session.scalars(select(StageStep).order_by(StageStep.step)).all()
    log = (run.result or {})["log"]
    assert [(s.part, s.step, s.figures["loss"]) for s in steps] == [("preference", r["step"], r["loss"]) for r in log]
    told, unknown = run.trackers or []
    assert told == {"name": "mlflow", "steps": len(log), "told": len(log), "problem": ""}
    assert "no_such_tracker" in unknown["problem"]

    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == "dunnock"])
    assert found.info.run_name == f"cycle {cycle.id} reward, attempt 1"
    assert found.data.params["reward.epochs"] == "2.0"
    history = client.get_metric_history(found.info.run_id, "preference/loss")
    assert [m.value for m in history] == pytest.approx([row["loss"] for row in log])
    assert sorted(p.name for p in (settings.var_dir / "tracking").iterdir()) == ["mlflow.log", "no_such_tracker.log"]


def test_nothing_runs_on_when_a_stage_is_killed(environment: dict[str, str], tmp_path: Path) -> None:
    """Meter and tracker hang on the stage's process alone: they end with it, though nobody told them to."""
    code = (
        "import os, sys; from core.settings import get_settings; from finetune.beside import Beside;"
        " beside = Beside(get_settings(), 'a run', {'update': {'beta': 0.1}}); beside.tell([{'step': 1, 'loss': 0.5}]);"
        " print(beside._meter._sidecar.process.pid, *(t._sidecar.process.pid for t in beside._trackers), flush=True);"
        " os.kill(os.getpid(), 9)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=os.environ | environment, capture_output=True
    )
    assert child.returncode == -9
    left = [int(pid) for pid in child.stdout.split()]
    assert len(left) == 3
    assert all(_ends(pid) for pid in left)


def _ends(pid: int) -> bool:
    """Whether this process ends within a minute."""
    for _ in range(600):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False
