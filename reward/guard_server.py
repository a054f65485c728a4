"""The guard's process: P(broken) of what streams have written, by rule, over HTTP on loopback.

    python -m reward.guard_server

It reads the settings and the encoder, binds 127.0.0.1 on `DUNNOCK_GUARD__PORT`, and needs no database: it is told which models
to load. It has no authentication: nothing but loopback may reach it. It runs until SIGTERM or SIGINT. Its models are lost when it
ends: a caller that is answered 404 loads its model again.

Bodies are JSON, at most `reward.asgi.MOST_BYTES`. An error is `{"error": {"message", "type", "param", "code"}}`, as the engine's.

**POST /load** `{"path": "rewards/cycle-3-guard", "sha256": "<64 hex>"}`. `path` is a folder below the artifact folder, relative to it
or absolute. Its hash is verified over all files, then it is loaded beside what is there and asked its probe. Loading what is loaded
changes nothing, so each web worker may ask. Answers 200
`{"model": NAME, "threshold": 0.91, "thresholds": {"no_threats": 0.88, …}, "false_hits_frac": 0.02}`. NAME hangs on the hash alone and so
never means another model: to flip, load the new one, ask by the new name from then on, and unload the old one when nobody asks by
it any more. 400: the folder is outside (code `invalid_request`), damaged, no guard's model, or made with another encoder
(`artifact_error`). At most `MOST_MODELS` are held; one more is refused with 409.

**POST /unload** `{"model": NAME}`. Answers 200 `{"model": NAME, "unloaded": true}`, false where it was not loaded. It is answered by for
`LINGER_S` more, because other web workers may not have flipped yet, and makes room where a new one needs it.

**POST /v1/score**

    {"model": NAME, "deadline_ms": 300,
     "items": [{"context": "user: …\nassistant: …\nuser: …", "text": "what is written so far", "start": 0,
                "rules": [{"name": "no_threats", "text": "Do not threaten anyone."}, …]}, …]}

`context` is the conversation as `reward.guard.encoder.end_of` writes it, or the end of that. 1 to `MOST_ITEMS` items with up to `MOST_RULES` rules each, which may differ; a rule is what its text says, its name is what the answer
calls it. `text` is all that is written so far, of which what stands before character `start` (optional, 0) was asked about before: the
model reads its last 128 tokens and the last 48 of `context`, and where that does not reach back to `start` the 128 before too,
and so on; each such window counts as an item that waits, and P(broken) is the highest of them. Answers 200

    {"model": NAME, "items": [{"broken": {"no_threats": 0.03, …}, "hits": []}, …]}

`broken` is P(the whole completion breaks the rule | what is written so far); `hits` are the names that reach their threshold. A rule has a threshold
of its own while its words are those of training, else the common one. Thresholds are chosen so that no more than `false_hits_frac` of
clean completions are hit by a rule anywhere on their way, where they are asked about a few times (docs/rewards.md).

Items of all connections are computed together. Answers come in the order of the request's items, and a request is answered when
all of its items are. 503 with code `guard_full`: more than `DUNNOCK_GUARD__MAX_WAITING` items would wait; said at once, nothing was
queued. 503 with `guard_late`: `deadline_ms` (from its arrival; optional) had passed when its turn came, and nothing was computed. 404: no
such model. 400: a body of another shape; 413: too large. A caller that goes away costs what is computed already; give a deadline.

**POST /embed** `{"texts": ["…", …]}`, 1 to `MOST_ITEMS`. Answers 200 `{"embeddings": [[…] or null, …], "encoder_sha256": "<64 hex>"}`: the mean of the encoder's last states, of
length 1, by which sentences of like meaning are near each other; null for a text of more than `SENTENCE_TOKENS` tokens, since what is left out of it would be missed.

**GET /health** 200, or 503 where the model's thread has died: `{"models": {NAME: {"path", "sha256"}}, "waiting", "requests", "items",
"batches", "refused", "late", "failed", "artifact_dir", "encoder_sha256", "dtype", "threads"}`; counters since the start.
"""

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported: threads that spin at barriers starve each other beside an engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import pydantic
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core import logs
from core.artifacts import verify_folder
from core.errors import Conflict, DunnockError, InvalidInput, NotFound
from core.settings import Settings, get_settings
from reward.asgi import body_of, refusal
from reward.guard.batching import FULL, Batcher
from reward.guard.encoder import Encoder, Tokens, encoder_path
from reward.guard.student import Rule, Student

log = logging.getLogger("dunnock.guard")

HOST = "127.0.0.1"
MOST_ITEMS = 64
MOST_RULES = 128
MOST_MODELS = 8
LINGER_S = 60.0


class RuleBody(pydantic.BaseModel):
    name: str
    text: str


class ItemBody(pydantic.BaseModel):
    context: str = ""
    text: str
    start: int = pydantic.Field(0, ge=0)
    rules: list[RuleBody] = pydantic.Field(max_length=MOST_RULES)


class ScoreBody(pydantic.BaseModel):
    model: str
    items: list[ItemBody] = pydantic.Field(min_length=1, max_length=MOST_ITEMS)
    deadline_ms: float | None = pydantic.Field(None, gt=0)


class EmbedBody(pydantic.BaseModel):
    texts: list[str] = pydantic.Field(min_length=1, max_length=MOST_ITEMS)


class LoadBody(pydantic.BaseModel):
    path: str
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


class UnloadBody(pydantic.BaseModel):
    model: str


@dataclass(frozen=True)
class _Ask:
    """One item in the queue: the model is held by it, so an unloaded one still answers."""

    student: Student
    tokens: Tokens
    rules: tuple[str, ...]


@dataclass(frozen=True)
class _Loaded:
    path: Path
    sha256: str
    student: Student


class Guard:
    """The models in memory on one encoder, and the thread that runs them."""

    def __init__(self, encoder: Encoder, artifact_dir: Path, *, max_batch: int, max_waiting: int) -> None:
        self.encoder = encoder
        self.artifact_dir = artifact_dir.resolve()
        self.models: dict[str, _Loaded] = {}
        self._leaving: dict[str, float] = {}  # when they are gone, of those that were unloaded
        self.requests = 0
        self._loading = threading.Lock()
        self.batcher: Batcher[_Ask, list[float]] = Batcher(self._run, most_batch=max_batch, most_waiting=max_waiting)

    def load(self, path: str, sha256: str) -> tuple[str, Student]:
        """Load a folder, or find it loaded; the name that it is asked by.

        Raises:
            InvalidInput: it lies outside of the artifact folder.
            ArtifactError: it is damaged, no guard's model, or of another encoder.
            Conflict: as many as may be are loaded.
        """
        folder = (self.artifact_dir / path).resolve()
        if not folder.is_relative_to(self.artifact_dir) or folder == self.artifact_dir:
            raise InvalidInput(f"path {path} lies outside the artifact folder", param="path")
        name = f"guard-{sha256[:16]}"
        with self._loading:
            self._leaving.pop(name, None)
            if name not in self.models:
                self._make_room()
                if len(self.models) >= MOST_MODELS:
                    raise Conflict(f"{MOST_MODELS} models are loaded, and that is the most; unload one first")
                verify_folder(folder, sha256)
                self.models[name] = _Loaded(folder, sha256, Student.load(folder, self.encoder))
                log.info("loaded %s from %s", name, folder)
            return name, self.models[name].student

    def unload(self, name: str) -> bool:
        """Let a model go in a while; whether it was there and not on its way already."""
        with self._loading:
            if name not in self.models or name in self._leaving:
                return False
            self._leaving[name] = time.monotonic() + LINGER_S
            return True

    def _make_room(self) -> None:
        """Drop those whose time is over, and where that is not enough the one that was unloaded first."""
        over = [name for name, gone in self._leaving.items() if gone < time.monotonic()]
        if not over and len(self.models) >= MOST_MODELS:
            over = list(self._leaving)[:1]
        for name in over:
            del self._leaving[name], self.models[name]

    def submit(self, body: ScoreBody, arrived: float) -> tuple[Student, list[list[Any]]]:
        """Queue the items of a request; of each the futures of its windows, with P(broken) in the order of its rules.

        Raises:
            NotFound: no model of this name is loaded.
            TooManyRequests: the queue is full.
        """
        loaded = self.models.get(body.model)
        if loaded is None or self._leaving.get(body.model, math.inf) < arrived:
            raise NotFound(f"no model {body.model} is loaded; POST /load first", param="model")
        deadline = arrived + body.deadline_ms / 1000 if body.deadline_ms is not None else math.inf
        asks = [
            [_Ask(loaded.student, tokens, tuple(r.text for r in i.rules)) for tokens in self._windows(i)]
            for i in body.items
        ]
        self.requests += 1
        futures = iter(self.batcher.submit([ask for windows in asks for ask in windows], deadline))
        return loaded.student, [[next(futures) for _ in windows] for windows in asks]

    def _windows(self, item: ItemBody) -> list[Tokens]:
        return self.encoder.windows(item.context, item.text, item.start)

    def health(self) -> dict[str, Any]:
        """What GET /health tells."""
        counts = self.batcher.counts
        return {
            "models": {n: {"path": str(m.path), "sha256": m.sha256} for n, m in list(self.models.items())},
            "waiting": self.batcher.waiting(), "requests": self.requests, **vars(counts),
            "artifact_dir": str(self.artifact_dir), "encoder_sha256": self.encoder.sha256,
            "dtype": str(self.encoder.dtype).removeprefix("torch."), "threads": _threads(),
        }  # fmt: skip

    def _run(self, asks: Sequence[_Ask]) -> list[list[float]]:
        states = self.encoder.states([ask.tokens for ask in asks])
        return [ask.student.from_states(states[i : i + 1], ask.rules)[0] for i, ask in enumerate(asks)]


def create_guard_app(guard: Guard) -> Starlette:
    """The guard's ASGI app."""

    async def score(request: Request) -> Response:
        arrived = time.monotonic()
        body = await body_of(request, ScoreBody)
        student, futures = guard.submit(body, arrived)
        found = [await asyncio.gather(*map(asyncio.wrap_future, windows)) for windows in futures]
        items = [_answer(student, item.rules, _highest(p)) for item, p in zip(body.items, found, strict=True)]
        return JSONResponse({"model": body.model, "items": items})

    async def embed(request: Request) -> Response:
        texts = (await body_of(request, EmbedBody)).texts
        found = await asyncio.to_thread(guard.encoder.sentences, texts)
        return JSONResponse({"embeddings": found, "encoder_sha256": guard.encoder.sha256})

    async def load(request: Request) -> Response:
        body = await body_of(request, LoadBody)
        name, student = await asyncio.to_thread(guard.load, body.path, body.sha256)
        found = student.thresholds
        by_rule = {rule: value for rule, (_, value) in found.by_rule.items()}
        told = {"model": name, "threshold": found.common, "thresholds": by_rule}
        return JSONResponse({**told, "false_hits_frac": found.false_hits_frac})

    async def unload(request: Request) -> Response:
        name = (await body_of(request, UnloadBody)).model
        return JSONResponse({"model": name, "unloaded": await asyncio.to_thread(guard.unload, name)})

    async def health(_: Request) -> Response:
        return JSONResponse(guard.health(), 200 if guard.batcher.alive() else 503)

    return Starlette(
        routes=[
            Route("/v1/score", score, methods=["POST"]),
            Route("/embed", embed, methods=["POST"]),
            Route("/load", load, methods=["POST"]),
            Route("/unload", unload, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={DunnockError: _refused},
    )


def _highest(windows: Sequence[Sequence[float]]) -> list[float]:
    """P(broken) of each rule: of a text that was read in several windows, the highest."""
    return [max(found) for found in zip(*windows, strict=True)]


def _answer(student: Student, rules: Sequence[RuleBody], found: Sequence[float]) -> dict[str, Any]:
    broken = {rule.name: p for rule, p in zip(rules, found, strict=True)}
    hits = [
        rule.name
        for rule, p in zip(rules, found, strict=True)
        if p >= student.thresholds.of(Rule(rule.name, rule.text))
    ]
    return {"broken": broken, "hits": hits}


def _refused(_: Request, error: Exception) -> Response:
    return refusal(error, (FULL,))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def open_guard(settings: Settings) -> Guard:
    """The guard of these settings, its encoder loaded and no model yet.

    Raises:
        ArtifactError: the encoder is not there.
    """
    import torch

    torch.set_num_threads(settings.guard.threads)
    encoder = Encoder(encoder_path(settings), settings.device, settings.guard.precision)
    given = settings.guard
    return Guard(encoder, settings.artifact_dir, max_batch=given.max_batch, max_waiting=given.max_waiting)


def main() -> None:
    """Load the encoder and serve until a signal comes."""
    import uvicorn

    settings = get_settings()
    logs.configure(settings)
    guard = open_guard(settings)
    log.info("guard on http://%s:%d, device %s", HOST, settings.guard.port, guard.encoder.device)
    try:
        uvicorn.run(
            create_guard_app(guard), host=HOST, port=settings.guard.port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=5, server_header=False, proxy_headers=False,
        )  # fmt: skip
    finally:
        guard.batcher.close()


if __name__ == "__main__":
    main()
