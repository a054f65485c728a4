"""`/metrics`: what the chat API does, for Prometheus. In: replies as they end. Out: counters and histograms; no text, no person.

With several web processes each writes its figures into `var/metrics`, and whichever is asked adds them up.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flask import Blueprint, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import REGISTRY as OF_THIS_PROCESS
from prometheus_client.multiprocess import MultiProcessCollector

from core.errors import NotFound
from core.language import gettext
from core.settings import LOOPBACK
from core.web import runtime
from serving.guard.verdicts import merge
from serving.replies import CUT, Ended, Reply, guard_body, usage_of

blueprint = Blueprint("metrics", __name__)

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable by which prometheus-client knows that there are several processes, and where they meet."""
FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SLOW_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Counter("dunnock_requests", "Requests that are over", ["method", "route", "status"])
REQUEST_S = Histogram("dunnock_request_seconds", "From a request to its answer's end", ["route"], buckets=SLOW_S)
REPLIES = Counter("dunnock_replies", "Replies that were given", ["version", "finish_reason"])
TOKENS = Counter("dunnock_tokens", "Tokens of prompts and completions", ["version", "kind"])
REPLY_S = Histogram("dunnock_reply_seconds", "From the request to the reply's end", ["version"], buckets=SLOW_S)
FIRST_S = Histogram("dunnock_first_text_seconds", "From the request to a stream's first text", buckets=SLOW_S)
ENERGY = Counter("dunnock_energy_joules", "Energy that the engine took for replies, estimated", ["version"])
CACHE = Counter("dunnock_cache", "Calls by what the cache of replies had for them", ["outcome"])
OPEN = Gauge("dunnock_open_streams", "Streams that are open", multiprocess_mode="livesum")
OUTSTANDING = Gauge("dunnock_engine_outstanding", "Calls that an engine holds", ["engine"], multiprocess_mode="livesum")
LEFT_ALONE = Gauge(
    "dunnock_engine_left_alone", "Web processes that leave an engine alone after failures, or try it again", ["engine"],
    multiprocess_mode="livesum",
)  # fmt: skip
ENGINE_FAILURES = Counter("dunnock_engine_failures", "Calls that an engine failed or refused", ["engine"])
WAITING = Gauge("dunnock_recorder_waiting", "Replies that wait to be stored", multiprocess_mode="livesum")
VERDICTS = Counter("dunnock_guard_verdicts", "What the guard's checks said", ["check", "side", "outcome"])
GUARD_S = Histogram("dunnock_guard_seconds", "What a check took for a reply, all its pieces", ["check"], buckets=FAST_S)


def requested(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that is over.

    Args:
        route: the rule of its path, never the path.
    """
    REQUESTS.labels(method, route, status).inc()
    REQUEST_S.labels(route).observe(seconds)


def replied(group: Sequence[Ended]) -> None:
    """Count the replies to one call, which have ended."""
    verdicts = [verdict for ended in group for verdict in ended.verdicts]
    cut = any(ended.finish_reason == CUT for ended in group)
    group[0].reply.call.told(group, usage_of(group), guard_body(verdicts, cut=cut))
    for ended in group:
        _replied(ended)


def _replied(ended: Ended) -> None:
    version, usage = ended.reply.version.name, ended.usage
    REPLIES.labels(version, ended.finish_reason).inc()
    for kind, n in zip(("prompt", "completion"), usage, strict=True):
        TOKENS.labels(version, kind).inc(n or 0)
    if ended.energy_j is not None:
        ENERGY.labels(version).inc(ended.energy_j)
    REPLY_S.labels(version).observe(time.monotonic() - ended.reply.started_s)
    by_check: dict[str, float] = {}
    for verdict in merge(ended.verdicts):
        VERDICTS.labels(verdict.check, verdict.side, verdict.outcome).inc()
        by_check[verdict.check] = by_check.get(verdict.check, 0.0) + verdict.latency_s
    for check, spent_s in by_check.items():
        GUARD_S.labels(check).observe(spent_s)


def first_text(reply: Reply) -> None:
    """A stream shows its first text."""
    reply.call.first_text()
    FIRST_S.observe(time.monotonic() - reply.started_s)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Figures of all web processes, for callers on this machine or, where the settings say so, for all."""
    allowed = runtime().settings.metrics
    if allowed == "off" or (allowed == "loopback" and request.remote_addr not in (*LOOPBACK, "::1")):
        raise NotFound(gettext("There is no page at this address. The link may be old, or what it led to was removed."))
    registry = CollectorRegistry()
    try:
        _forget_dead(Path(MultiProcessCollector(registry)._path))  # type: ignore[no-untyped-call]
    except ValueError:  # SHARED is not set: there is one process
        registry = OF_THIS_PROCESS
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _forget_dead(folder: Path) -> None:
    """Leave out what is open or waiting in processes that are gone: a worker that was killed takes nothing back."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            file.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
