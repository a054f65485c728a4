"""The scoring process: what completions are worth to the preference reward model, over HTTP on loopback.

    python -m reward.score_server BASE          the folder of the base model

It reads the settings, binds 127.0.0.1 on `DUNNOCK_BEST_OF__PORT`, and needs no database: it is told which reward
model to load. It has no authentication: nothing but loopback may reach it. It holds one model; a caller that is answered 404 loads
its own. Bodies are JSON, at most `reward.asgi.MOST_BYTES`; errors have the engine's shape.

**POST /load** `{"path": "rewards/cycle-3", "sha256": "<64 hex>"}`, a folder below the artifact folder, relative to it or absolute; its
hash is verified over all files. Answers 200 `{"model": NAME}`. 400: it lies outside, is damaged, no preference reward model, or of
another base.

**POST /score** `{"model": NAME, "messages": [{"role", "content"}, …], "completions": ["…", …]}`, 1 to `MOST_COMPLETIONS` of them. Answers 200
`{"scores": [{"value", "mean", "sd"}, …]}`: mean − λ · sd over the ensemble's members, in the units of the Bradley-Terry logit. They are
computed together, one request at a time. 503 with code `score_full`: more than `MOST_WAITING` requests would wait. 404: another model
is loaded, or none.

**GET /health** 200 `{"model": NAME or null, "waiting", "requests", "artifact_dir"}`.
"""

import argparse
import asyncio
import logging
import os
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
from core.errors import DunnockError, InvalidInput, NotFound, TooManyRequests
from core.settings import Settings, get_settings
from reward.asgi import body_of, refusal
from reward.scoring import RewardScorer
from reward.service import RewardService

log = logging.getLogger("dunnock.score")

HOST = "127.0.0.1"
MOST_COMPLETIONS = 16
MOST_WAITING = 64
FULL = "score_full"


class LoadBody(pydantic.BaseModel):
    path: str
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


class Turn(pydantic.BaseModel):
    role: str
    content: str


class ScoreBody(pydantic.BaseModel):
    model: str
    messages: list[Turn] = pydantic.Field(min_length=1)
    completions: list[str] = pydantic.Field(min_length=1, max_length=MOST_COMPLETIONS)


@dataclass(frozen=True)
class _Loaded:
    name: str
    service: RewardService


class Scoring:
    """The model in memory, and who waits for it."""

    def __init__(self, settings: Settings, base: Path) -> None:
        self._settings, self._base = settings, base
        self.artifact_dir = settings.artifact_dir.resolve()
        self.loaded: _Loaded | None = None
        self.waiting = self.requests = 0
        self._turn = asyncio.Lock()

    async def load(self, body: LoadBody) -> str:
        """Have a model in memory, in the place of the one before; its name.

        Raises:
            InvalidInput: it lies outside of the artifact folder.
            ArtifactError: it is damaged, or does not fit the base.
        """
        folder = (self.artifact_dir / body.path).resolve()
        if not folder.is_relative_to(self.artifact_dir) or folder == self.artifact_dir:
            raise InvalidInput(f"path {body.path} lies outside the artifact folder", param="path")
        name = f"reward-{body.sha256[:16]}"
        async with self._turn:
            if self.loaded is None or self.loaded.name != name:
                self.loaded = None  # two bases have no room on a small machine
                self.loaded = _Loaded(name, await asyncio.to_thread(self._open, folder, body.sha256))
                log.info("loaded %s from %s", name, folder)
        return name

    def _open(self, folder: Path, sha256: str) -> RewardService:
        verify_folder(folder, sha256)
        scorer = RewardScorer.load(folder, self._base, self._settings.device)
        return RewardService(scorer, identity=sha256)

    async def score(self, body: ScoreBody) -> list[dict[str, float]]:
        """The scores of some completions of one conversation.

        Raises:
            NotFound: the model is not the one that is loaded.
            TooManyRequests: too many wait.
        """
        if self.waiting >= MOST_WAITING:
            raise TooManyRequests(f"{self.waiting} requests wait for the reward model, and that is the most", code=FULL)
        self.waiting += 1
        try:
            async with self._turn:
                if self.loaded is None or self.loaded.name != body.model:
                    raise NotFound(f"no model {body.model} is loaded; POST /load first", param="model")
                prompt = [turn.model_dump() for turn in body.messages]
                items = [(prompt, text) for text in body.completions]
                found = await asyncio.to_thread(self.loaded.service.explain, items)
        finally:
            self.waiting -= 1
        self.requests += 1
        return [{"value": each.value, "mean": each.mean, "sd": each.sd} for each in found]

    def health(self) -> dict[str, Any]:
        """What GET /health tells."""
        model = self.loaded.name if self.loaded else None
        return {
            "model": model, "waiting": self.waiting, "requests": self.requests, "artifact_dir": str(self.artifact_dir)
        }  # fmt: skip


def create_score_app(scoring: Scoring) -> Starlette:
    """The ASGI app."""

    async def load(request: Request) -> Response:
        return JSONResponse({"model": await scoring.load(await body_of(request, LoadBody))})

    async def score(request: Request) -> Response:
        return JSONResponse({"scores": await scoring.score(await body_of(request, ScoreBody))})

    async def health(_: Request) -> Response:
        return JSONResponse(scoring.health())

    def refused(_: Request, error: Exception) -> Response:
        return refusal(error, (FULL,))

    return Starlette(
        routes=[
            Route("/load", load, methods=["POST"]),
            Route("/score", score, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={DunnockError: refused},
    )


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="Score completions with the preference reward model.")
    parser.add_argument("base", type=Path, help="folder of the base model")
    base = parser.parse_args().base
    import torch
    import uvicorn

    settings = get_settings()
    logs.configure(settings)
    torch.set_num_threads(settings.best_of.threads)
    log.info("scoring on http://%s:%d", HOST, settings.best_of.port)
    uvicorn.run(
        create_score_app(Scoring(settings, base)), host=HOST, port=settings.best_of.port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=5, server_header=False, proxy_headers=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
