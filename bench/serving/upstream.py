"""An upstream that costs nothing: OpenAI's chat protocol with words that are there already.

    python -m bench.serving.upstream PORT [PIECES] [PAUSE_MS]

What a gateway adds is seen best in front of it. Whole replies come at once, streamed ones in so many pieces with a pause before each.
"""

import asyncio
import json
import sys
from typing import Any

import uvicorn

TEXT = "the small brown bird sings in the hedge and nobody who walks by would look twice"
WORDS = TEXT.split()


class Upstream:
    """The ASGI app."""

    def __init__(self, pieces: int, pause_s: float) -> None:
        self.pause_s = pause_s
        texts = [f"{WORDS[i % len(WORDS)]} " for i in range(pieces)]
        usage = {"prompt_tokens": 8, "completion_tokens": pieces, "total_tokens": 8 + pieces}
        head = {"id": "chatcmpl-0", "created": 0, "model": "base"}
        message = {"role": "assistant", "content": "".join(texts)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        self.whole = json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        self.lines = [_line(head, {"role": "assistant", "content": ""}, None)]
        self.lines += [_line(head, {"content": text}, None) for text in texts]
        self.lines += [_line(head, {}, "stop"), _event({**head, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer whatever is asked."""
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].endswith("/chat/completions"):
            asked = json.loads(body)
            if asked.get("stream"):
                await self._stream(send)
                return
            said = self.whole
        elif scope["path"].endswith("/models"):
            said = b'{"object": "list", "data": [{"id": "base", "object": "model"}]}'
        else:
            said = b'{"count": 8}'
        await _start(send, "application/json")
        await send({"type": "http.response.body", "body": said})

    async def _stream(self, send: Any) -> None:
        await _start(send, "text/event-stream")
        for line in self.lines:
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _start(send: Any, media: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media.encode())]})


def _line(head: dict[str, Any], delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def main() -> None:
    """Serve until ended."""
    port, pieces, pause_ms = ([int(n) for n in sys.argv[1:]] + [32, 0])[:3]
    app = Upstream(pieces, pause_ms / 1000)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off", backlog=4096)


if __name__ == "__main__":
    main()
