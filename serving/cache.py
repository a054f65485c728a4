"""Replies that are given again: to the same request (exact), or to a question that means the same (semantic). Off unless it is set.

    cache = ReplyCache(db, settings)
    hit = await cache.look(asked, reply)      a Hit; else None, and `reply.slot` says where it may be kept
    keep(session, slot, ...)                  with the completion, in its transaction

What is looked up by hangs on policy version, version of the system prompt, tenant, by default person, system turns and all sampling parameters, so a promotion or
a rollback leads to other entries at once, and no tenant gets what was written for another. Only a conversation of one question is
looked up by meaning, and none with personal data or a secret in it. What two questions say in numbers, negations and names must be equal whatever
their cosine is.

Rules are no part of it: a reply out of here goes through the guard again as the engine's would, in its own conversation and by the
rules that hold now. Entries hold the text of the reply, and of a question its embedding alone.
"""

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import LargeBinary, bindparam, delete, select, text
from sqlalchemy.orm import Session

from core.db import Database, UtcDateTime, table_of, utcnow
from core.detectors.pii import PII
from core.detectors.secrets import SECRETS
from core.messages import Message
from core.settings import CacheSettings, Settings
from feedback.models import Completion
from policy.protocol import ChatReply
from serving.embeddings import Embedder
from serving.guard.patterns import PatternScan, judge
from serving.metrics import CACHE
from serving.models import CachedReply

if TYPE_CHECKING:
    from serving.chat import Asked

Kind = Literal["exact", "semantic"]
WHOLE = ("stop", "length")
TRIM_EVERY = 32
"""After so many entries of a process those that are too old or too many go."""
MOST_QUESTIONS = 1000
"""The newest questions of a scope that are compared with."""
MOST_SCOPES = 64
NUMBERS = re.compile(r"\d+(?:[.,:/]\d+)*")
NEGATIONS = re.compile(r"\b(?:no|not|never|none|without|\w+n['’]t|un\w{3,}|kein\w*|nicht|nie|ohne)\b", re.IGNORECASE)

_PUT = text(
    """INSERT INTO cached_reply (key, scope, tenant_id, question, literals, completion_id, expires_at)
       VALUES (:key, :scope, :tenant_id, :question, :literals, :completion_id, :expires_at)
       ON CONFLICT (key) DO UPDATE
       SET scope = excluded.scope, question = excluded.question, literals = excluded.literals,
           completion_id = excluded.completion_id, expires_at = excluded.expires_at"""
).bindparams(bindparam("question", type_=LargeBinary()), bindparam("expires_at", type_=UtcDateTime()))

_FOUND = (
    select(CachedReply.completion_id, Completion.text, Completion.finish_reason)
    .join(Completion, Completion.id == CachedReply.completion_id)
    .where(Completion.text != "")
)
"""What was erased is found no more."""

_kept = 0


@dataclass(frozen=True)
class Slot:
    """Where a reply may be kept.

    Attributes:
        scope: what is alike in all questions that one may be mistaken for.
        question: its embedding, (H,) float16; None where it is kept by the request alone.
        literals: of what it says in numbers, negations and names.
    """

    key: str
    scope: str
    tenant_id: int | None
    settings: CacheSettings
    question: bytes | None = None
    literals: str = ""


@dataclass(frozen=True)
class Hit:
    """A reply that was given before."""

    kind: Kind
    completion_id: str
    text: str
    finish_reason: str

    def reply(self) -> ChatReply:
        """As an engine's that took nothing."""
        return ChatReply(self.text, self.finish_reason, 0, 0, 0.0, compute_s=0.0)


class ReplyCache:
    """The cache. One per app; the entries are in the database, so all processes share them."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self.settings = settings.cache
        self._db = db
        self._embedder = Embedder(settings.guard.base_url, settings.guard.timeout_s)
        self._shelves: dict[str, Shelf] = {}
        self._lock = threading.Lock()

    async def look(self, asked: "Asked") -> tuple[Hit | None, Slot | None]:
        """What was replied before, and where the reply may be kept if nothing was."""
        if self.settings.mode == "off":
            return None, None
        if not _fits(asked, self.settings):
            CACHE.labels("unfit").inc()
            return None, None
        with asked.call.trace.part("cache"):
            hit, slot = await self._look(asked)
        CACHE.labels(hit.kind if hit else "miss").inc()
        return hit, slot if hit is None else None  # what is given again is not kept again: entries would never grow old

    async def _look(self, asked: "Asked") -> tuple[Hit | None, Slot]:
        reads = "no-cache" not in asked.cache_control
        slot, hit, question = await asyncio.to_thread(self._exact, asked, reads)
        if hit is not None or question is None:
            return hit, slot
        found = await self._embedder.embed(question)
        if found is None:
            return None, slot
        scope = _sha256([slot.scope, found.encoder])
        slot = replace(slot, scope=scope, question=found.vector, literals=_sha256(literals_of(question)))
        return (await asyncio.to_thread(self._nearest, slot) if reads else None), slot

    def _exact(self, asked: "Asked", reads: bool) -> tuple[Slot, Hit | None, str | None]:
        """The slot of a request, what is in it, and the question where it may be looked up by meaning."""
        slot = slot_of(asked, self.settings)
        found = _FOUND.where(CachedReply.key == slot.key, CachedReply.expires_at > utcnow())
        hit = self._one(found, "exact") if reads else None
        question = lone_question(asked.request.messages) if self.settings.mode == "semantic" and hit is None else None
        return slot, hit, question if question is not None and not is_personal(question) else None

    def _nearest(self, slot: Slot) -> Hit | None:
        with self._lock:
            if slot.scope not in self._shelves and len(self._shelves) >= MOST_SCOPES:
                self._shelves.clear()
            shelf = self._shelves.setdefault(slot.scope, Shelf())
            with self._db.read() as session:
                shelf.fill(session, slot.scope)
            near = shelf.nearest(slot, self.settings.threshold)
        for id_ in near:
            found = _FOUND.where(CachedReply.id == id_, CachedReply.expires_at > utcnow())
            if hit := self._one(found, "semantic"):
                return hit
        return None

    def _one(self, found: Any, kind: Kind) -> Hit | None:
        with self._db.read() as session:
            row = session.execute(found).one_or_none()
        return Hit(kind, *row) if row is not None else None

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self._embedder.close()


class Shelf:
    """The questions of a scope as this process knows them."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._literals: list[str] = []
        self._questions: list[bytes] = []
        self._upto = 0

    def fill(self, session: Session, scope: str) -> None:
        """Take what came since."""
        new = (
            select(CachedReply.id, CachedReply.literals, CachedReply.question)
            .where(CachedReply.scope == scope, CachedReply.id > self._upto, CachedReply.question.is_not(None))
            .order_by(CachedReply.id.desc())
            .limit(MOST_QUESTIONS)
        )
        for row in reversed(session.execute(new).all()):
            self._ids.append(row.id)
            self._literals.append(row.literals)
            self._questions.append(row.question)
            self._upto = row.id
        for kept in (self._ids, self._literals, self._questions):
            del kept[:-MOST_QUESTIONS]

    def nearest(self, slot: Slot, threshold: float) -> list[int]:
        """Ids of the questions that are near enough, nearest first."""
        import numpy as np

        if not self._ids or slot.question is None:
            return []
        size = len(slot.question)
        # (N, H) of length 1 each, so the product is the cosine
        known = np.frombuffer(b"".join(q if len(q) == size else bytes(size) for q in self._questions), dtype="<f2")
        asked = np.frombuffer(slot.question, dtype="<f2").astype(np.float32)
        cosines = known.reshape(len(self._ids), -1).astype(np.float32) @ asked
        order = [i for i in np.argsort(-cosines, kind="stable") if cosines[i] >= threshold]
        return [self._ids[i] for i in order if self._literals[i] == slot.literals]


def _fits(asked: "Asked", settings: CacheSettings) -> bool:
    """Whether a request may be answered from here, or its reply be kept."""
    request = asked.request
    settled = request.temperature == 0 or request.seed is not None or settings.sampled
    plain = asked.choices == 1 and not (request.logprobs or request.return_token_ids or request.raw)
    return settled and plain and asked.keep_texts and "no-store" not in asked.cache_control


def slot_of(asked: "Asked", settings: CacheSettings) -> Slot:
    """Where the reply to a request belongs."""
    request = asked.request
    person = [asked.person_id, asked.user_key] if settings.share == "person" else None
    whose = [asked.tenant_id, person, asked.consent]
    sampling = request.model_dump(mode="json", exclude={"messages"})
    system = [m.content for m in request.messages if m.role == "system"]
    scope = _sha256([asked.version.id, asked.prompted.version_id, whose, sampling, system])
    key = _sha256([scope, [[m.role, m.content] for m in request.messages]])
    return Slot(key, scope, asked.tenant_id, settings)


def lone_question(messages: Sequence[Message]) -> str | None:
    """The text of the one question that a conversation is; None where there is more."""
    turns = [m for m in messages if m.role != "system"]
    return turns[0].content if len(turns) == 1 and turns[0].role == "user" else None


def is_personal(words: str) -> bool:
    """Whether there is personal data or a secret in a text; if in doubt, there is."""
    scans = (("pii", PII), ("secrets", SECRETS))
    return any(judge(PatternScan(name, detectors), words, "input").outcome != "clear" for name, detectors in scans)


def literals_of(words: str) -> list[list[str]]:
    """Numbers and negations of a question, in order, and its names, which are what is written large: embeddings hardly tell one from another."""
    names = {word for word in re.findall(r"\w\w+", words)[1:] if word[0].isupper()}
    return [NUMBERS.findall(words), [word.lower() for word in NEGATIONS.findall(words)], sorted(names)]


def keep(session: Session, slot: Slot, completion_id: str, words: str, finish_reason: str) -> None:
    """Keep a reply, in the transaction that stores its completion."""
    global _kept  # noqa: PLW0603 (how many this process has kept; it need not be exact)
    if finish_reason not in WHOLE or not words:
        return
    personal = slot.question is not None and is_personal(words)
    session.connection().execute(_PUT, {
        "key": slot.key, "scope": slot.scope, "tenant_id": slot.tenant_id, "question": None if personal else slot.question,
        "literals": slot.literals, "completion_id": completion_id,
        "expires_at": utcnow() + slot.settings.lifetime,
    })  # fmt: skip
    _kept += 1
    if _kept % TRIM_EVERY == 0:
        _trim(session, slot)


def _trim(session: Session, slot: Slot) -> None:
    """Remove what has expired, and of the tenant what is more than it may have, the oldest first."""
    table = table_of(CachedReply).c
    whose = table.tenant_id.is_(None) if slot.tenant_id is None else table.tenant_id == slot.tenant_id
    session.execute(delete(CachedReply).where(table.expires_at <= utcnow()))
    last = select(table.id).where(whose).order_by(table.id.desc()).offset(slot.settings.max_entries).limit(1)
    if (beyond := session.scalar(last)) is not None:
        session.execute(delete(CachedReply).where(whose, table.id <= beyond))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
