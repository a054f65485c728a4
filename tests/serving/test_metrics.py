"""What Prometheus reads of the chat API."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from core.db import Database
from core.settings import Settings
from tests.conftest import ROOT
from tests.serving.test_guarding import SECRET, Installed


@pytest.fixture
def installed(settings: Settings, database: Database):  # type: ignore[no-untyped-def]
    found = Installed(settings, database)
    yield found
    found.stop()


def figures(installed: Installed) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Values by name and labels."""
    answer = installed.client.get("/metrics")
    assert answer.status_code == 200
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def grown(before: dict, after: dict, name: str, **labels: str) -> float:  # type: ignore[type-arg]
    key = (name, frozenset(labels.items()))
    return float(after.get(key, 0.0) - before.get(key, 0.0))


@pytest.mark.parametrize("stream", [False, True])
def test_replies_tokens_and_verdicts_are_counted(installed: Installed, stream: bool) -> None:
    before = figures(installed)
    installed.ask("a ", "b", stream=stream)
    installed.ask(f"key {SECRET}", stream=stream)
    after = figures(installed)
    assert grown(before, after, "dunnock_replies_total", version="v1", finish_reason="stop") == 1
    assert grown(before, after, "dunnock_replies_total", version="v1", finish_reason="content_filter") == 1
    assert grown(before, after, "dunnock_tokens_total", version="v1", kind="completion") >= 3
    assert grown(before, after, "dunnock_reply_seconds_count", version="v1") == 2
    assert grown(before, after, "dunnock_first_text_seconds_count") == (2 if stream else 0)
    for outcome in ("clear", "hit"):
        assert (
            grown(before, after, "dunnock_guard_verdicts_total", check="secrets", side="output", outcome=outcome) == 1
        )
    assert grown(before, after, "dunnock_guard_seconds_count", check="secrets") == 2
    assert after["dunnock_open_streams", frozenset()] == before.get(("dunnock_open_streams", frozenset()), 0.0)


def test_a_stream_is_open_until_it_is_closed(installed: Installed) -> None:
    now = ("dunnock_open_streams", frozenset())
    before = figures(installed).get(now, 0.0)
    body = {"model": "dunnock", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = installed.client.post("/v1/chat/completions", json=body, headers=installed.key)
    assert figures(installed)[now] == before + 1
    answer.close()
    assert figures(installed)[now] == before


@pytest.mark.parametrize(
    ("allowed", "address", "status"),
    [
        ("loopback", "127.0.0.1", 200),
        ("loopback", "10.0.0.1", 404),
        ("open", "10.0.0.1", 200),
        ("off", "127.0.0.1", 404),
    ],
)
def test_who_may_read_them(settings: Settings, database: Database, allowed: str, address: str, status: int) -> None:
    from app import create_app

    app: Flask = create_app(settings.model_copy(update={"metrics": allowed}), database)
    answer = app.test_client().get("/metrics", environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == status


def test_several_processes_are_added_up(tmp_path: Path) -> None:
    count = "from serving.metrics import REPLIES; REPLIES.labels('v1', 'stop').inc(2)"
    tell = (
        "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "r = CollectorRegistry(); MultiProcessCollector(r); print(generate_latest(r).decode())"
    )
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", count], env=env, check=True, cwd=ROOT)
    told = subprocess.run([sys.executable, "-c", tell], env=env, check=True, cwd=ROOT, capture_output=True, text=True)
    assert 'dunnock_replies_total{finish_reason="stop",version="v1"} 4.0' in told.stdout


def test_what_is_open_in_a_process_that_was_killed_is_forgotten(tmp_path: Path) -> None:
    code = (
        "import os, sys; from serving.metrics import OPEN, REPLIES\n"
        "if sys.argv[1] == 'dies': OPEN.inc(5); REPLIES.labels('v1', 'stop').inc(2); os._exit(0)\n"
        "OPEN.inc(); REPLIES.labels('v1', 'stop').inc()\n"
        "from app import create_app; from core.settings import Settings\n"
        "made = create_app(Settings(_env_file=None, var_dir=sys.argv[2]))\n"
        "print(made.test_client().get('/metrics').text)"
    )
    (tmp_path / "metrics").mkdir()
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "PYTHONPATH": str(ROOT)}
    for name in ("dies", "lives"):
        line = [sys.executable, "-c", code, name, str(tmp_path)]
        done = subprocess.run(line, env=env, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "dunnock_open_streams 1.0" in done.stdout
    assert 'dunnock_replies_total{finish_reason="stop",version="v1"} 3.0' in done.stdout
