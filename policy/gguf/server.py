"""The engine process with llama.cpp: the same calls, errors and rules as `policy.engine.server`.

    python -m policy.gguf.server          or DUNNOCK_ENGINE=gguf and `make run`

It converts the base model to GGUF the first time, and each adapter as it is loaded.
"""

import logging
import os
import signal
import threading

from core import logs
from core.settings import get_settings
from policy.base import base_model_path
from policy.engine.names import BASE
from policy.engine.server import HOST, create_engine_app, serve
from policy.gguf.base import load_gguf_base
from policy.gguf.decoder import GgufDecoder
from policy.gguf.llama import LlamaSettings

log = logging.getLogger("dunnock.engine")

ENDS = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    """Load the base model and serve until a signal comes."""
    # Each llama.cpp server sets handlers of its own for these signals, for the whole process. Blocked in all threads,
    # they are never handled but fetched here.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    settings = get_settings()
    logs.configure(settings)
    tokens = settings.max_prompt_tokens + settings.max_completion_tokens
    base = load_gguf_base(base_model_path(settings), settings.cache_dir, settings.gguf.type, tokens, settings.gguf.file)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = settings.gguf.threads or cores or 1
    decoder = GgufDecoder(
        base,
        LlamaSettings(settings.gguf.slots, base.context_tokens, threads),
        max_waiting=4 * settings.engine_max_batch,
        max_prompt_tokens=settings.max_prompt_tokens,
        name=settings.gguf.serves or BASE,
    )
    server = serve(create_engine_app(decoder, settings.artifact_dir), settings.engine_port, settings.engine_threads)
    threading.Thread(target=server.run, name="http", daemon=True).start()
    log.info("engine on http://%s:%d/v1, %s", HOST, settings.engine_port, base.file.name)
    signal.sigwait(ENDS)
    decoder.close()


if __name__ == "__main__":
    main()
