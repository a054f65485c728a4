"""Bringing a database up to date, as `make run` and `make demo` begin."""

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from core.db import Database
from core.settings import Settings
from feedback.rules.store import active_rules
from policy.models import PolicyVersion
from tests.conftest import ROOT
from tests.tiny import make_tiny_base

PREPARE = """
from commands.database import prepare
from core.db import Database
from core.settings import get_settings
settings = get_settings()
prepare(Database(settings.db_url), settings)
"""


def test_a_first_run_in_a_process_that_imports_nothing_else(settings: Settings, tmp_path: Path) -> None:
    """Twice: the second one finds all that the first one made."""
    base = make_tiny_base(tmp_path / "base")
    given = {"DUNNOCK_VAR_DIR": str(settings.var_dir), "DUNNOCK_BASE_MODEL": str(base)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PREPARE],
            cwd=ROOT,
            env=os.environ | given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    with Database(settings.db_url).read() as session:
        assert session.scalars(select(PolicyVersion.name)).all() == ["base"]
        assert len(active_rules(session)) > 20
