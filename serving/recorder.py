"""Replies into the database, in groups: what waits while one transaction is written goes into the next together.

A reply is stored before its last byte is sent, so every chat call waits for a commit; on SQLite those of a process would stand in
line one by one. One thread writes; whoever asked waits for its own reply alone. A group that fails is written again call by
call, so that one that cannot be stored takes no other with it.
"""

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.db import Database
from core.messages import plain_text
from feedback.models import Prompt
from feedback.prompts import add_completion, add_prompt
from feedback.tasks import create_task
from serving.guard.verdicts import GRAVITY
from serving.models import GuardReport
from serving.replies import CUT, Ended

ATTEMPTS = 3
MOST_TOGETHER = 64


Group = Sequence[Ended]
"""The replies to one request, which are stored all or none."""


class Recorder:
    """Writes replies. One per app; its thread starts with the first reply, so a process may fork before."""

    def __init__(self, db: Database) -> None:
        self._db = db
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
            self._waiting.put((fresh, done))
            self._begin()
            await asyncio.shield(asyncio.wrap_future(done))  # a caller that leaves does not take it back

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
            self._write(together)

    def _write(self, together: list[tuple[Group, "Future[None]"]]) -> None:
        try:
            with self._db.session() as session:
                for group, _ in together:
                    _add(session, group)
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
                    _add(session, group)
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


def _add(session: Session, group: Group) -> None:
    messages = [m.model_dump() for m in group[0].reply.request.messages]
    prompt = add_prompt(session, messages, "served")
    for ended in group:
        version, details = ended.reply.version.id, ended.reply.details(ended.finish_reason, ended.usage)
        add_completion(session, prompt, plain_text(ended.text), "served", policy_version_id=version, details=details)
        if ended.verdicts:
            session.add(_report(ended))
        if ended.withheld is not None:
            _keep_withheld(session, prompt, ended)


def _report(ended: Ended) -> GuardReport:
    gravest = max(ended.verdicts, key=lambda verdict: GRAVITY[verdict.outcome])
    broken = (v.rule_version_id for v in ended.verdicts if v.outcome == "hit" and v.rule_version_id is not None)
    return GuardReport(
        completion_id=ended.reply.id, outcome=gravest.outcome, cut=ended.finish_reason == CUT,
        rule_version_id=next(broken, None), verdicts=[verdict.as_json() for verdict in ended.verdicts],
    )  # fmt: skip


def _keep_withheld(session: Session, prompt: Prompt, ended: Ended) -> None:
    """What broke a rule, for annotators to judge by that rule: nobody who chats gets to see it."""
    hit = next(v for v in ended.verdicts if v.outcome == "hit" and v.rule_version_id is not None)
    source = f"withheld:{ended.reply.id}"
    kept = add_completion(
        session, prompt, plain_text(ended.withheld or ""), "withheld", policy_version_id=ended.reply.version.id,
        once=source, details={"sampling": ended.reply.details("", (None, None))["sampling"]},
    )  # fmt: skip
    create_task(
        session, "rule_check", prompt.id, [kept.id], source=source, rule_version_id=hit.rule_version_id, pool="flagged",
        why="the guard held this reply back",
    )  # fmt: skip
