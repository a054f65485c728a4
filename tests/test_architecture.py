"""The house stands: import rules, a web process without torch, and nobody who leans on `app` or on the tests."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
NOT_OURS = {"var", "node_modules", "build", "dist"}

pytestmark = pytest.mark.timeout(300)


def sources() -> Iterator[Path]:
    """All Python files of the repository."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if not any(part.startswith(".") or part in NOT_OURS or part == "site-packages" for part in parts):
            yield path


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_contracts() -> None:
    done = run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    kept, broken = re.search(r"Contracts: (\d+) kept, (\d+) broken", done.stdout).groups()
    assert int(kept) >= 5
    assert int(broken) == 0


def test_the_web_process_imports_no_torch() -> None:
    code = f"import sys, app; print([m for m in {HEAVY!r} if m in sys.modules], app.create_app.__name__)"
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[] create_app", done.stderr


def test_the_worker_and_the_stages_import_torch_only_when_they_train() -> None:
    """So a worker that waits is small, and what is wrong with a round is said before seconds of importing."""
    names = "finetune.worker, finetune.stages, finetune.weighted_dpo, reward.members, reward.service"
    done = run(sys.executable, "-c", f"import sys, {names}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_imports_app_or_tests() -> None:
    files = list(sources())
    assert ROOT / "app.py" in files
    assert len(files) > 100
    free = {"tests", "commands"}
    leaning = {
        str(path.relative_to(ROOT)): names
        for path in files
        if path.relative_to(ROOT).parts[0] not in free and (names := imported(path) & {"app", "tests"})
    }
    assert leaning == {}


def test_only_settings_and_starters_read_the_environment() -> None:
    reading = {
        str(path.relative_to(ROOT))
        for path in sources()
        if path.relative_to(ROOT).parts[0] not in {"tests", "commands"}
        and re.search(
            r"\bos\.(?:getenv|environ(?:\.get|\[))|__import__\(\"os\"\)\.environ", path.read_text(encoding="utf-8")
        )
    }
    assert reading == set(), "settings come from core/settings alone"
