"""What is told of every request when it is over: to Prometheus, to a trace, and to the log where that is of JSON lines.

A request is over when its answer is there, one that is deferred when its coroutine has ended, and a stream when it is closed, whoever
closed it. A caller who left before there was an answer is told as status 499. `install` comes before whatever else looks at requests.
"""

import logging
import time
from functools import partial

from flask import Flask, Response, current_app, g, request

from core.settings import Settings
from core.web import runtime
from serving.calls import Call, this_call
from serving.deferred import Deferred
from serving.metrics import requested
from serving.telemetry import UNTRACED, open_tracing

log = logging.getLogger("dunnock.request")

EXTENSION = "dunnock_tracing"
TRACED = "/v1/chat/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
NO_ROUTE = "none"


def install(app: Flask, settings: Settings) -> None:
    """Look at all requests of an app."""
    app.extensions[EXTENSION] = open_tracing(settings.telemetry)
    app.before_request(_begin)
    app.after_request(_end)


def close(app: Flask) -> None:
    """Send what is left of the traces."""
    if (tracing := app.extensions.get(EXTENSION)) is not None:
        tracing.close()


def _begin() -> None:
    rule = request.url_rule
    call = Call(request.method if request.method in METHODS else "other", rule.rule if rule else NO_ROUTE)
    settings = runtime().settings
    call.wants_texts = settings.log_texts and settings.log_format == "json"
    tracing = current_app.extensions[EXTENSION]
    if tracing is not None and call.route == TRACED and request.method == "POST":
        call.trace = tracing.begin(call.route, request.headers)
    g.dunnock_call = call


def _end(response: Response) -> Response:
    call, lines = this_call(), runtime().settings.log_format == "json"
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
