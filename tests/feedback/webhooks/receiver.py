"""A real HTTP server that takes webhooks, badly where a test wants that: it fails, hangs, drips, redirects."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Receiver:
    """What came, and what to answer: a status, or "hang", "drip", "redirect", "close"."""

    url: str = ""
    answers: list[int | str] = field(default_factory=list)
    default: int | str = 204
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free loopback port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = receiver.answers.pop(0) if receiver.answers else receiver.default
            if answer == "hang":
                receiver.released.wait(30)
            elif answer == "drip":
                for byte in b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * 200:
                    if receiver.released.wait(0.05):
                        return
                    try:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                    except OSError:
                        return
            elif answer == "redirect":
                self.send_response(302)
                self.send_header("location", f"{receiver.url}/elsewhere")
                self.end_headers()
            elif answer != "close":
                self.send_response(int(answer))
                self.end_headers()

        def do_GET(self) -> None:
            receiver.got.append((self.path, {}, b"GET"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield receiver
    receiver.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def wait_until(true: "object", limit_s: float = 20) -> None:
    """Wait until a function says yes.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + limit_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
