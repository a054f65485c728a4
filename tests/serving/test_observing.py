"""What is told of every request: a line of the log, and figures by route."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from core.db import Database
from core.messages import user
from core.settings import Settings
from serving.metrics import LEFT_ALONE
from tests.serving.test_guarding import INJECTION, SECRET, Installed
from tests.serving.test_metrics import figures, grown

LINES = {"log_format": "json"}


def made(settings: Settings, database: Database, **update: Any) -> Installed:
    return Installed(settings.model_copy(update=update), database)


@pytest.fixture
def installed(settings: Settings, database: Database) -> Iterator[Installed]:
    found = made(settings, database, **LINES)
    yield found
    found.stop()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was told of requests; forgets it."""
    found = [record.told for record in caplog.records if record.name == "dunnock.request"]  # type: ignore[attr-defined]
    caplog.clear()
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_one_line_for_each_request(installed: Installed, caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    caplog.set_level(logging.INFO, "dunnock.request")
    installed.ask("a ", "b", stream=stream)
    (told,) = lines(caplog)
    assert told.pop("seconds") > 0
    assert told.pop("id").startswith("chatcmpl-")
    assert told == {
        "method": "POST", "route": "/v1/chat/completions", "status": 200, "trace_id": None, "model": "dunnock",
        "version": "v1", "tenant_id": None, "stream": stream, "finish_reasons": ["stop"], "prompt_tokens": 3,
        "completion_tokens": 2, "guard": "not_scanned", "cut": False,
    }  # fmt: skip
    installed.ask(messages=user(INJECTION), stream=stream)
    (told,) = lines(caplog)
    assert (told["guard"], told["cut"], told["finish_reasons"]) == ("hit", True, ["content_filter"])


def test_requests_that_are_no_chats_have_lines_too(installed: Installed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dunnock.request")
    installed.client.get("/v1/models/v1", headers=installed.key)
    installed.client.get("/v1/models/secret-name")
    installed.client.get("/nowhere/secret-name?key=secret")
    installed.client.post("/v1/chat/completions", json={"model": "dunnock"}, headers=installed.key)
    installed.client.open("/healthz", method="SECRET")
    told = lines(caplog)
    assert [(line["method"], line["route"], line["status"]) for line in told] == [
        ("GET", "/v1/models/<path:model>", 200), ("GET", "/v1/models/<path:model>", 401), ("GET", "none", 404),
        ("POST", "/v1/chat/completions", 400), ("other", "none", 405),
    ]  # fmt: skip
    assert "secret" not in str(told).lower()


def test_without_json_lines_requests_are_not_logged(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dunnock.request")
    installed = made(settings, database, log_texts=True)
    installed.ask("a", stream=False)
    installed.stop()
    assert not lines(caplog)


def test_texts_stand_there_where_the_settings_say_so(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dunnock.request")
    installed = made(settings, database, **LINES, log_texts=True)
    installed.ask(f"b {SECRET}", stream=True, messages=user("a"))
    installed.ask("b", stream=False, messages=user("a"), store=False)
    installed.stop()
    kept, not_kept = lines(caplog)
    assert kept["messages"] == [{"role": "user", "content": "a"}]
    assert SECRET not in str(kept)
    assert kept["replies"][0].startswith("b ")
    assert "messages" not in not_kept
    assert "replies" not in not_kept


def test_requests_are_counted_by_route_and_status(installed: Installed) -> None:
    before = figures(installed)
    installed.ask("a", stream=False)
    installed.ask("a", stream=True)
    installed.client.get("/nowhere")
    after = figures(installed)
    route = "/v1/chat/completions"
    assert grown(before, after, "dunnock_requests_total", method="POST", route=route, status="200") == 2
    assert grown(before, after, "dunnock_requests_total", method="GET", route="none", status="404") == 1
    assert grown(before, after, "dunnock_request_seconds_count", route=route) == 2


def test_what_engines_hold_and_how_they_are_is_told(settings: Settings, database: Database) -> None:
    engines = settings.engines.model_copy(update={"failures": 1, "rest_s": 0.01})
    installed = made(settings, database, engines=engines)
    one = {"engine": "local-0"}
    LEFT_ALONE.labels("local-0").set(0)  # a test before may have ended while it was
    before = figures(installed)
    installed.engine.mode = "breaks"
    installed.client.post(
        "/v1/chat/completions", json={"model": "dunnock", "messages": user("Hi")}, headers=installed.key
    )
    failed = figures(installed)
    assert grown(before, failed, "dunnock_engine_failures_total", **one) == 1
    assert grown(before, failed, "dunnock_engine_left_alone", **one) == 1
    installed.engine.mode = "well"
    answer = installed.client.post(
        "/v1/chat/completions", json={"model": "dunnock", "messages": user("Hi"), "stream": True}, headers=installed.key
    )
    while_open = figures(installed)
    assert grown(before, while_open, "dunnock_engine_outstanding", **one) == 1
    answer.close()
    after = figures(installed)
    assert grown(before, after, "dunnock_engine_outstanding", **one) == 0
    assert grown(before, after, "dunnock_engine_left_alone", **one) == 0
    assert grown(before, after, "dunnock_recorder_waiting") == 0
    installed.stop()


def test_what_waits_to_be_stored_is_told(installed: Installed) -> None:
    installed.ask("a", stream=False)
    before = figures(installed)

    def waiting() -> float:
        return grown(before, figures(installed), "dunnock_recorder_waiting")

    with installed.database.session() as session:  # others who write wait
        session.execute(text("SELECT 1"))
        asking = threading.Thread(target=installed.ask, args=("b",), kwargs={"stream": False})
        asking.start()
        for _ in range(500):
            if waiting():
                break
            time.sleep(0.01)
        assert waiting() == 1
    asking.join()
    assert waiting() == 0


def test_no_label_holds_what_a_caller_wrote(installed: Installed) -> None:
    installed.ask("a", stream=False, messages=user("marmalade"))
    installed.client.get("/marmalade")
    told = installed.client.get("/metrics").text
    assert "dunnock_requests_total" in {s.name for f in text_string_to_metric_families(told) for s in f.samples}
    assert "marmalade" not in told
