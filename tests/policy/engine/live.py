"""A live engine in this process: the real decoder and the real server on a free port, with a tiny model.

`kind` says which: the embedded one, or llama.cpp, with everything in fp32 so that its texts are those of transformers.
"""

import socket
import threading
from pathlib import Path
from typing import Any, Literal

from policy.engine.base import load_base
from policy.engine.decoder import Decoder
from policy.engine.server import create_engine_app, serve
from tests.tiny import CONTEXT_TOKENS

Kind = Literal["transformers", "gguf"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_decoder(kind: Kind, base: Path) -> Any:
    """A decoder of either kind over a tiny base; the file of llama.cpp is kept beside the base's folder."""
    if kind == "transformers":
        return Decoder(load_base(base, "cpu"), max_rows=16)
    from policy.gguf.base import load_gguf_base
    from policy.gguf.decoder import GgufDecoder
    from policy.gguf.llama import LlamaSettings

    loaded = load_gguf_base(base, base.parent / "cache", "f32", CONTEXT_TOKENS)
    return GgufDecoder(loaded, LlamaSettings(slots=8, slot_tokens=CONTEXT_TOKENS, threads=1, exact=True))


class LiveEngine:
    """Starts, stops and starts again on one port; a new start knows no adapters, as a new process would."""

    def __init__(self, base: Path, artifact_dir: Path, threads: int = 16, kind: Kind = "transformers") -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.decoder: Any
        self.kind = kind
        self._base = base
        self._artifact_dir = artifact_dir
        self._threads = threads
        self._server: Any = None

    def start(self) -> "LiveEngine":
        self.decoder = make_decoder(self.kind, self._base)
        self._server = serve(create_engine_app(self.decoder, self._artifact_dir), self.port, self._threads)
        self._thread = threading.Thread(target=self._server.run, name="engine-server", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        self.decoder.close()
        server.trigger.pull_trigger(lambda: server.asyncore.close_all(server._map, ignore_all=True))
        self._thread.join(10)
        assert not self._thread.is_alive()
        server.task_dispatcher.shutdown()
