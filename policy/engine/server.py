"""The engine process: the OpenAI protocol on loopback, and vLLM's calls for adapters.

    python -m policy.engine.server

It reads the settings and the base model, binds 127.0.0.1 on `engine_port`, and needs no database. It has no
authentication: nothing but loopback may reach it. It runs until SIGTERM or SIGINT.
"""

import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

# Before torch is imported: threads that spin at barriers starve each other beside a training run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import pydantic
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from core import logs
from core.body import parse_body
from core.errors import ArtifactError, DunnockError, InvalidInput
from core.messages import Message
from core.settings import get_settings
from policy.base import base_model_path
from policy.engine.generation import Engine, Finish, Generation, Piece, Sampling, Spoken
from policy.engine.names import BASE
from policy.protocol import ChatRequest

log = logging.getLogger("dunnock.engine")

HOST = "127.0.0.1"
LOOK_FOR_CLIENT_S = 1.0


class StreamOptions(pydantic.BaseModel):
    include_usage: bool = False


class SchemaFormat(pydantic.BaseModel):
    schema_: dict[str, Any] = pydantic.Field(alias="schema")


class ResponseFormat(pydantic.BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: SchemaFormat | None = None

    def schema_of_text(self) -> dict[str, Any] | None:
        """What the text must conform to; None: nothing.

        Raises:
            InvalidInput: a schema is meant and none is given.
        """
        if self.type == "json_schema" and self.json_schema is None:
            raise InvalidInput("response_format json_schema needs its json_schema", param="response_format")
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.json_schema else {"type": "object"}


class ChatBody(ChatRequest):
    """The body of a chat completion call."""

    response_format: ResponseFormat = ResponseFormat()  # type: ignore[assignment]  # clients write it as it comes
    stop: tuple[str, ...] | str | None = ()  # type: ignore[assignment]  # the wire allows one string
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    def sampling(self) -> Sampling:
        """The part that the decoder takes."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        fields = {"max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logprobs"}
        schema = self.response_format.schema_of_text()
        return Sampling(stop=stop, json_schema=schema, **self.model_dump(include=fields))


class TokenizeBody(pydantic.BaseModel):
    messages: list[Message]


class AdapterBody(pydantic.BaseModel):
    lora_name: str
    lora_path: str = ""


def create_engine_app(decoder: Engine, artifact_dir: Path) -> Flask:
    """The engine's WSGI app.

    Args:
        artifact_dir: adapters are loaded from below this folder only.
    """
    app = Flask("policy.engine")

    @app.post("/v1/chat/completions")
    def chat() -> Response:
        body = parse_body(ChatBody)
        if body.stream and body.return_token_ids:
            raise InvalidInput("return_token_ids comes with whole completions only", param="stream")
        sampling = body.sampling()
        if sampling.json_schema is not None and not decoder.grammars:
            raise InvalidInput("this engine keeps to no grammar; set DUNNOCK_ENGINE=gguf", param="response_format")
        prompt_ids = decoder.base.encode([m.model_dump() for m in body.messages])
        generation = decoder.submit(body.model, prompt_ids, sampling, pieces=body.stream)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        gone = request.environ.get("waitress.client_disconnected", lambda: False)
        if body.stream:
            lines = _Lines(generation, head, body.stream_options.include_usage, gone, decoder.base)
            return Response(lines, mimetype="text/event-stream", headers={"Cache-Control": "no-store"})
        text, end = _read(generation, gone)
        return jsonify({**head, "object": "chat.completion", **_whole(text, end, body, prompt_ids, decoder.base)})

    @app.post("/tokenize")
    def tokenize() -> Response:
        ids = decoder.base.encode([m.model_dump() for m in parse_body(TokenizeBody).messages])
        return jsonify(count=len(ids), max_model_len=decoder.base.context_tokens, tokens=ids)

    @app.get("/v1/models")
    def models() -> Response:
        return jsonify(object="list", data=[_model(name, path) for name, path in decoder.adapters().items()])

    @app.post("/v1/load_lora_adapter")
    def load() -> Response:
        body = parse_body(AdapterBody)
        decoder.load(body.lora_name, _inside(artifact_dir, body.lora_path))
        return Response(f"Success: LoRA adapter '{body.lora_name}' added successfully.", mimetype="text/plain")

    @app.post("/v1/unload_lora_adapter")
    def unload() -> Response:
        name = parse_body(AdapterBody).lora_name
        decoder.unload(name)
        return Response(f"Success: LoRA adapter '{name}' removed successfully.", mimetype="text/plain")

    @app.get("/health")
    def health() -> tuple[Response, int]:
        facts = {"requests": decoder.open_requests(), "artifact_dir": str(artifact_dir)}
        return jsonify(facts), 200 if decoder.healthy() else 503

    app.register_error_handler(DunnockError, _refused)
    app.register_error_handler(HTTPException, _http_error)
    return app


def _inside(artifact_dir: Path, path: str) -> Path:
    folder = Path(path).resolve()
    if not folder.is_relative_to(artifact_dir.resolve()):
        raise InvalidInput(f"lora_path {path} lies outside the artifact folder", param="lora_path")
    return folder


def _model(name: str, path: Path | None) -> dict[str, Any]:
    parent = None if name == BASE else BASE
    return {"id": name, "object": "model", "owned_by": "dunnock", "root": str(path or name), "parent": parent}


def _usage(end: Finish) -> dict[str, float]:
    """Tokens as OpenAI counts them, and seconds that were computed for them, which is ours."""
    return {
        "compute_seconds": round(end.compute_s, 6),
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def _read(generation: Generation, gone: Callable[[], bool]) -> tuple[str, Finish]:
    text = ""
    while not isinstance(event := generation.next(LOOK_FOR_CLIENT_S), Finish):
        text += event.text if event else ""
        if event is None and gone():
            generation.cancel()
    return text, event


def _whole(text: str, end: Finish, body: ChatBody, prompt_ids: list[int], base: Spoken) -> dict[str, Any]:
    """Choice and usage; token ids, where they are asked for, stand where vLLM puts them."""
    message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": end.reason, "logprobs": None}
    if body.logprobs:
        choice["logprobs"] = _told(end, base)
    answer: dict[str, Any] = {"choices": [choice], "usage": _usage(end)}
    if body.return_token_ids:
        choice["token_ids"], answer["prompt_token_ids"] = list(end.token_ids), prompt_ids
    return answer


def _told(of: Piece | Finish, base: Spoken) -> dict[str, Any] | None:
    """Tokens with their log-probabilities, where they are told."""
    if not of.logprobs:
        return None
    pairs = zip(of.token_ids, of.logprobs, strict=True)
    return {"content": [_token(base.tokenizer.decode([token]), value) for token, value in pairs]}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


class _Lines(Iterator[bytes]):
    """The server-sent events of one completion. `close()`, which the server calls in any case, frees the row."""

    def __init__(
        self, generation: Generation, head: dict[str, Any], usage: bool, gone: Callable[[], bool], base: Spoken
    ) -> None:
        self._generation = generation
        self._base = base
        self._head = {**head, "object": "chat.completion.chunk"}
        self._usage = usage
        self._gone = gone
        self._lines = self._produce()

    def __next__(self) -> bytes:
        return next(self._lines)

    def close(self) -> None:
        self._generation.cancel()

    def _produce(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""}, None)
        try:
            while not isinstance(event := self._generation.next(LOOK_FOR_CLIENT_S), Finish):
                if event is None and self._gone():
                    return
                if event:
                    yield self._chunk({"content": event.text}, None, _told(event, self._base))
        except DunnockError as error:
            yield _line(_error_body(error))
            return
        yield self._chunk({}, event.reason)
        if self._usage:
            yield _line({**self._head, "choices": [], "usage": _usage(event)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None, logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return _line({**self._head, "choices": [choice]})


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _error_body(error: DunnockError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def _refused(error: DunnockError) -> tuple[Response, int]:
    status = 400 if isinstance(error, ArtifactError) else error.status  # the caller named that folder
    return jsonify(_error_body(error)), status


def _http_error(error: HTTPException) -> tuple[Response, int]:
    message = {"message": error.description, "type": "invalid_request_error", "param": None, "code": None}
    return jsonify(error=message), error.code or 500


def serve(app: Flask, port: int, threads: int) -> Any:
    """A waitress server, not yet running; `run()` blocks. It sends each piece as soon as it is made."""
    from waitress import create_server  # type: ignore[import-untyped]

    return create_server(
        app,
        host=HOST,
        port=port,
        threads=threads,
        connection_limit=threads + 64,
        channel_request_lookahead=1,  # lets a waiting request see that its client has gone
        ident="dunnock-engine",
    )


def main() -> None:
    """Load the base model and serve until a signal comes."""
    from policy.engine.base import load_base
    from policy.engine.decoder import Decoder

    settings = get_settings()
    logs.configure(settings)
    base = load_base(base_model_path(settings), settings.device)
    decoder = Decoder(
        base,
        max_rows=settings.engine_max_batch,
        max_waiting=4 * settings.engine_max_batch,
        max_prompt_tokens=settings.max_prompt_tokens,
        packed_mb=settings.engine_packed_mb,
    )
    server = serve(create_engine_app(decoder, settings.artifact_dir), settings.engine_port, settings.engine_threads)
    signal.signal(signal.SIGTERM, _exit)
    log.info("engine on http://%s:%d/v1, device %s", HOST, settings.engine_port, base.device)
    try:
        server.run()
    finally:
        decoder.close()
        server.close()


def _exit(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
