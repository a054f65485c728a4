"""What reaches the web process over real connections: slow, broken and odd requests cost no thread and are never half believed."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from app import create_app
from core.db import Database
from core.settings import Settings
from tests.browser import LiveServer

THREADS = 8  # of `LiveServer`


@pytest.fixture
def seen(app: Flask) -> list[bytes]:
    """Bodies that came to the path /seen."""
    found: list[bytes] = []

    @app.post("/v1/seen")
    def see() -> str:
        found.append(request.get_data())
        return "seen"

    return found


@pytest.fixture
def live(app: Flask, seen: list[bytes]) -> Iterator[LiveServer]:
    app.config["WTF_CSRF_ENABLED"] = False
    server = LiveServer(app)
    yield server
    server.stop()


def opened(live: LiveServer, *lines: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    connection.sendall("\r\n".join([*lines, "Host: 127.0.0.1", "", ""]).encode("latin-1") + body)
    return connection


def said(live: LiveServer, *lines: str, body: bytes = b"") -> bytes:
    with opened(live, *lines, "Connection: close", body=body) as connection:
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def test_bodies_that_do_not_come_hold_no_thread(live: LiveServer) -> None:
    with ExitStack() as stack:
        for _ in range(3 * THREADS):
            stack.enter_context(opened(live, "POST /v1/seen HTTP/1.1", "Content-Length: 10", body=b"half"))
        time.sleep(0.3)
        assert said(live, "GET /healthz HTTP/1.1").startswith(b"HTTP/1.1 200")


def test_a_body_that_broke_off_is_not_taken_for_a_whole_one(live: LiveServer, seen: list[bytes]) -> None:
    for headers, body in (("Content-Length: 20", b"note=half"), ("Transfer-Encoding: chunked", b"9\r\nnote=half\r\n")):
        opened(live, "POST /v1/seen HTTP/1.1", headers, body=body).close()
    whole = said(live, "POST /v1/seen HTTP/1.1", "Transfer-Encoding: chunked", body=b"4\r\nnote\r\n0\r\n\r\n")
    assert whole.endswith(b"seen")
    time.sleep(0.3)
    assert seen == [b"note"]


def test_a_body_that_takes_too_long_is_ended(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.deferred.BODY_S", 0.2)
    for path in ("/v1/seen", "/v1/chat/completions"):
        answer = said(live, f"POST {path} HTTP/1.1", "Content-Length: 10", body=b"half")
        assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("path", ["/v1/seen", "/v1/chat/completions"])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_beyond_the_limit_are_refused_on_all_paths(
    live: LiveServer, seen: list[bytes], path: str, chunked: bool
) -> None:
    large = b"x" * (4 * 1024 * 1024 + 1)
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(large)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large) if chunked else large
    assert said(live, f"POST {path} HTTP/1.1", how, body=body).startswith(b"HTTP/1.1 4")
    assert not seen


def test_a_header_that_only_looks_like_a_proxy_s_is_not_believed(settings: Settings, database: Database) -> None:
    server = LiveServer(create_app(settings.model_copy(update={"trusted_proxies": 1}), database))
    told = "X-Forwarded-For: 10.0.0.1", "X_Forwarded_For: 127.0.0.1"
    answers = [said(server, "GET /metrics HTTP/1.1", *told[:n]) for n in (1, 2)]
    server.stop()
    assert [answer.split(b" ", 2)[1] for answer in answers] == [b"404", b"404"]


def test_a_query_that_is_not_ascii_is_read(live: LiveServer) -> None:
    for path in ("/healthz", "/v1/models", "/v1/chat/completions"):
        for verb in ("GET", "POST"):
            answer = said(live, f"{verb} {path}?a=\xe4\xff HTTP/1.1", "Content-Length: 0")
            assert not answer.startswith(b"HTTP/1.1 5"), answer[:200]


@pytest.mark.parametrize("verb", ["HEAD", "OPTIONS", "GET", "PUT"])
def test_other_verbs_are_answered_on_deferred_paths(live: LiveServer, verb: str) -> None:
    answer = said(live, f"{verb} /v1/chat/completions HTTP/1.1")
    assert answer.startswith(b"HTTP/1.1 200" if verb == "OPTIONS" else b"HTTP/1.1 405")
    assert b"\r\n\r\n" in answer
    assert verb != "HEAD" or answer.endswith(b"\r\n\r\n")


def test_a_connection_is_kept_over_both_kinds_of_paths(live: LiveServer) -> None:
    asked = b"{}"
    one = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(asked)}\r\n\r\n".encode()
        + asked
    )
    other = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(one + one + other)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    assert found.count(b"HTTP/1.1 401") == 2
    assert found.count(b"HTTP/1.1 200") == 1


def test_errors_of_deferred_paths_speak_the_reader_s_language(client: FlaskClient) -> None:
    answer = client.post("/v1/chat/completions", json={}, headers={"Accept-Language": "de"})
    assert "Schlüssel" in json.loads(answer.data)["error"]["message"]
