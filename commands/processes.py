"""Starting and ending the processes of one machine: engine, guard, web, worker."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from core.children import COMPUTE, die_with_parent
from core.errors import ArtifactError, Conflict, EngineError
from core.settings import Settings
from policy.base import base_model_path
from reward.guard.encoder import encoder_path
from serving.metrics import SHARED

ROOT = Path(__file__).resolve().parent.parent
ENGINE_START_S = 120.0
WEB_START_S = 30.0
ENGINE_MODULES = {"transformers": "policy.engine.server", "gguf": "policy.gguf.server"}


@dataclass
class Child:
    """A process of ours, its log, and what is different in its environment."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    restarts: int = 0

    def start(self) -> None:
        """Start it in a process group of its own, output appended to its log; it ends when this process is gone."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | self.environment, preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
            )  # fmt: skip

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self, grace_s: float = 10.0) -> None:
        """End it: SIGTERM, then SIGKILL to its group."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def end_children_on_sigterm() -> None:
    """Let a SIGTERM end this process as an exit does, so that `finally` stops what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def engine(settings: Settings) -> Child:
    """The engine of this machine: the embedded one, or llama.cpp."""
    command = [sys.executable, "-m", ENGINE_MODULES[settings.engine]]
    unset = {name: value for name, value in COMPUTE.items() if name not in os.environ}
    return Child("engine", command, settings.var_dir / "logs" / "engine.log", environment=unset)


def web(settings: Settings, factory: str = "app:create_gateway") -> Child:
    """The web process under uvicorn."""
    command = [
        sys.executable, "-m", "uvicorn", "--factory", factory, "--host", settings.host, "--port", str(settings.web_port),
        "--workers", str(settings.web_workers), "--loop", "uvloop", "--http", "httptools", "--timeout-graceful-shutdown", "5",
        "--no-proxy-headers", "--no-server-header", "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    environment = {}
    if settings.web_workers > 1:
        environment[SHARED] = str(_emptied(settings.var_dir / "metrics"))
    return Child("web", command, settings.var_dir / "logs" / "web.log", environment=environment)


def _emptied(folder: Path) -> Path:
    """A folder without what processes of before left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def worker(settings: Settings) -> Child:
    """The worker."""
    return Child("worker", [sys.executable, "-m", "finetune.worker"], settings.var_dir / "logs" / "worker.log")


def guard(settings: Settings) -> Child:
    """The guard's model."""
    command = [sys.executable, "-m", "reward.guard_server"]
    unset = {name: value for name, value in COMPUTE.items() if name not in os.environ}
    return Child("guard", command, settings.var_dir / "logs" / "guard.log", environment=unset)


def guard_is_wanted(settings: Settings) -> bool:
    """Whether the guard's process is to run: it is not turned off, and its encoder is there."""
    if settings.guard.model == "off":
        return False
    try:
        encoder_path(settings)
    except ArtifactError as error:
        print(f"The guard's model is not started: {error.message}", file=sys.stderr, flush=True)
        return False
    return True


def scoring(settings: Settings) -> Child:
    """The reward model that tells the best of several completions."""
    command = [sys.executable, "-m", "reward.score_server", str(base_model_path(settings))]
    unset = {name: value for name, value in COMPUTE.items() if name not in os.environ}
    return Child("scoring", command, settings.var_dir / "logs" / "scoring.log", environment=unset)


def answers(url: str) -> bool:
    """Whether a GET of this URL gives 200."""
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(name: str, host: str, port: int, setting: str) -> None:
    """Make sure that nobody listens where a process of ours is to listen.

    Raises:
        Conflict: something does; what answers there later would not be ours.
    """
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex((host, port)) == 0:
            raise Conflict(f"Port {port} is taken, perhaps by another {name}; end it or set {setting}.")


def engine_is_up(settings: Settings) -> bool:
    """Whether an engine answers on our port.

    Raises:
        Conflict: it is the embedded engine of another folder, which would load none of our adapters.
    """
    try:
        answer = httpx.get(engine_health_url(settings), timeout=2)
        theirs = answer.json()["artifact_dir"] if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False  # nobody, or something that is no engine of ours
    if theirs is not None and Path(theirs) != settings.artifact_dir:
        raise Conflict(
            f"Port {settings.engine_port} is taken by the engine of {theirs}; end it or set DUNNOCK_ENGINE_PORT."
        )
    return theirs is not None


def engine_health_url(settings: Settings) -> str:
    """Where the embedded engine or a vLLM server says that it is up."""
    return settings.engine_base_url.removesuffix("/v1") + "/health"


def health_url(child: Child, settings: Settings) -> str:
    """Where a process that serves says that it is up."""
    if child.name == "engine":
        return engine_health_url(settings)
    beside = {"guard": settings.guard.base_url, "scoring": settings.best_of.base_url}
    return (
        f"{beside[child.name]}/health"
        if child.name in beside
        else f"http://{settings.host}:{settings.web_port}/healthz"
    )


def wait_ready(child: Child, url: str, limit_s: float, tick: Callable[[], None] = lambda: None) -> None:
    """Wait until `url` answers.

    Raises:
        EngineError: the process ended, or was not ready in time; the message holds the end of its log.
    """
    deadline = time.monotonic() + limit_s
    while not answers(url):
        if not child.alive() or time.monotonic() > deadline:
            state = "is not ready in time" if child.alive() else "ended"
            tail = child.log.read_text(errors="replace")[-1500:] if child.log.exists() else ""
            raise EngineError(f"the {child.name} {state}; the end of {child.log}:\n{tail}")
        tick()
        time.sleep(0.2)
