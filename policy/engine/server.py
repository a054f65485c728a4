"""The engine process: the OpenAI protocol on loopback, and vLLM's calls for adapters.

    python -m policy.engine.server

It reads the settings and the base model, binds 127.0.0.1 on `engine_port`, and needs no database. It has no
authentication: nothing but loopback may reach it. It runs until SIGTERM or SIGINT.
"""

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

# Before torch is imported: threads that spin at barriers starve each other beside a training run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import pydantic
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from core import logs
from core.body import parse_body, validated
from core.errors import ArtifactError, DunnockError, InvalidInput
from core.messages import Message, user
from core.settings import get_settings
from policy.base import base_model_path
from policy.engine.answers import Answering, error_body
from policy.engine.generation import Engine, Sampling
from policy.engine.names import BASE
from policy.protocol import ChatRequest

log = logging.getLogger("dunnock.engine")

HOST = "127.0.0.1"
TAKEN = {
    "max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
    "prompt_logprobs",
}  # fmt: skip
"""Fields of a request that the decoder takes as they are."""


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


class Wants(pydantic.BaseModel):
    """What both kinds of completion calls say beside the request itself."""

    response_format: ResponseFormat = ResponseFormat()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


class ChatBody(ChatRequest, Wants):
    """The body of a chat completion call."""

    response_format: ResponseFormat = ResponseFormat()  # type: ignore[assignment]  # clients write it as it comes
    stop: tuple[str, ...] | str | None = ()  # type: ignore[assignment]  # the wire allows one string


class TextBody(Wants):
    """The body of a call that has a text continued; what is not named here is as of a chat."""

    model_config = pydantic.ConfigDict(extra="allow")

    prompt: str
    logprobs: int | None = None
    echo: bool = False

    def as_chat(self) -> ChatBody:
        """The same in the words of a chat.

        Raises:
            InvalidInput: it is none.
        """
        said = self.model_dump(by_alias=True, exclude={"prompt", "logprobs", "echo"})
        told = {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0, "prompt_logprobs": self.echo}
        return validated(ChatBody, {**said, **told, "raw": True, "messages": user(self.prompt)})


def _sampling(body: ChatBody) -> Sampling:
    """The part that the decoder takes."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    schema = body.response_format.schema_of_text()
    return Sampling(stop=stop, json_schema=schema, **body.model_dump(include=TAKEN))


class TokenizeBody(pydantic.BaseModel):
    """A conversation, or a text."""

    messages: list[Message] = []
    prompt: str | None = None


class AdapterBody(pydantic.BaseModel):
    lora_name: str
    lora_path: str = ""


def create_engine_app(decoder: Engine, artifact_dir: Path) -> Flask:
    """The engine's WSGI app.

    Args:
        artifact_dir: adapters are loaded from below this folder only.
    """
    app = Flask("policy.engine")

    def complete(body: ChatBody) -> Response:
        if body.stream and (body.return_token_ids or body.prompt_logprobs):
            raise InvalidInput(
                "token ids, and what the prompt is told of, come with whole completions only", param="stream"
            )
        prompt_ids = encode(body.messages, body.raw)
        generation = decoder.submit(body.model, prompt_ids, _sampling(body), pieces=body.stream)
        gone = request.environ.get("waitress.client_disconnected", lambda: False)
        answering = Answering(body, generation, decoder.base, gone)
        if body.stream:
            lines = answering.lines(usage=body.stream_options.include_usage)
            return Response(lines, mimetype="text/event-stream", headers={"Cache-Control": "no-store"})
        return jsonify(answering.whole())

    def encode(messages: Sequence[Message], raw: bool) -> list[int]:
        if raw:
            return decoder.base.encode_raw(messages[0].content)
        return decoder.base.encode([m.model_dump() for m in messages])

    @app.post("/v1/chat/completions")
    def chat() -> Response:
        return complete(parse_body(ChatBody))

    @app.post("/v1/completions")
    def text() -> Response:
        return complete(parse_body(TextBody).as_chat())

    @app.post("/tokenize")
    def tokenize() -> Response:
        body = parse_body(TokenizeBody)
        raw = body.prompt is not None
        ids = encode([Message(role="user", content=body.prompt)] if body.prompt is not None else body.messages, raw)
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


def _refused(error: DunnockError) -> tuple[Response, int]:
    status = 400 if isinstance(error, ArtifactError) else error.status  # the caller named that folder
    return jsonify(error_body(error)), status


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
        grammar_s=settings.engine_grammar_s,
        grammars=settings.engine_grammars,
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
