"""Pairs of versions out of the chat: for a share of requests another version answers too, and annotators say which is better, blind.

In: replies that were stored. Out: a completion of the other version and a pairwise task of both in the pool `canary`, which
comes before all others. The other one is the canary, where a version holds that state, or the one that the settings name; or the
same one under another system prompt: the incumbent's beside all others, one of those beside the incumbent's. Such a pair is shown
without either, so its task asks about the conversation as the caller sent it.

No caller waits for it or sees it: it begins when the reply is stored, a web process waits for few at a time, and those
beyond are left out, as is what fails. Both sides are what the guard lets through. Nothing is asked of prompts that the guard
refused, of callers who do not let their words be trained on, of tenants that are pinned to a version, or of those whose tokens of the day are used up.
The tokens stand at the completion and in `dunnock_pair_tokens`; a tenant does not pay for them.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.limits import check_quota
from access.tenants import terms_of
from core.db import Database
from core.errors import DunnockError, RateLimited
from core.messages import Message
from core.settings import SamplingSettings
from feedback.models import Completion, Prompt
from feedback.prompts import add_completion, add_prompt
from feedback.sampled import has_room, within_budget
from feedback.tasks import create_task
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from policy.versions import active_version, find_version, former_version
from serving.engines import Engines
from serving.guarding import Guard, Standing
from serving.prompting import Prompting, with_version
from serving.replies import CUT, Ended, Reply
from serving.sampling import WHOLE, WHY, drawn, kept_text

log = logging.getLogger("dunnock.serving")

PATH = "/v1/chat/completions"
FORMER = "former"
SYSTEM_PROMPT = "system_prompt"
PAIRS = Counter("dunnock_pairs", "Replies beside which another version was to answer", ["outcome"])
TOKENS = Counter("dunnock_pair_tokens", "Tokens of answers that only annotators see", ["version", "kind"])


@dataclass(frozen=True)
class Beside:
    """Who answers beside a reply, to what, and the rules that it is held to.

    Attributes:
        row: what the completion keeps of its system prompt.
        shown: the conversation that annotators see; None: as the reply's prompt has it.
    """

    version: PolicyVersion
    standing: Standing
    request: ChatRequest
    row: dict[str, Any]
    shown: Sequence[Message] | None = None


class Pairing:
    """Asks other versions. One per app."""

    def __init__(
        self, db: Database, settings: SamplingSettings, engines: Engines, guard: Guard, prompting: Prompting
    ) -> None:
        self._db, self._settings, self._engines, self._guard, self._prompting = db, settings, engines, guard, prompting
        self._at_work: set[asyncio.Task[None]] = set()

    def consider(self, group: Sequence[Ended]) -> None:
        """Begin with a pair, if the replies to a request are among those that are drawn; returns at once."""
        ended = group[0]
        if not self._may_be_paired(ended):
            return
        if len(self._at_work) >= self._settings.pairs_at_once:
            PAIRS.labels("busy").inc()
            return
        task = asyncio.get_running_loop().create_task(self._pair(ended))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def close(self) -> None:
        """Give up what is on its way."""
        for task in (at_work := list(self._at_work)):
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)

    def _may_be_paired(self, ended: Ended) -> bool:
        written = ended.usage[1] != 0  # none of a prompt that was refused
        return (
            bool(self._settings.pair_rate)
            and ended.reply.for_training
            and written
            and ended.finish_reason in (*WHOLE, CUT)
            and drawn(ended.reply.id, self._settings.pair_rate, "paired")
        )

    async def _pair(self, ended: Ended) -> None:
        try:
            outcome = await self._asked(ended)
        except DunnockError as error:
            log.warning("no version answered beside %s: %s", ended.reply.id, error.message)
            outcome = "failed"
        except Exception:
            log.exception("no version answered beside %s", ended.reply.id)
            outcome = "failed"
        PAIRS.labels(outcome).inc()

    async def _asked(self, ended: Ended) -> str:
        """What became of it: made, the same, left out."""
        beside = await asyncio.to_thread(self._beside, ended.reply)
        if beside is None:
            return "left_out"
        version, request = beside.version, beside.request
        await self._guard.ready(beside.standing)
        made = await self._engines.complete(version, request)
        for kind, n in (("prompt", made.prompt_tokens), ("completion", made.completion_tokens)):
            TOKENS.labels(version.name, kind).inc(n)
        text, reason = await self._guard.watch(request.messages, beside.standing, PATH).whole(made)
        if text.strip() == ended.text.strip():
            return "same"
        return await asyncio.to_thread(self._store, ended, beside, made, text, reason)

    def _beside(self, reply: Reply) -> Beside | None:
        """Who is to answer beside a reply; None where nobody is, or nobody may be asked now."""
        with self._db.read() as session:
            if not has_room(session, "pair", self._settings.most("pair")):
                return None
            if reply.tenant_id is not None:
                terms = terms_of(session, reply.tenant_id)
                if terms.policy_version is not None:
                    return None
                try:
                    check_quota(session, terms)
                except RateLimited:
                    return None
            standing = self._guard.standing(session, reply.tenant_id)
            if self._settings.pair_with == SYSTEM_PROMPT:
                return self._other_prompt(session, reply, standing)
            version = other_version(session, reply.version, self._settings.pair_with)
            if version is None:
                return None
            request = reply.request.model_copy(update={"model": version.name})
            return Beside(version, standing, request, reply.prompted.row())

    def _other_prompt(self, session: Session, reply: Reply, standing: Standing) -> Beside | None:
        """The same version under another system prompt; None where none was drawn, or the shares are others by now."""
        own, offer = reply.prompted, self._prompting.offer(session, reply.tenant_id)
        if own.share_id is None or own.share_id != offer.share_id:
            return None
        other = offer.beside(own.version_id, reply.id)
        if other is None:
            return None
        request = with_version(reply.request.model_copy(update={"messages": tuple(own.sent)}), other)
        row = {**own.row(), "system_prompt_version_id": other.id}
        return Beside(reply.version, standing, request, row, own.sent)

    def _store(self, ended: Ended, beside: Beside, made: ChatReply, text: str, reason: str) -> str:
        reply = ended.reply
        with self._db.session() as session:
            own = session.get(Completion, reply.id)
            if own is None or not own.text or not within_budget(session, "pair", self._settings.most("pair")):
                return "left_out"
            details = {
                **reply.origin(), **beside.row, "sampling": reply.sampling(), "finish_reason": reason, "latency_s": made.latency_s,
                "prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens,
            }  # fmt: skip
            prompt = own.prompt if beside.shown is None else self._prompt(session, reply, beside.request.messages)
            shown = own.prompt if beside.shown is None else self._prompt(session, reply, beside.shown)
            other = add_completion(
                session, prompt, kept_text(text, reply, self._settings), "paired", policy_version_id=beside.version.id,
                once=f"pair:{reply.id}", details=details,
            )  # fmt: skip
            create_task(
                session, "pairwise", shown.id, [own.id, other.id], source=f"pair:{reply.id}", pool="canary",
                why=WHY["pair"], under_prompts=beside.shown is not None,
            )  # fmt: skip
        return "made"

    def _prompt(self, session: Session, reply: Reply, messages: Sequence[Message]) -> Prompt:
        """The row of a conversation, as the recorder would store it."""
        kept = [{"role": m.role, "content": kept_text(m.content, reply, self._settings)} for m in messages]
        return add_prompt(session, kept, "served", tenant_id=reply.tenant_id)


def other_version(session: Session, own: PolicyVersion, named: str) -> PolicyVersion | None:
    """The version to set beside a reply; None where that would not be the active one beside another.

    Args:
        own: which wrote the reply.
        named: a version, "former", or empty for the canary.

    Raises:
        NotFound: there is no version of this name.
        Conflict: there is no former version.
    """
    active = active_version(session)
    if not named:
        other = session.scalar(select(PolicyVersion).where(PolicyVersion.state == "canary").limit(1))
    elif named == FORMER:
        other = former_version(session, active)
    else:
        other = find_version(session, named)
    if other is None or other.state == "refused":
        return None
    return {active.id: other, other.id: active}.get(own.id) if active.id != other.id else None
