"""How processes log."""

import json
import logging
import subprocess
import sys
from pathlib import Path

from core.logs import JsonLines
from tests.conftest import ROOT


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("dunnock.x", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(more)
    return made


def test_a_record_is_one_line_whatever_stands_in_it() -> None:
    line = JsonLines().format(record("a\nb %s", "é\u2028"))
    assert "\n" not in line
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == ("WARNING", "dunnock.x", "a\nb é\u2028")
    assert said["time"].endswith("+00:00")


def test_an_error_comes_with_its_traceback_and_fields_with_theirs() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info(), told={"status": 500, "path": Path("a")})
    said = json.loads(JsonLines().format(made))
    assert (said["error"], said["status"], said["path"]) == ("ValueError", 500, "a")
    assert "ValueError: x" in said["traceback"]


def test_a_process_logs_as_it_is_set(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from core.logs import configure; from core.settings import Settings\n"
        "configure(Settings(_env_file=None, log_format=sys.argv[1]))\n"
        "logging.getLogger('uvicorn.error').warning('a'); logging.getLogger('dunnock').info('b')\n"
        "logging.getLogger('httpx').info('c')"
    )
    said = {
        form: subprocess.run(
            [sys.executable, "-c", code, form], cwd=ROOT, capture_output=True, text=True, check=True
        ).stderr.splitlines()
        for form in ("json", "text")
    }
    assert [(json.loads(line)["logger"], json.loads(line)["message"]) for line in said["json"]] == [
        ("uvicorn.error", "a"), ("dunnock", "b"),
    ]  # fmt: skip
    assert [line.split(" ", 2)[2] for line in said["text"]] == ["WARNING uvicorn.error: a", "INFO dunnock: b"]
