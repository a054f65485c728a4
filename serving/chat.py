"""A chat call once it is known who asks and for which version: prompt's length, completion, storing, answer. On an event loop."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from flask import Flask

from core.db import Database
from core.errors import EngineError, NotFound, PromptTooLong
from core.settings import Settings
from policy.async_client import AsyncEngineClient
from policy.client import EngineClient
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from serving.deferred import Answer
from serving.recorder import Recorder
from serving.replies import Ended, Reply, choice_body, several, usage_body
from serving.routing import engine_client, make_ready
from serving.streams import ReplyStream

log = logging.getLogger("dunnock.serving")

EXTENSION = "dunnock_chat"
VERSION_HEADER = "X-Dunnock-Policy-Version"
TEMPLATE_TOKENS = 64  # what a chat template adds at most, with room to spare, plus so many per message:
TEMPLATE_TOKENS_PER_MESSAGE = 8

Made = TypeVar("Made")


@dataclass(frozen=True)
class Asked:
    """A chat call that may be answered.

    Attributes:
        choices: replies to make; more than one come whole.
    """

    version: PolicyVersion
    request: ChatRequest
    person_id: int | None
    choices: int = 1
    stream: bool = False
    include_usage: bool = False


class Chat:
    """Answers chat calls. One per app; it keeps the connections to the engine.

    Args:
        loader: the client that adapters are loaded with.
    """

    def __init__(self, settings: Settings, db: Database, loader: EngineClient) -> None:
        self.settings = settings
        self.engine = AsyncEngineClient(settings.engine_base_url, settings.engine_api_key, settings.engine_timeout_s)
        self.recorder = Recorder(db)
        self._loader = loader

    async def answer(self, asked: Asked) -> Answer:
        """The reply or replies, whole or as a stream; stored before the last byte goes out.

        Raises:
            PromptTooLong: more prompt tokens than are taken.
            ArtifactError: the version's adapter is missing or damaged.
            EngineError: the engine cannot be reached, is overloaded or failed.
        """
        await self._check_length(asked.request)
        headers = {VERSION_HEADER: asked.version.name}
        reply = Reply(asked.version, asked.request, asked.person_id)
        if asked.stream:
            events = await self._with_version(asked.version, lambda: self.engine.stream(asked.request))
            lines = ReplyStream(reply, events, self.recorder, include_usage=asked.include_usage)
            return Answer(lines, headers=headers | {"X-Accel-Buffering": "no"}, media="text/event-stream")
        replies = several(asked.choices, reply)
        made = await self._with_version(asked.version, lambda: self._all(replies))
        both = list(zip(replies, made, strict=True))
        await self.recorder.store(
            [Ended(r, w.text, w.finish_reason, (w.prompt_tokens, w.completion_tokens)) for r, w in both]
        )
        body = {
            **reply.head("chat.completion"),
            "choices": [choice_body(i, r, whole) for i, (r, whole) in enumerate(both)],
            # the prompt of all is told once
            "usage": usage_body((made[0].prompt_tokens, sum(whole.completion_tokens for whole in made))),
        }
        return Answer(json.dumps(body, ensure_ascii=False).encode(), headers=headers)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.engine.close()

    async def _all(self, replies: list[Reply]) -> list[ChatReply]:
        """All at once; the first failure ends the others."""
        if len(replies) == 1:
            return [await self.engine.complete(replies[0].request)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.engine.complete(reply.request)) for reply in replies]
        return [task.result() for task in tasks]

    async def _with_version(self, version: PolicyVersion, call: Callable[[], Awaitable[Made]]) -> Made:
        """Do `call`; if the engine does not know the version, as after its restart, load it and try once more."""
        try:
            return await _first_of_group(call)
        except NotFound:
            log.info("the engine does not know %s; loading it", version.name)
        await asyncio.to_thread(make_ready, self._loader, version, self.settings)
        try:
            return await _first_of_group(call)
        except NotFound as error:
            raise EngineError(
                f"the engine does not know {version.name!r} after loading it; a vLLM server must be started with"
                " `--served-model-name base`"
            ) from error

    async def _check_length(self, asked: ChatRequest) -> None:
        """Raise PromptTooLong above the limit; asks the engine only where the bytes leave a doubt."""
        limit = self.settings.max_prompt_tokens
        most = sum(len(m.content.encode()) + TEMPLATE_TOKENS_PER_MESSAGE for m in asked.messages) + TEMPLATE_TOKENS
        if most <= limit:  # a token is at least a byte
            return
        count = await self.engine.count_tokens(asked.messages)
        if count is not None and count > limit:
            raise PromptTooLong(f"the prompt has {count} tokens; at most {limit} are taken", param="messages")


async def _first_of_group(call: Callable[[], Awaitable[Made]]) -> Made:
    """What it gives; of a group of errors, the first."""
    try:
        return await call()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


def chat_of(app: Flask) -> Chat:
    """The app's one `Chat`, made at its first use."""
    if EXTENSION not in app.extensions:
        runtime = app.extensions["dunnock"]
        app.extensions[EXTENSION] = Chat(runtime.settings, runtime.db, engine_client(runtime.settings, app))
    chat: Chat = app.extensions[EXTENSION]
    return chat


async def close_chat(app: Flask) -> None:
    """Let go of what the app's `Chat` holds on this event loop, if it was ever made."""
    if (chat := app.extensions.get(EXTENSION)) is not None:
        await chat.close()
