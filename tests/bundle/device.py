"""A device for the tests: it serves a bundle as `make serve-bundle` does, asks it what it is told to, and prints what came.

python -m tests.bundle.device FILE PUBLIC VAR          with `unshare -rn` before it, without any network but loopback
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from tests.commands.test_processes import free_port

UP, SET_FLAGS = 1, 0x8914  # IFF_UP, SIOCSIFFLAGS
MODERATED = "bread and the wren that is safe."
KEY = "a-key-of-the-device-that-is-long-enough"


def loopback_up() -> None:
    """A new network namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))


def reaches_a_network() -> bool:
    """Whether a packet to another host finds a way out at all; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))
        except OSError:
            return False
    return True


def asked(client: openai.OpenAI, port: int) -> dict[str, Any]:
    """What is served, whole and streamed."""
    messages: Any = [{"role": "user", "content": "How do I keep a dunnock safe?"}]
    wanted: Any = {"model": "dunnock", "messages": messages, "max_tokens": 16, "temperature": 0.0}
    reply = client.chat.completions.create(**wanted)
    pieces = [
        c.choices[0].delta.content or "" for c in client.chat.completions.create(**wanted, stream=True) if c.choices
    ]
    said = client.post("/feedback", cast_to=object, body={"completion_id": reply.id, "thumbs": "down"})
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}")
    return {
        "models": [model.id for model in client.models.list()],
        "model": reply.model, "text": reply.choices[0].message.content, "stream": "".join(pieces),
        "guard": reply.choices[0].model_extra, "feedback": said,
        "moderation": client.post("/moderations", cast_to=object, body={"input": MODERATED}),
        "statuses": {path: http.get(path).status_code for path in ("/", "/sign-in", "/rules", "/metrics", "/language", "/static/x", "/v1/models")},
        "ready": http.get("/readyz").json(),
    }  # fmt: skip


def main() -> None:
    """Serve, ask, end the guard's process, ask again, end."""
    file, public, var = sys.argv[1:4]
    if "--alone" in sys.argv:
        loopback_up()
    found: dict[str, Any] = {"network": reaches_a_network()}
    port, key = free_port(), Path(var) / "key"
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(KEY)
    command = [
        sys.executable,
        "-m",
        "commands.serve_bundle",
        file,
        "--key",
        public,
        "--port",
        str(port),
        "--api-key-file",
        str(key),
    ]
    served = subprocess.Popen(command, env=os.environ | {"DUNNOCK_VAR_DIR": var}, stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        lines = []
        for line in served.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        found["said"] = "".join(lines)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
        found |= asked(client, port)
        guard = next(p for p in psutil.Process(served.pid).children() if "reward.guard_server" in p.cmdline())
        guard.kill()
        time.sleep(0.1)
        found["unguarded"] = client.chat.completions.create(
            model="dunnock", messages=[{"role": "user", "content": "And in winter?"}], max_tokens=16
        ).model_dump()["choices"][0]
    finally:
        served.send_signal(signal.SIGTERM)
        found["status"] = served.wait(60)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
