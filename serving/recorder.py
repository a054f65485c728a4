"""Replies into the database, in groups: what waits while one transaction is written goes into the next together.

A reply is stored before its last byte is sent, so every chat call waits for a commit; on SQLite those of a process would stand in
line one by one. One thread writes; whoever asked waits for its own reply alone. A group that fails is written again call by
call, so that one that cannot be stored takes no other with it.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.limits import estimated_tokens, spend
from core.db import Database, table_of
from core.settings import SamplingSettings
from feedback.models import Completion
from feedback.prompts import Conversation, add_prompts
from serving.cache import keep
from serving.guard.verdicts import GRAVITY
from serving.metrics import WAITING
from serving.models import GuardReport
from serving.replies import CUT, Ended, Reply, by_prompt
from serving.sampling import Sampler, kept_text

log = logging.getLogger("dunnock.serving")

ATTEMPTS = 3
MOST_TOGETHER = 64


_COMPLETIONS, _REPORTS = insert(table_of(Completion)), insert(table_of(GuardReport))

Group = Sequence[Ended]
"""The replies to one request, which are stored all or none."""


class Recorder:
    """Writes replies. One per app; its thread starts with the first reply, so a process may fork before.

    Args:
        after: called with replies to a request that were stored, on the event loop; it returns at once.
    """

    def __init__(
        self, db: Database, settings: SamplingSettings, after: Callable[[Group], None] = lambda group: None
    ) -> None:
        self._db, self._settings, self._after = db, settings, after
        self._sampler = Sampler(settings)
        self._waiting: queue.SimpleQueue[tuple[Group, Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def store(self, group: Group) -> None:
        """Store the replies to one request and come back when they are committed; what is stored already is left alone.

        Raises:
            SQLAlchemyError: the database does not take them.
        """
        if fresh := [ended for ended in group if not ended.reply.stored]:
            done: Future[None] = Future()
            WAITING.inc(len(fresh))
            done.add_done_callback(lambda _: WAITING.dec(len(fresh)))
            self._waiting.put((fresh, done))
            self._begin()
            await asyncio.shield(asyncio.wrap_future(done))  # a caller that leaves does not take it back
            self._after(fresh)

    async def store_all(self, ended: Sequence[Ended], beside: Sequence[Ended] = ()) -> None:
        """The replies to a call, those to each prompt all or none; `beside`: what was drawn for the first and not given."""
        first, *others = by_prompt(ended)
        await asyncio.gather(*(self.store(group) for group in ([*first, *beside], *others)))

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            together = [self._waiting.get()]
            while len(together) < MOST_TOGETHER and not self._waiting.empty():
                together.append(self._waiting.get())
            self._sampler.look(group for group, _ in together)
            self._write(together)
            self._prime()

    def _prime(self) -> None:
        if self._sampler.ready:
            return
        try:
            with self._db.read() as session:
                self._sampler.prime(session)
        except Exception:
            log.exception("no prompts were counted; it is tried again with the next reply")

    def _write(self, together: list[tuple[Group, "Future[None]"]]) -> None:
        # Rows of tenants are locked in one order, so that two processes cannot wait for each other.
        together.sort(key=lambda waiting: waiting[0][0].reply.tenant_id or 0)
        try:
            with self._db.session() as session:
                _add(session, [group for group, _ in together], self._settings, self._sampler)
        except Exception as error:  # noqa: BLE001 (whoever waits gets it)
            if len(together) > 1 or isinstance(error, IntegrityError):
                for group, done in together:
                    self._write_alone(group, done)
            else:
                together[0][1].set_exception(error)
        else:
            for group, done in together:
                _ended(group, done)

    def _write_alone(self, group: Group, done: "Future[None]") -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._db.session() as session:
                    _add(session, [group], self._settings, self._sampler)
            except IntegrityError as error:  # another process stored the same prompt first; now it is there
                if attempt == ATTEMPTS:
                    done.set_exception(error)
            except Exception as error:  # noqa: BLE001 (whoever waits gets it)
                done.set_exception(error)
                return
            else:
                _ended(group, done)
                return


def _ended(group: Group, done: "Future[None]") -> None:
    for each in group:
        each.reply.stored = True
    done.set_result(None)


def _add(session: Session, groups: Sequence[Group], settings: SamplingSettings, sampler: Sampler) -> None:
    """Write what was replied to some requests, by few statements however many they are."""
    prompts = add_prompts(session, [_conversation(group[0].reply, settings) for group in groups], "served")
    ended = [(prompt_id, each) for prompt_id, group in zip(prompts, groups, strict=True) for each in group]
    connection = session.connection()
    connection.execute(_COMPLETIONS, [_row(prompt_id, each, settings) for prompt_id, each in ended])
    if reports := [_report(each) for _, each in ended if each.verdicts]:
        connection.execute(_REPORTS, reports)
    for group in groups:
        spend(session, group[0].reply.tenant_id, _prompt_tokens(group), sum(_written(each) for each in group))
    given = [(prompt_id, each) for prompt_id, each in ended if each.reply.source == "served"]
    sampler.ask(session, given)
    for _, each in given:
        if each.reply.slot is not None and _may_be_given_again(each, settings):
            keep(session, each.reply.slot, each.reply.id, each.text, each.finish_reason)


def _conversation(asked: Reply, settings: SamplingSettings) -> Conversation:
    messages = [{"role": m.role, "content": kept_text(m.content, asked, settings)} for m in asked.request.messages]
    return Conversation(asked.tenant_id, messages)


def _row(prompt_id: int, ended: Ended, settings: SamplingSettings) -> dict[str, Any]:
    reply = ended.reply
    return {
        **reply.details(ended.finish_reason, ended.usage), "prompt_id": prompt_id, "tenant_id": reply.tenant_id, "source": reply.source,
        "policy_version_id": reply.version.id, "text": kept_text(ended.text, reply, settings), "energy_j": ended.energy_j,
    }  # fmt: skip


def _may_be_given_again(ended: Ended, settings: SamplingSettings) -> bool:
    """Whether it is stored as it was given, and no check of it found something, be it only recorded."""
    found = any(verdict.side == "output" and verdict.outcome == "hit" for verdict in ended.verdicts)
    return not found and kept_text(ended.text, ended.reply, settings) == ended.text


def _prompt_tokens(group: Group) -> int:
    """Of the prompt that all of them answer."""
    told = group[0].usage[0]
    words = "".join(m.content for m in group[0].reply.request.messages)
    return estimated_tokens(words) if told is None else told


def _written(ended: Ended) -> int:
    told = ended.usage[1]
    return estimated_tokens(ended.text) if told is None else told


def _report(ended: Ended) -> dict[str, Any]:
    gravest = max(ended.verdicts, key=lambda verdict: GRAVITY[verdict.outcome])
    broken = (v.rule_version_id for v in ended.verdicts if v.outcome == "hit" and v.rule_version_id is not None)
    return {
        "completion_id": ended.reply.id, "outcome": gravest.outcome, "cut": ended.finish_reason == CUT,
        "rule_version_id": next(broken, None), "verdicts": [verdict.as_json() for verdict in ended.verdicts],
    }  # fmt: skip
