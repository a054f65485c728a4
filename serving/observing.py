"""What is told of every request when it is over: to Prometheus, to a trace, and to the log where that is of JSON lines.

A request is over when its answer is there, one that is deferred when its coroutine has ended, and a stream when it is closed, whoever
closed it. A caller who left before there was an answer is told as status 499. `install` comes before whatever else looks at requests.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Flask, Response, g, request

from core.settings import Settings
from serving.calls import Call, this_call
from serving.deferred import Deferred
from serving.metrics import requested
from serving.telemetry import UNTRACED, open_tracing

log = logging.getLogger("dunnock.request")

EXTENSION = "dunnock_tracing"
TRACED = ("/v1/chat/completions", "/v1/completions")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "none"


def install(app: Flask, settings: Settings) -> None:
    """Look at all requests of an app."""
    app.extensions[EXTENSION] = open_tracing(settings.telemetry)
    lines = settings.log_format == "json"
    app.before_request(partial(_begin, app.extensions, wants_texts=lines and settings.log_texts))
    app.after_request(partial(_end, lines=lines))


def close(app: Flask) -> None:
    """Send what is left of the traces."""
    if (tracing := app.extensions.get(EXTENSION)) is not None:
        tracing.close()


def _begin(extensions: Mapping[str, Any], *, wants_texts: bool) -> None:
    rule, method = request.url_rule, request.method
    call = Call(method if method in METHODS else "other", rule.rule if rule else NO_ROUTE, wants_texts=wants_texts)
    tracing = extensions[EXTENSION]
    if tracing is not None and call.route in TRACED and method == "POST":
        call.trace = tracing.begin(call.route, request.headers)
    g.dunnock_call = call


def _end(response: Response, *, lines: bool) -> Response:
    call = this_call()
    if isinstance(response, Deferred):
        response.over = partial(tell, call, lines=lines)
    else:
        tell(call, response.status_code, lines=lines)
    return response


def tell(call: Call, status: int, *, lines: bool) -> None:
    """A call has ended; a second time nothing is told."""
    if call.over:
        return
    call.over = True
    seconds = time.monotonic() - call.began_s
    requested(call.method, call.route, status, seconds)
    if call.trace is not UNTRACED:
        call.trace.over(status, call.failed)
    if lines:
        told = {
            "method": call.method, "route": call.route, "status": status, "seconds": round(seconds, 6),
            "trace_id": call.trace.id or None, **call.facts, **call.texts,
        }  # fmt: skip
        log.info("%s %s %d", call.method, call.route, status, extra={"told": told})
