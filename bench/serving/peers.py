"""What else answers OpenAI's chat calls: LiteLLM's proxy in front of an engine, and `transformers serve`."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench import tools
from bench.serving.installed import free_port
from bench.tools import NotDone

LITELLM = ("litellm[proxy]==1.105.7",)
START_S = 240.0


@contextmanager
def litellm(folder: Path, upstream: str) -> Iterator[tuple[str, dict[str, str]]]:
    """LiteLLM's proxy: its URL, and versions. One worker, no database, as its guide starts it.

    Raises:
        NotDone: it cannot be installed or does not start here.
    """
    home = tools.environment("litellm", LITELLM)
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: base\n    litellm_params:\n      model: openai/base\n"
        f"      api_base: {upstream}\n      api_key: none\n"
        "general_settings:\n  master_key: sk-bench\nlitellm_settings:\n  telemetry: false\n",
        encoding="utf-8",
    )
    port = free_port()
    command = [str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with _process(command, folder / "litellm.log", f"http://127.0.0.1:{port}/health/liveliness"):
        yield f"http://127.0.0.1:{port}/v1", tools.versions(home, ("litellm",))


@contextmanager
def transformers_serve(folder: Path, model: Path) -> Iterator[str]:
    """`transformers serve` of merged weights in fp32: its URL.

    Raises:
        NotDone: it does not start here.
    """
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--device", "cpu",
    ]  # fmt: skip
    with _process(command, folder / "transformers.log", f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def _process(command: list[str], log: Path, health: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + START_S
            while not _answers(health):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotDone(f"{command[0]} is not up: {log.read_text(errors='replace')[-800:]}")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
