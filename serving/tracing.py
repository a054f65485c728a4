"""Traces of chat calls by OpenTelemetry, in the words of its conventions for generative AI. Imported only where traces are made.

One span for the whole call, `chat MODEL`, with what was asked and what came; below it `guard input`, `engine`, `guard output` with
a `guard model` for each question to the guard's model, and `store`. The first text of a stream is an event of the call. The caller's
`traceparent` is taken, and the engine gets one of its own span. The provider is ours alone: none is set for the process, so nobody's
else library is traced by us.

Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ (in development; as of opentelemetry-semantic-conventions
0.66b2). Their token counts stand on the whole call alone, so that whoever adds up spans counts each token once.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core.messages import Message
from core.settings import TelemetrySettings
from policy.shapes import CHAT
from serving.telemetry import Facts, Part, Trace

FIRST_TEXT = "dunnock.first_text"
"""The event of a stream's first text; the conventions have none of their own."""
FLUSH_MS = 3000

_w3c = TraceContextTextMapPropagator()


class Tracing:
    """Begins traces. One per app.

    Args:
        exporter: where spans go.
        at_once: send each span when it ends, in the thread that ends it; for tests.
    """

    def __init__(self, settings: TelemetrySettings, exporter: SpanExporter, *, at_once: bool = False) -> None:
        self._texts = settings.texts
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_rate)),
            resource=Resource.create({SERVICE_NAME: settings.service_name}),
        )
        self._provider.add_span_processor(SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dunnock")

    def begin(self, path: str, headers: Mapping[str, str]) -> Trace:
        """The trace of a call that just came, a part of its caller's where that one says so."""
        named = {name: value for name in ("traceparent", "tracestate") if (value := headers.get(name))}
        operation = "chat" if path.endswith(CHAT.path) else "text_completion"
        facts = {"gen_ai.operation.name": operation, "http.request.method": "POST", "http.route": path}
        span = self._tracer.start_span(operation, _w3c.extract(named, Context()), SpanKind.SERVER, facts)
        return Spans(self, span, operation, self._texts) if span.is_recording() else Passed(span)

    def child(self, name: str, parent: Context) -> Span:
        """A span below another one."""
        kind = SpanKind.CLIENT if name in ("engine", "guard model") else SpanKind.INTERNAL
        return self._tracer.start_span(name, parent, kind)

    def close(self) -> None:
        """Send what is left; where that fails it is lost."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


class Passed(Trace):
    """A call that is not sampled: told to nobody, but the engine learns that it is not."""

    def __init__(self, span: Span) -> None:
        self._part = Told(span)
        self.id = format_trace_id(span.get_span_context().trace_id)

    def begin(self, name: str) -> Part:
        return self._part


class Told(Part):
    """A span of a step."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._over = False

    def note(self, facts: Facts) -> None:
        self._span.set_attributes(_given(facts))

    def at(self, url: str) -> None:
        parts = urlsplit(url)
        self.note({"server.address": parts.hostname, "server.port": parts.port})

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, set_span_in_context(self._span, Context()))
        return carrier

    def end(self, error: BaseException | None = None) -> None:
        if self._over:
            return
        self._over = True
        if error is not None:
            # Its words may hold a piece of a text, so its kind alone is told.
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Spans(Trace):
    """A call that is traced; its parts are ended with it."""

    def __init__(self, tracing: Tracing, span: Span, operation: str, texts: bool) -> None:
        self._tracing, self._span, self._operation, self.texts = tracing, span, operation, texts
        self._context = set_span_in_context(span, Context())
        self._parts: list[Told] = []
        self._lock = threading.Lock()
        self._over = False
        self.id = format_trace_id(span.get_span_context().trace_id)

    def begin(self, name: str) -> Part:
        part = Told(self._tracing.child(name, self._context))
        with self._lock:
            if not self._over:  # what is stored after its caller has left ends by itself
                self._parts.append(part)
        return part

    def asked(self, model: str, facts: Facts) -> None:
        self._span.update_name(f"{self._operation} {model}")
        self._span.set_attributes(_given({"gen_ai.request.model": model, **facts}))

    def first_text(self, after_s: float) -> None:
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", after_s)
        self._span.add_event(FIRST_TEXT, {"gen_ai.response.time_to_first_chunk": after_s})

    def told(self, facts: Facts, messages: Sequence[Message], replies: Sequence[tuple[str, str]]) -> None:
        self._span.set_attributes(_given(facts))
        if self.texts and messages:
            asked = [{"role": m.role, "parts": _parts(m.content)} for m in messages]
            written = [{"role": "assistant", "parts": _parts(text), "finish_reason": why} for text, why in replies]
            self._span.set_attribute("gen_ai.input.messages", json.dumps(asked, ensure_ascii=False))
            self._span.set_attribute("gen_ai.output.messages", json.dumps(written, ensure_ascii=False))

    def over(self, status: int, failed: str = "") -> None:
        with self._lock:
            if self._over:
                return
            self._over, parts = True, self._parts
        for part in parts:
            part.end()
        self._span.set_attribute("http.response.status_code", status)
        if failed:
            self._span.set_attribute("error.type", failed)
        if failed or status >= 500:  # what a caller did wrong is no error of a server's span
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "content": text}]


def _given(facts: Facts) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def otlp(settings: TelemetrySettings) -> SpanExporter:
    """What sends spans over OTLP/HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{settings.endpoint}/v1/traces")
