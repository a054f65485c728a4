"""A chat call once it is known who asks and for which version: prompt's length, completion, storing, answer. On an event loop."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flask import Flask

from core.db import Database
from core.errors import PromptTooLong
from core.language import gettext
from core.settings import Settings
from feedback.consent import TRAINING
from feedback.models import completion_id
from policy.client import EngineClient
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from serving.best_of import BestOf
from serving.cache import Hit, ReplyCache
from serving.calls import Call
from serving.deferred import Answer
from serving.energy import Metered, energy_of
from serving.engines import CountedEvents, Engines
from serving.guarding import Checked, Guard, Standing, Watch
from serving.metrics import replied
from serving.pairing import Pairing
from serving.prompting import HEADER as SYSTEM_PROMPT_HEADER
from serving.prompting import NOT_PROMPTED, Prompted, Prompting
from serving.recorder import Recorder
from serving.replies import CUT, Ended, Reply, choice_body, several, tokens_of, usage_body, usage_of
from serving.routing import engine_client
from serving.side_process import Held
from serving.streams import ReplyStream, Said, Streamed

EXTENSION = "dunnock_chat"
VERSION_HEADER = "X-Dunnock-Policy-Version"
CACHE_HEADER = "X-Dunnock-Cache"
TEMPLATE_TOKENS = 64  # what a chat template adds at most, with room to spare, plus so many per message:
TEMPLATE_TOKENS_PER_MESSAGE = 8
CHARACTERS_PER_TOKEN = 32
"""More than a prompt has of them on the average; some tokens are longer."""

_making = threading.Lock()


@dataclass(frozen=True)
class Asked:
    """A chat call that may be answered.

    Attributes:
        standing: the rules that its replies are held to.
        checked: what the guard says of the prompt, which takes a while for long ones and is no work for an event loop.
        path: which call it was.
        choices: replies to make.
        cache_control: of the request, in small letters.
        tell_energy: whether the caller is told what it took.
        prompted: the system prompt that stands in `request`.
        scorer: the reward model that tells the best of several, where several may be drawn.
        echo: whether a raw prompt is told before its replies.
    """

    version: PolicyVersion
    request: ChatRequest
    person_id: int | None
    standing: Standing
    checked: Checked
    path: str
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    tenant_id: int | None = None
    keep_texts: bool = True
    consent: str = TRAINING
    user_key: str | None = None
    call: Call = field(default_factory=Call)
    tell_energy: bool = False
    cache_control: str = ""
    prompted: Prompted = NOT_PROMPTED
    scorer: Held | None = None
    echo: bool = False


Asking = tuple[Asked, Reply]
"""A reply that is to be made, and the call that asks for it."""


class Chat:
    """Answers chat calls. One per app; it keeps the connections to the engine.

    Args:
        loader: the client that adapters are loaded with.
    """

    def __init__(self, settings: Settings, db: Database, loader: EngineClient) -> None:
        self.settings = settings
        self.engines = Engines(settings, loader)
        self.guard = Guard(settings)
        self.energy = energy_of(settings.energy)
        self.cache = ReplyCache(db, settings)
        self.prompting = Prompting(settings)
        self.best_of = BestOf(settings, self.engines, self.guard)
        self.pairing = Pairing(db, settings.sampling, self.engines, self.guard, self.prompting)
        self.recorder = Recorder(db, settings.sampling, after=self.pairing.consider)
        self._at_work: set[asyncio.Task[None]] = set()

    async def answer(self, asked: Asked, *others: Asked) -> Answer:
        """The reply or replies, whole or as a stream; stored before the last byte goes out.

        Args:
            others: further prompts of the same call, which differ in nothing but request and what was checked of it.

        Raises:
            PromptTooLong: more prompt tokens than are taken.
            ArtifactError: the version's adapter is missing or damaged.
            EngineError: the engine cannot be reached, is overloaded or failed.
        """
        every = (asked, *others)
        for each in every:
            await self._check_length(each.request)
        first = Reply(
            asked.version, asked.request, asked.person_id, asked.tenant_id, asked.keep_texts, asked.consent, asked.user_key, asked.call,
            asked.prompted, echo=asked.echo,
        )  # fmt: skip
        if asked.request.raw:
            first.id = completion_id("cmpl")
        if any(each.checked.stop is None for each in every):
            await self.guard.ready(asked.standing)
        if not others and asked.checked.stop is None:
            first.hit, first.slot = await self.cache.look(asked)
        firsts = [first, *(replace(first, request=each.request, place=i) for i, each in enumerate(others, 1))]
        replies = [
            (each, reply) for each, head in zip(every, firsts, strict=True) for reply in several(each.choices, head)
        ]
        return await (self._streamed if asked.stream else self._whole)(replies)

    def _refusal(self, asked: Asked) -> str | None:
        """What a prompt is answered with that is not let through to the engine."""
        return None if asked.checked.stop is None else self.settings.guard.refusal_text

    def _draws(self, replies: Sequence[Asking]) -> bool:
        """Whether further ones may be drawn beside the one that is asked for."""
        (asked, first), more = replies[0], len(replies) > 1
        known = first.hit is not None or asked.checked.stop is not None
        return not known and not more and self.best_of.wanted(asked.request, asked.choices)

    async def _streamed(self, replies: Sequence[Asking]) -> Answer:
        choices, beside = [], list[Ended]()
        asked, first = replies[0]
        opened: Sequence[CountedEvents | Said]
        if self._draws(replies) and not asked.request.logprobs:
            whole, beside = await self._drawn(asked, first)
            opened = [Said.of(whole)]
        else:
            opened = await self._opened(replies)
        for (of, reply), events in zip(replies, opened, strict=True):
            meter, prompt = Metered(self.energy, events.share_s, of.tell_energy), of.checked.verdicts
            if of.checked.stop is not None:
                choices.append(Streamed(reply, events, meter=meter, prompt=prompt))
                continue
            watch = self._watch(of)
            guarding = of.call.trace.begin("guard output")
            choices.append(Streamed(reply, watch.over(events), watch, meter, guarding, prompt))
        lines = ReplyStream(choices, self.recorder, include_usage=asked.include_usage, beside=beside)
        headers = {**_headers(asked, first.hit), "X-Accel-Buffering": "no"}
        return Answer(lines, headers=headers, media="text/event-stream")

    async def _drawn(self, asked: Asked, reply: Reply) -> tuple[ChatReply, list[Ended]]:
        """The best of one or several completions, and those that are not given."""
        drawn = await self.best_of.draw(asked.version, asked.request, asked.standing, asked.scorer, asked.call.trace)
        reply.best_of = drawn.told()
        beside = zip(drawn.beside(reply), drawn.others, strict=True)
        return drawn.given, [replace(ended, energy_j=self.energy.joules(other.compute_s)) for ended, other in beside]

    async def _opened(self, replies: Sequence[Asking]) -> "list[CountedEvents | Said]":
        """The streams of all replies, or of none."""
        opening = [asyncio.ensure_future(self._events(asked, reply)) for asked, reply in replies]
        try:
            return list(await asyncio.gather(*opening))
        except BaseException:
            for each in opening:
                each.cancel()
            for events in await asyncio.gather(*opening, return_exceptions=True):
                if not isinstance(events, BaseException):
                    events.close()
            raise

    async def _events(self, asked: Asked, reply: Reply) -> "CountedEvents | Said":
        if (said := self._refusal(asked)) is not None:
            return Said(said, CUT)
        if (hit := reply.hit) is not None:
            return Said(hit.text, hit.finish_reason)
        return await self.engines.stream(reply.version, reply.request, reply.call.trace)

    async def _whole(self, replies: Sequence[Asking]) -> Answer:
        made, beside = list[ChatReply](), list[Ended]()
        try:
            if self._draws(replies):
                whole, beside = await self._drawn(*replies[0])
                made = [whole]
            else:
                made = await self._all(replies)
            ended = await asyncio.gather(
                *(self._cleared(*asking, whole) for asking, whole in zip(replies, made, strict=True))
            )
        except asyncio.CancelledError:
            self._storing(self._left(replies, made), beside)
            raise
        await self._store(ended, beside)
        prompt, written = usage_of(ended)
        return self._answer(replies[0][0], ended, made, (prompt, (written or 0) + tokens_of(beside)))

    async def _cleared(self, asked: Asked, reply: Reply, whole: ChatReply) -> Ended:
        """A whole reply as the guard lets it through."""
        usage, taken = (whole.prompt_tokens, whole.completion_tokens), self.energy.joules(whole.compute_s)
        if (stop := asked.checked.stop) is not None:
            return Ended(reply, whole.text, CUT, usage, asked.checked.verdicts, stopped_by=stop, energy_j=taken)
        watch = self._watch(asked)
        with asked.call.trace.part("guard output"):
            text, reason = await watch.whole(whole)
        verdicts = (*asked.checked.verdicts, *watch.verdicts())
        return Ended(reply, text, reason, usage, verdicts, watch.withheld, watch.stopped_by, taken)

    def _watch(self, asked: Asked) -> Watch:
        return self.guard.watch(asked.request.messages, asked.standing, asked.path, asked.call.trace)

    def _left(self, replies: Sequence[Asking], made: Sequence[ChatReply]) -> list[Ended]:
        """What is kept of replies whose caller did not wait for them: that they were asked for, and what they cost as far as it is known."""
        usages: list[tuple[int | None, int | None]]
        usages = [(whole.prompt_tokens, whole.completion_tokens) for whole in made] or [(None, None)] * len(replies)
        return [
            Ended(reply, "", "cancelled", usage, (*asked.checked.verdicts, *self._watch(asked).verdicts()))
            for (asked, reply), usage in zip(replies, usages, strict=False)
        ]

    def _answer(
        self,
        asked: Asked,
        ended: Sequence[Ended],
        made: Sequence[ChatReply],
        usage: tuple[int | None, int | None],
    ) -> Answer:
        choices = [choice_body(i, one, whole) for i, (one, whole) in enumerate(zip(ended, made, strict=True))]
        body = {**ended[0].reply.head(asked.request.shape.whole), "choices": choices, "usage": usage_body(usage)}
        taken = [each.energy_j for each in ended if each.energy_j is not None]
        if asked.tell_energy and (told := self.energy.told(sum(taken) if taken else None)):
            body["dunnock"] |= {"energy": told}
        return Answer(json.dumps(body, ensure_ascii=False).encode(), headers=_headers(asked, ended[0].reply.hit))

    async def _store(self, ended: Sequence[Ended], beside: Sequence[Ended] = ()) -> None:
        await asyncio.shield(self._storing(ended, beside))

    def _storing(self, ended: Sequence[Ended], beside: Sequence[Ended] = ()) -> "asyncio.Task[None]":
        """Count replies and store them, with what was drawn and not given, also where the one who asked has left."""
        replied(ended)

        async def store() -> None:
            with ended[0].reply.call.trace.part("store"):
                await self.recorder.store_all(ended, beside)

        task = asyncio.get_running_loop().create_task(store())
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return task

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.pairing.close()
        await self.engines.close()
        await self.guard.close()
        await self.best_of.close()
        await self.cache.close()

    async def _all(self, replies: Sequence[Asking]) -> list[ChatReply]:
        """All at once; the first failure ends the others."""
        if len(replies) == 1:
            return [await self._one(*replies[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(*each)) for each in replies]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [task.result() for task in tasks]

    async def _one(self, asked: Asked, reply: Reply) -> ChatReply:
        if (said := self._refusal(asked)) is not None:
            return ChatReply(said, CUT, 0, 0, 0.0, compute_s=0.0)
        if reply.hit is not None:
            return reply.hit.reply()
        return await self.engines.complete(reply.version, reply.request, reply.call.trace)

    def check_prompt(self, asked: ChatRequest) -> Checked:
        """What the guard says of a prompt; takes a while for a long one, so it is for a view's thread.

        Raises:
            PromptTooLong: no tokenizer could bring it below the limit, and nobody need look at it.
        """
        limit, chars = self.settings.max_prompt_tokens, sum(len(m.content) for m in asked.messages)
        if chars > CHARACTERS_PER_TOKEN * limit:
            raise PromptTooLong(
                gettext(
                    "the prompt has %(chars)s characters; at most %(limit)s tokens are taken", chars=chars, limit=limit
                ),
                param=param_of(asked),
            )
        return self.guard.check_prompt(asked.messages)

    async def _check_length(self, asked: ChatRequest) -> None:
        """Raise PromptTooLong above the limit; asks the engine only where the bytes leave a doubt."""
        limit = self.settings.max_prompt_tokens
        most = sum(len(m.content.encode()) + TEMPLATE_TOKENS_PER_MESSAGE for m in asked.messages) + TEMPLATE_TOKENS
        if most <= limit:  # a token is at least a byte
            return
        count = await self.engines.count_tokens(asked)
        if count is not None and count > limit:
            raise PromptTooLong(
                gettext("the prompt has %(count)s tokens; at most %(limit)s are taken", count=count, limit=limit),
                param=param_of(asked),
            )


def param_of(request: ChatRequest) -> str:
    """What a caller calls the prompt."""
    return "prompt" if request.raw else "messages"


def _headers(asked: Asked, hit: Hit | None) -> dict[str, str]:
    cache = {CACHE_HEADER: hit.kind} if hit is not None else {}
    prompted = {SYSTEM_PROMPT_HEADER: asked.prompted.name} if asked.prompted.name else {}
    return {VERSION_HEADER: asked.version.name, **prompted, **cache}


def chat_of(app: Flask) -> Chat:
    """The app's one `Chat`, made at its first use."""
    with _making:  # two views that begin at once would make two, and one of them would never be closed
        if EXTENSION not in app.extensions:
            runtime = app.extensions["dunnock"]
            app.extensions[EXTENSION] = Chat(runtime.settings, runtime.db, engine_client(runtime.settings, app))
    chat: Chat = app.extensions[EXTENSION]
    return chat


async def close_chat(app: Flask) -> None:
    """Let go of what the app's `Chat` holds on this event loop, if it was ever made."""
    if (chat := app.extensions.get(EXTENSION)) is not None:
        await chat.close()
