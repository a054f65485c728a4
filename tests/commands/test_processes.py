"""Processes are started only where nobody else answers, and a stranger's engine is not taken for ours."""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask, jsonify
from werkzeug.serving import make_server

from commands.demo import _api_client, _web_is_up
from commands.processes import Child, engine, engine_is_up, require_free
from core.db import Database
from core.errors import Conflict
from core.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a server that calls itself an engine of another folder, and knows no key of ours."""
    app = Flask("stranger")
    app.add_url_rule("/health", "health", lambda: jsonify(requests=0, artifact_dir="/elsewhere/artifacts"))
    app.add_url_rule("/v1/models", "models", lambda: (jsonify(error={"message": "no such key"}), 401))
    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_taken_port_is_told_with_the_setting_that_helps() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"Port {port} is taken.*DUNNOCK_WEB_PORT"):
            require_free("web server", "127.0.0.1", port, "DUNNOCK_WEB_PORT")
    require_free("web server", "127.0.0.1", port, "DUNNOCK_WEB_PORT")


@pytest.mark.parametrize(("kind", "module"), [("transformers", "policy.engine.server"), ("gguf", "policy.gguf.server")])
def test_the_engine_that_is_set_is_the_one_that_starts(kind: str, module: str, tmp_path: Path) -> None:
    child = engine(Settings(_env_file=None, var_dir=tmp_path, engine=kind))
    assert child.command == [sys.executable, "-m", module]


def test_the_engine_of_another_folder_is_told_and_ours_is_used(stranger: int, tmp_path: Path) -> None:
    assert not engine_is_up(Settings(var_dir=tmp_path, engine_port=free_port()))
    with pytest.raises(Conflict, match=r"engine of /elsewhere/artifacts.*DUNNOCK_ENGINE_PORT"):
        engine_is_up(Settings(var_dir=tmp_path, engine_port=stranger))
    assert engine_is_up(Settings(var_dir=Path("/elsewhere"), engine_port=stranger))


@pytest.mark.parametrize("body", ["hello", "[]", '"up"', "{}"])
def test_what_is_no_engine_is_not_taken_for_one(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, text=body))
    assert not engine_is_up(Settings(var_dir=tmp_path, engine_port=1))


def test_a_web_server_that_does_not_know_our_keys_is_told(stranger: int, database: Database, tmp_path: Path) -> None:
    settings = Settings(var_dir=tmp_path, web_port=stranger)
    with pytest.raises(Conflict, match=r"answered 401.*DUNNOCK_WEB_PORT"):
        _web_is_up(_api_client(database, f"http://127.0.0.1:{stranger}"), settings)
    port = free_port()
    assert not _web_is_up(_api_client(database, f"http://127.0.0.1:{port}"), Settings(var_dir=tmp_path, web_port=port))


def test_what_a_child_is_given_wins_over_what_is_set_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNNOCK_VAR_DIR", "ours")
    tell = [sys.executable, "-c", "import os; print(os.environ['DUNNOCK_VAR_DIR'])"]
    child = Child("teller", tell, tmp_path / "log", environment={"DUNNOCK_VAR_DIR": "its own"})
    child.start()
    assert child.process is not None
    assert child.process.wait(30) == 0
    assert (tmp_path / "log").read_text() == "its own\n"


def test_the_engine_keeps_what_somebody_set(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = engine(settings).environment
    assert "OMP_WAIT_POLICY" not in found
    assert found["MALLOC_MMAP_THRESHOLD_"] == str(2**30)
