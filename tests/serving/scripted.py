"""Servers beside the app whose words a test chooses: an OpenAI engine, and a guard's model that knows words."""

import hashlib
import json
import math
import re
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from policy.shapes import CHAT, TEXT


class Server:
    """An HTTP server in a thread; subclasses answer."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer.get(self)

            def do_POST(self) -> None:
                outer.raw(self, self.rfile.read(int(self.headers["Content-Length"])))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def get(self, at: BaseHTTPRequestHandler) -> None:
        """Answer a GET."""
        answer(at, 200, {})

    def raw(self, at: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer a POST whose body need not be JSON."""
        self.post(at, json.loads(body))

    def post(self, at: BaseHTTPRequestHandler, body: Any) -> None:
        """Answer a POST."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class ScriptedEngine(Server):
    """Writes `pieces`, whatever is asked.

    Attributes:
        left: callers that went before the end of a stream.
        wait_at: the number of the piece before which it waits for `go_on`.
        slow: whether a whole answer waits for `go_on` too; a number: those after so many calls.
        chunks: what it streams in the place of `pieces`; bytes as they are, and it ends there.
        by_model: what it writes for a model, in the place of `pieces`.
        in_turn: what it writes for one call after the other, in the place of `pieces`; for those beyond, `pieces`.
        headers: of each call that asked.
        choice: what is otherwise in the choice of a whole answer.
        mode: "well", "full" (503), or "breaks" (the connection ends without an answer).
    """

    def __init__(self) -> None:
        self.pieces: Sequence[str] = ("Hello", ".")
        self.asked: list[Any] = []
        self.headers: list[Any] = []
        self.left = 0
        self.wait_at: int | None = None
        self.go_on = threading.Event()
        self.mode = "well"
        self.slow: bool | int = False
        self.chunks: Sequence[Any] = ()
        self.choice: dict[str, Any] = {}
        self.by_model: dict[str, str] = {}
        self.in_turn: list[str] = []
        super().__init__()

    def post(self, at: BaseHTTPRequestHandler, body: Any) -> None:
        self.asked.append(body)
        self.headers.append(at.headers)
        if self.mode == "full":
            answer(at, 503, {"error": {"message": "full"}})
            return
        if self.mode == "breaks":
            at.close_connection = True
            return
        shape = TEXT if at.path.endswith(f"/v1{TEXT.path}") else CHAT
        head = {"id": "x", "created": 0, "model": body.get("model", "")}
        pieces = [self.by_model[body["model"]]] if body.get("model") in self.by_model else self.pieces
        pieces = [self.in_turn.pop(0)] if self.in_turn else pieces
        usage = {"prompt_tokens": 3, "completion_tokens": len(pieces)}
        if not body.get("stream"):
            if self.slow is True or (self.slow and len(self.asked) > self.slow):
                self.go_on.wait(20)
            choice = {"index": 0, **shape.choice("".join(pieces), "stop", None), **self.choice}
            answer(at, 200, {**head, "choices": [choice], "usage": usage})
            return
        at.send_response(200)
        at.send_header("Content-Type", "text/event-stream")
        at.send_header("Connection", "close")
        at.end_headers()
        at.close_connection = True
        for chunk in self.chunks:
            at.wfile.write(chunk if isinstance(chunk, bytes) else f"data: {json.dumps(chunk)}\n\n".encode())
        if self.chunks:
            return
        try:
            for i, piece in enumerate(pieces):
                if i == self.wait_at:
                    self.go_on.wait(20)
                _event(at, {**head, "choices": [{"index": 0, **shape.piece(piece, None)}]})
            _event(at, {**head, "choices": [{"index": 0, **shape.piece("", None, reason="stop")}]})
            _event(at, {**head, "choices": [], "usage": usage})
            at.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.left += 1

    def stop(self) -> None:
        self.go_on.set()
        super().stop()


class WordsModel(Server):
    """A guard's model, in its protocol (`reward.guard`): a rule is broken where the last word of its text stands in a reply.

    Attributes:
        mode: "well", "hangs", "busy", "dies", "raves" (no JSON), "loads" (it does so without an end).
        asked: items, as they came.
        embedded: texts; those with the same words, in whatever order and case, are near each other.
    """

    def __init__(self) -> None:
        self.mode = "well"
        self.asked: list[Any] = []
        self.embedded: list[str] = []
        self.loaded: list[Any] = []
        self.release = threading.Event()
        super().__init__()

    def post(self, at: BaseHTTPRequestHandler, body: Any) -> None:
        if at.path == "/unload":
            answer(at, 200, {})
        elif at.path == "/load" and self.mode == "loads":
            self.loaded.append(body)
            self.release.wait(20)
            at.close_connection = True
        elif at.path == "/load":
            self.loaded.append(body)
            answer(at, 200, {"model": body["sha256"][:8], "threshold": 0.5, "thresholds": {}})
        elif self.mode == "hangs":
            self.release.wait(20)
            at.close_connection = True
        elif self.mode == "busy":
            answer(at, 503, {"error": "busy"})
        elif self.mode == "raves":
            at.send_response(200)
            at.send_header("Content-Length", "2")
            at.end_headers()
            at.wfile.write(b"\xff{")
        elif self.mode == "dies":
            at.close_connection = True
        elif at.path == "/embed":
            self.embedded += body["texts"]
            answer(at, 200, {"embeddings": [embedding(text) for text in body["texts"]], "encoder_sha256": "0" * 64})
        else:
            self.asked += body["items"]
            answer(at, 200, {"items": [judge(item) for item in body["items"]]})

    def stop(self) -> None:
        self.release.set()
        super().stop()


class LengthModel(Server):
    """A scoring process, in its protocol (`reward.score_server`): the longer a completion, the better.

    Attributes:
        mode: "well", "hangs", "dies", "empty" (it holds no model, and loads none).
        asked: completions, as they came.
    """

    def __init__(self) -> None:
        self.mode = "well"
        self.asked: list[list[str]] = []
        self.loaded: list[Any] = []
        self.release = threading.Event()
        super().__init__()

    def post(self, at: BaseHTTPRequestHandler, body: Any) -> None:
        if self.mode == "hangs":
            self.release.wait(20)
        if self.mode in ("hangs", "dies"):
            at.close_connection = True
        elif self.mode == "empty":
            answer(at, 404, {"error": {"message": "no model"}})
        elif at.path == "/load":
            self.loaded.append(body)
            answer(at, 200, {"model": body["sha256"][:8]})
        else:
            self.asked.append(body["completions"])
            scores = [{"value": float(len(text)), "mean": 0.0, "sd": 0.0} for text in body["completions"]]
            answer(at, 200, {"scores": scores})

    def stop(self) -> None:
        self.release.set()
        super().stop()


def judge(item: Any) -> dict[str, Any]:
    """P(broken) by rule."""
    hits = [rule["name"] for rule in item["rules"] if last_word(rule["text"]) in item["text"]]
    return {"broken": {rule["name"]: 0.9 if rule["name"] in hits else 0.1 for rule in item["rules"]}, "hits": hits}


def embedding(text: str) -> list[float] | None:
    """Counts of words, of length 1; None of a long text."""
    words = re.findall(r"\w+", text.lower())
    found = [0.0] * 64
    for word in words:
        found[int(hashlib.sha256(word.encode()).hexdigest(), 16) % 64] += 1
    length = math.hypot(*found) or 1
    return None if len(words) > 50 else [value / length for value in found]


def last_word(text: str) -> str:
    """By which `WordsModel` knows that a rule is broken."""
    return text.rsplit(maxsplit=1)[-1].strip(".")


def answer(at: BaseHTTPRequestHandler, status: int, said: Any) -> None:
    """JSON."""
    payload = json.dumps(said).encode()
    at.send_response(status)
    at.send_header("Content-Length", str(len(payload)))
    at.end_headers()
    at.wfile.write(payload)


def _event(at: BaseHTTPRequestHandler, value: Any) -> None:
    at.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
    at.wfile.flush()
