"""Traces of chat calls: what is told of each kind of call, that every span is closed, and that a real receiver can read them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from core.db import Database
from core.messages import user
from core.settings import Settings, TelemetrySettings
from serving import observing
from serving.tracing import FIRST_TEXT, Tracing
from tests.browser import LiveServer
from tests.conftest import ROOT
from tests.serving.scripted import Server
from tests.serving.test_guarding import INJECTION, SECRET, Installed

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + "0"


class Traced:
    """The app with a tracer whose spans a test reads."""

    def __init__(self, settings: Settings, database: Database, **telemetry: Any) -> None:
        self.installed = Installed(settings, database).with_model()
        self.spans = InMemorySpanExporter()
        given = TelemetrySettings(otlp_endpoint="http://127.0.0.1:1", **telemetry)
        self.installed.app.extensions[observing.EXTENSION] = Tracing(given, self.spans, at_once=True)

    def ask(self, **more: Any) -> Any:
        headers = {**self.installed.key, **more.pop("headers", {})}
        body = {"model": "dunnock", "messages": user("Hi"), **more}
        return self.installed.client.post("/v1/chat/completions", json=body, headers=headers)

    def told(self) -> dict[str, ReadableSpan]:
        """Spans by name; every one has ended and belongs to the one trace. Forgets them."""
        found = list(self.spans.get_finished_spans())
        self.spans.clear()
        assert all(span.end_time is not None for span in found)
        assert len({span.context.trace_id for span in found}) == 1
        names = [span.name for span in found if span.name != "guard model"]
        assert len(names) == len(set(names)), names
        return {span.name: span for span in found}


@pytest.fixture
def traced(settings: Settings, database: Database) -> Iterator[Traced]:
    found = Traced(settings, database)
    yield found
    found.installed.stop()
    observing.close(found.installed.app)


PARTS = {"chat dunnock", "guard input", "engine", "guard output", "guard model", "store"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_steps(traced: Traced, stream: bool) -> None:
    answer = traced.ask(
        stream=stream, temperature=0.5, seed=7, max_tokens=9, stop=["x"], headers={"traceparent": CALLER}
    )
    assert answer.status_code == 200
    answer.get_data()
    told = traced.told()
    assert set(told) == PARTS
    root = told["chat dunnock"]
    assert root.kind == SpanKind.SERVER
    assert format_trace_id(root.context.trace_id) in CALLER
    assert format_span_id(root.parent.span_id) in CALLER
    assert all(span.parent.span_id == root.context.span_id for name, span in told.items() if span is not root)
    assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in told.values())
    had = dict(root.attributes)
    for name, value in {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "dunnock", "gen_ai.request.model": "dunnock",
        "gen_ai.response.model": "v1", "gen_ai.response.finish_reasons": ("stop",), "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2, "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 7,
        "gen_ai.request.max_tokens": 9, "gen_ai.request.stop_sequences": ("x",), "gen_ai.request.stream": stream,
        "http.route": "/v1/chat/completions", "http.response.status_code": 200, "dunnock.guard.outcome": "clear",
    }.items():  # fmt: skip
        assert had[name] == value, name
    assert had["gen_ai.response.id"] in answer.text
    assert [event.name for event in root.events] == ([FIRST_TEXT] if stream else [])
    assert told["engine"].kind == SpanKind.CLIENT
    assert told["engine"].attributes["server.port"] == traced.installed.engine.port
    assert told["guard model"].attributes["server.port"] == traced.installed.model.port
    assert not any("Hello" in str(span.attributes) or "Hi" in str(span.attributes) for span in told.values())


def test_every_name_of_the_conventions_is_one(traced: Traced) -> None:
    traced.ask(temperature=1, seed=1, n=2, stop="x")
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    used = {
        name for span in traced.spans.get_finished_spans() for name in span.attributes if name.startswith("gen_ai.")
    }
    assert used
    assert used <= known


def test_several_choices_are_added_up(traced: Traced) -> None:
    traced.ask(n=2)
    found = list(traced.spans.get_finished_spans())
    (root,) = (span for span in found if span.name == "chat dunnock")
    assert root.attributes["gen_ai.usage.output_tokens"] == 4
    assert root.attributes["gen_ai.response.finish_reasons"] == ("stop", "stop")
    assert len([span for span in found if span.name == "engine"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_is_told_which_span_asks(traced: Traced, stream: bool) -> None:
    traced.ask(stream=stream, headers={"traceparent": CALLER, "tracestate": "a=b"}).get_data()
    (headers,) = traced.installed.engine.headers
    _, trace_id, span_id, sampled = headers["traceparent"].split("-")
    engine = traced.told()["engine"]
    assert (trace_id, span_id, sampled) == (CALLER.split("-")[1], format_span_id(engine.context.span_id), "01")
    assert headers["tracestate"] == "a=b"


def test_a_caller_who_does_not_sample_is_told_on_and_not_here(traced: Traced) -> None:
    traced.ask(headers={"traceparent": UNSAMPLED})
    assert not traced.spans.get_finished_spans()
    (headers,) = traced.installed.engine.headers
    assert headers["traceparent"].split("-")[1] == CALLER.split("-")[1]
    assert headers["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff-" + CALLER[3:], "x" * 9000]
)
def test_a_traceparent_that_is_none_begins_a_trace(traced: Traced, parent: str) -> None:
    assert traced.ask(headers={"traceparent": parent}).status_code == 200
    assert traced.told()["chat dunnock"].parent is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_refused_asks_no_engine(traced: Traced, stream: bool) -> None:
    traced.ask(messages=user(INJECTION), stream=stream).get_data()
    told = traced.told()
    assert set(told) == {"chat dunnock", "guard input", "store"}
    had = told["chat dunnock"].attributes
    assert had["gen_ai.response.finish_reasons"] == ("content_filter",)
    assert (had["dunnock.guard.outcome"], had["dunnock.guard.cut"]) == ("hit", True)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_breaks_off_is_an_error_of_the_call(traced: Traced, stream: bool) -> None:
    traced.installed.engine.mode = "breaks"
    assert traced.ask(stream=stream).status_code == 503
    told = traced.told()
    assert told["engine"].status.status_code == StatusCode.ERROR
    assert told["engine"].attributes["error.type"] == "EngineError"
    assert told["chat dunnock"].status.status_code == StatusCode.ERROR
    assert told["chat dunnock"].attributes["http.response.status_code"] == 503


def test_a_stream_that_breaks_off_is_an_error_though_it_began_well(traced: Traced) -> None:
    traced.installed.engine.chunks = [{"choices": [{"index": 0, "delta": {"content": "all is "}}]}, b""]
    traced.ask(stream=True).get_data()
    root = traced.told()["chat dunnock"]
    assert root.status.status_code == StatusCode.ERROR
    assert root.attributes["gen_ai.response.finish_reasons"] == ("error",)
    assert root.attributes["error.type"] == "engine"


@pytest.mark.parametrize(("body", "status"), [({"model": "nobody"}, 404), ({"messages": []}, 400)])
def test_a_call_that_is_turned_away_is_no_error_of_ours(traced: Traced, body: Any, status: int) -> None:
    assert traced.ask(**body).status_code == status
    (root,) = traced.spans.get_finished_spans()
    assert root.attributes["http.response.status_code"] == status
    assert root.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize("begun", [True, False])
def test_spans_are_closed_when_the_caller_leaves_in_mid_stream(traced: Traced, begun: bool) -> None:
    engine = traced.installed.engine
    engine.pieces, engine.wait_at = ["word " * 40] * 3, 1 if begun else 0
    server = LiveServer(traced.installed.app)
    body = {"model": "dunnock", "messages": user("Hi"), "stream": True}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=traced.installed.key, timeout=20) as answer:
        lines = answer.iter_lines()
        while '"content": "word' not in next(lines) and begun:
            pass
    spans = wait_for(traced, "chat dunnock")
    engine.go_on.set()
    server.stop()
    names = [span.name for span in spans]
    assert {"engine", "guard output", "store"} <= set(names)
    (root,) = (span for span in spans if span.name == "chat dunnock")
    assert root.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert [event.name for event in root.events] == ([FIRST_TEXT] if begun else [])


def test_spans_are_closed_when_the_caller_of_a_whole_reply_leaves(traced: Traced) -> None:
    traced.installed.engine.slow = True
    server = LiveServer(traced.installed.app)
    body = {"model": "dunnock", "messages": user("Hi")}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=traced.installed.key, timeout=1)
    spans = wait_for(traced, "chat dunnock")
    server.stop()
    (root,) = (span for span in spans if span.name == "chat dunnock")
    assert root.attributes["http.response.status_code"] == 499
    assert root.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    (engine,) = (span for span in spans if span.name == "engine")
    assert engine.attributes["error.type"] == "CancelledError"


def wait_for(traced: Traced, name: str) -> list[ReadableSpan]:
    for _ in range(400):
        found = list(traced.spans.get_finished_spans())
        if any(span.name == name for span in found):
            return found
        time.sleep(0.02)
    raise AssertionError(f"no span {name}: {[span.name for span in found]}")


def test_texts_are_told_where_the_settings_say_so(settings: Settings, database: Database) -> None:
    traced = Traced(settings, database, texts=True)
    for store, stream in ((True, False), (True, True), (False, False), (False, True)):
        traced.ask(store=store, stream=stream).get_data()
        had = traced.told()["chat dunnock"].attributes
        if store:
            asked, written = (json.loads(had[f"gen_ai.{which}.messages"]) for which in ("input", "output"))
            assert asked == [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]
            assert written == [
                {"role": "assistant", "parts": [{"type": "text", "content": "Hello."}], "finish_reason": "stop"}
            ]
        else:
            assert not any("Hi" in str(value) or "Hello" in str(value) for value in had.values())
    traced.installed.engine.pieces = [f"key {SECRET}"]
    traced.ask().get_data()
    assert SECRET not in str(traced.told()["chat dunnock"].attributes)
    traced.installed.stop()
    observing.close(traced.installed.app)


def test_a_share_of_calls_is_traced(settings: Settings, database: Database) -> None:
    traced = Traced(settings, database, sample_rate=0.0)
    traced.ask()
    assert not traced.spans.get_finished_spans()
    traced.ask(headers={"traceparent": CALLER})
    assert traced.told()
    traced.installed.stop()
    observing.close(traced.installed.app)


class Receiver(Server):
    """An OTLP/HTTP collector."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        super().__init__()

    def raw(self, at: BaseHTTPRequestHandler, body: bytes) -> None:
        assert (at.path, at.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        at.send_response(200)
        at.send_header("Content-Length", "0")
        at.end_headers()


def test_a_real_receiver_gets_them(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}/")
    installed = Installed(settings.model_copy(update={"telemetry": TelemetrySettings()}), database).with_model()
    installed.ask(stream=False)
    installed.ask(stream=True)
    observing.close(installed.app)
    installed.stop()
    receiver.stop()
    resources = [resource for request in receiver.requests for resource in request.resource_spans]
    named = {a.key: a.value.string_value for resource in resources for a in resource.resource.attributes}
    assert named["service.name"] == "dunnock"
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == PARTS
    roots = [span for span in spans if span.name == "chat dunnock"]
    tokens = [a.value.int_value for span in roots for a in span.attributes if a.key == "gen_ai.usage.output_tokens"]
    assert tokens == [2, 2]


def test_without_an_endpoint_nothing_of_it_is_imported(settings: Settings, client: FlaskClient) -> None:
    code = (
        "import sys, app; from core.settings import Settings\n"
        "made = app.create_app(Settings(_env_file=None, var_dir=sys.argv[1]))\n"
        "made.test_client().post('/v1/chat/completions', json={})\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(settings.var_dir)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
