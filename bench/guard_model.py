"""The guard's process alone: how long one text takes, and how many come through together.

    python -m bench.guard_model [--precision bfloat16] [--repeats 200]

Real encoder, a head of random weights (which costs the same), texts of 64 tokens under eight rules, the process as `make run`
starts it, callers in this process that each ask again as soon as they are answered. Prints JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from core.artifacts import hash_folder, write_json
from core.settings import get_settings
from reward.guard.encoder import CONTEXT_TOKENS, STATES_OF, Encoder, fetch_encoder
from reward.guard.fit import WIDTH
from reward.guard.student import STAGE, Student, Thresholds

PORT = 18093
TOKENS = 64
RULES = [{"name": f"rule-{k}", "text": f"Do not say anything about the {k}th of these things."} for k in range(8)]
CALLERS = (1, 8, 32)


def make_model(folder: Path, encoder: Encoder) -> None:
    """A guard's model of random weights."""
    import torch

    wide, width = STATES_OF * encoder.width, encoder.width
    shapes = {
        "U": (WIDTH, wide),
        "u": (WIDTH,),
        "A": (WIDTH, width),
        "V": (WIDTH, width),
        "S": (WIDTH, 2),
        "w": (WIDTH,),
        "b": (1,),
    }
    weights = {name: torch.randn(*shape) * 0.01 for name, shape in shapes.items()}
    student = Student(encoder, weights, 1.0, Thresholds({}, 0.9, 0.02))
    folder.mkdir(parents=True)
    student.save(folder)
    thresholds = {"by_rule": [], "common": 0.9, "false_hits_frac": 0.02}
    record = {"temperature": 1.0, "encoder_sha256": encoder.sha256, "thresholds": thresholds, "probe": student.probe()}
    write_json(folder / "run.json", {"stage": STAGE, **record})


async def measure(model: str, callers: int, repeats: int) -> dict[str, Any]:
    """Latency in ms and texts per second of so many callers."""
    text = " ".join(["dove"] * (TOKENS - CONTEXT_TOKENS - 3))  # with [CLS], two [SEP] and a full context
    item = {"context": " ".join(["wren"] * 60), "text": text, "rules": RULES}
    took: list[float] = []
    left = iter(range(repeats))

    async def caller(client: httpx.AsyncClient) -> None:
        for _ in left:
            began = time.perf_counter()
            answer = await client.post("/v1/score", json={"model": model, "items": [item]})
            answer.raise_for_status()
            took.append(1000 * (time.perf_counter() - began))

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        await client.get("/health")
        began = time.perf_counter()
        await asyncio.gather(*(caller(client) for _ in range(callers)))
        wall = time.perf_counter() - began
    p95 = sorted(took)[int(0.95 * len(took))]
    return {
        "callers": callers, "n": repeats, "p50_ms": round(statistics.median(took), 1), "p95_ms": round(p95, 1),
        "items_per_s": round(repeats / wall, 1),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    settings = get_settings()
    place = fetch_encoder(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifacts" / "guard"
        make_model(folder, Encoder(place, "cpu"))
        environment = {
            "DUNNOCK_VAR_DIR": scratch, "DUNNOCK_GUARD__PORT": str(PORT), "DUNNOCK_GUARD__PRECISION": options.precision,
            "DUNNOCK_GUARD__ENCODER": str(place),
        }  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "reward.guard_server"], env=os.environ | environment)
        try:
            url = f"http://127.0.0.1:{PORT}"
            while process.poll() is None:
                try:
                    httpx.get(f"{url}/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            body = {"path": str(folder), "sha256": hash_folder(folder)}
            model = httpx.post(f"{url}/load", json=body, timeout=60).json()["model"]
            asyncio.run(measure(model, 1, 10))
            found = [asyncio.run(measure(model, callers, options.repeats)) for callers in CALLERS]
            print(json.dumps({"precision": options.precision, "load": os.getloadavg()[0], "found": found}))
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
