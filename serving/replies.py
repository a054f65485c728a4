"""Replies on their way out: each is stored once, whole or cut, before its last byte is sent."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.db import Database
from core.errors import DunnockError, NotFound
from core.language import gettext
from core.messages import plain_text
from feedback.models import Completion, completion_id
from feedback.prompts import add_completion, add_prompt
from policy.client import ChatReply, ChatRequest, CompletionStream, StreamEvent
from policy.models import PolicyVersion

log = logging.getLogger("dunnock.serving")

STORE_ATTEMPTS = 3
SAMPLING_FIELDS = {"max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"}


@dataclass
class Reply:
    """One completion that is being served."""

    db: Database
    version: PolicyVersion
    request: ChatRequest
    person_id: int | None = None
    id: str = field(default_factory=completion_id)
    created: int = field(default_factory=lambda: int(time.time()))
    started_s: float = field(default_factory=time.monotonic)
    stored: bool = False

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every part of the answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.version.name,
            "dunnock": {"policy_version": self.version.name},
        }

    def store(self, text: str, finish_reason: str, usage: tuple[int | None, int | None]) -> None:
        """Write prompt and completion, once; a second call does nothing.

        Args:
            usage: prompt and completion tokens, None where the engine did not get to say.
        """
        if not self.stored:
            store([(self, text, finish_reason, usage)])

    def details(self, finish_reason: str, usage: tuple[int | None, int | None]) -> dict[str, Any]:
        """What is stored of a completion beside its text."""
        return {
            "id": self.id,
            "finish_reason": finish_reason,
            "sampling": self.request.model_dump(mode="json", include=SAMPLING_FIELDS),
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "latency_s": time.monotonic() - self.started_s,
            "person_id": self.person_id,
        }


def store(ended: Sequence[tuple[Reply, str, str, tuple[int | None, int | None]]]) -> None:
    """Write the replies to one request, all or none: text, finish reason and usage of each, as `Reply.store` takes them."""
    first = ended[0][0]
    messages = [m.model_dump() for m in first.request.messages]
    for attempt in range(1, STORE_ATTEMPTS + 1):
        try:
            with first.db.session() as session:
                prompt = add_prompt(session, messages, "served")
                for reply, text, finish_reason, usage in ended:
                    add_completion(
                        session, prompt, plain_text(text), "served", policy_version_id=reply.version.id,
                        details=reply.details(finish_reason, usage),
                    )  # fmt: skip
        except IntegrityError:  # another request stored the same prompt first; now it is there
            if attempt == STORE_ATTEMPTS:
                raise
        else:
            for reply, *_ in ended:
                reply.stored = True
            return


class ReplyStream(Iterator[bytes]):
    """The server-sent events of a reply. The server calls `close()` in any case, also when the client has gone."""

    def __init__(self, reply: Reply, events: CompletionStream, *, include_usage: bool) -> None:
        self._reply = reply
        self._events = events
        self._include_usage = include_usage
        self._text: list[str] = []
        self._end = StreamEvent()
        self._lines = self._produce()

    def __next__(self) -> bytes:
        return next(self._lines)

    def close(self) -> None:
        """End the request at the engine and store what came, as cancelled if it had not ended."""
        self._events.close()
        if not self._reply.stored:
            try:
                self._store(self._end.finish_reason or "cancelled")
            except Exception:
                log.exception("the cut reply %s could not be stored: %r", self._reply.id, "".join(self._text))

    def _produce(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""}, None)
        try:
            for event in self._events:
                self._note(event)
                if event.text:
                    yield self._chunk({"content": event.text}, None)
            self._store(self._end.finish_reason or "stop")
        except DunnockError as error:
            log.error("the reply %s broke off: %s", self._reply.id, error.message)
            self._store("error")
            yield _line({"error": _server_error(error.message, error.code)})
            return
        except Exception:
            log.exception("the reply %s could not be stored: %r", self._reply.id, "".join(self._text))
            yield _line({"error": _server_error("the reply could not be stored", "internal_error")})
            return
        yield self._chunk({}, self._end.finish_reason or "stop")
        if self._include_usage:
            yield _line({**self._reply.head("chat.completion.chunk"), "choices": [], "usage": usage_body(self._usage)})
        yield b"data: [DONE]\n\n"

    @property
    def _usage(self) -> tuple[int | None, int | None]:
        return self._end.prompt_tokens, self._end.completion_tokens

    def _note(self, event: StreamEvent) -> None:
        self._text.append(event.text)
        self._end = StreamEvent(
            finish_reason=event.finish_reason or self._end.finish_reason,
            prompt_tokens=event.prompt_tokens if event.prompt_tokens is not None else self._end.prompt_tokens,
            completion_tokens=(
                event.completion_tokens if event.completion_tokens is not None else self._end.completion_tokens
            ),
        )

    def _store(self, finish_reason: str) -> None:
        self._reply.store("".join(self._text), finish_reason, self._usage)

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _line({**self._reply.head("chat.completion.chunk"), "choices": [choice]})


def several(n: int, first: Reply) -> list[Reply]:
    """So many replies to one request, each with an id of its own and, where the first has a seed, the next one."""
    seed = first.request.seed
    requests = [
        first.request if i == 0 or seed is None else first.request.model_copy(update={"seed": _following(seed, i)})
        for i in range(n)
    ]
    return [first, *(replace(first, id=f"{first.id}-{i}", request=requests[i]) for i in range(1, n))]


def choice_body(index: int, reply: Reply, whole: ChatReply) -> dict[str, Any]:
    """A whole reply as one of an answer's `choices`."""
    tokens = zip(whole.tokens or (), whole.logprobs or (), strict=True)
    told = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in tokens
    ]
    return {
        "index": index,
        "completion_id": reply.id,
        "message": {"role": "assistant", "content": whole.text, "refusal": None},
        "finish_reason": whole.finish_reason,
        "logprobs": {"content": told} if reply.request.logprobs else None,
    }


def earlier_replies(session: Session, ids: Sequence[str], person_id: int | None) -> dict[str, str]:
    """The texts of replies that the same caller was given, by id.

    Raises:
        NotFound: one is unknown, or was given to somebody else; the answer does not tell which.
    """
    if not ids:
        return {}
    served = select(Completion.id, Completion.text).where(
        Completion.id.in_(ids), Completion.source == "served", Completion.person_id.is_not_distinct_from(person_id)
    )
    found = {row.id: row.text for row in session.execute(served)}
    if missing := next((each for each in ids if each not in found), None):
        raise NotFound(gettext("you were given no reply %(completion_id)r", completion_id=missing), param="messages")
    return found


def usage_body(usage: tuple[int | None, int | None]) -> dict[str, int]:
    """The `usage` object of an answer."""
    prompt, completion = usage[0] or 0, usage[1] or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _following(seed: int, i: int) -> int:
    """The seed so many places on, within 64 bits."""
    return (seed + i + 2**63) % 2**64 - 2**63


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _server_error(message: str, code: str) -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": code}
