"""Which replies annotators are asked about, and why: a share of all, prompts unlike others, hits of the guard.

In: replies that are being stored, in the recorder's thread and transaction. Out: tasks within the day's budget
(`feedback.sampled`). What users disliked is asked about by `feedback.judgments`, pairs of versions by `serving.pairing`.
Nothing is asked about a reply whose caller does not let it be kept, or not be trained on.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.detectors import redact
from core.detectors.pii import PII
from core.messages import Message, plain_text
from core.settings import SamplingSettings
from core.settings.serving import Reason
from feedback.models import Prompt
from feedback.prompts import add_completion
from feedback.sampled import REASONS, within_budget
from feedback.tasks import create_task
from serving.novelty import Novelty, share
from serving.replies import Ended, Reply

log = logging.getLogger("dunnock.serving")

WHOLE = ("stop", "length")
PRIMED_WITH = 2000
WHY: dict[Reason, str] = {
    "rate": "drawn from the chat", "novelty": "unlike what was asked before", "recorded": "the guard found a rule broken",
    "withheld": "the guard held this reply back", "pair": "two versions of the model answered",
}  # fmt: skip


class Sampler:
    """Draws replies. One per recorder; only its thread calls it."""

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings
        self._novelty = Novelty()
        self._primed = False
        self._new: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether `prime` has nothing to do."""
        return self._primed or not self._settings.novelty_rate

    def prime(self, session: Session) -> None:
        """Count the newest stored prompts, once; nothing is drawn for its novelty before."""
        newest = session.scalars(select(Prompt.messages).order_by(Prompt.id.desc()).limit(PRIMED_WITH))
        for messages in reversed(newest.all()):
            self._novelty.look(_last([Message(**message) for message in messages]))
        self._primed = True

    def look(self, replies: Iterable[Sequence[Ended]]) -> None:
        """Count the prompts of replies that will be stored, each request once however often storing is tried."""
        self._new.clear()
        if not (self._primed and self._settings.novelty_rate):
            return
        for group in replies:
            asked = group[0].reply
            if asked.for_training:
                novelty = self._novelty.look(_last(asked.request.messages))
                if drawn(asked.id, share(novelty, self._settings.novelty_rate), "new"):
                    self._new.add(asked.id)

    def ask(self, session: Session, stored: Sequence[tuple[int, Ended]]) -> None:
        """Make the tasks of replies that were stored.

        Args:
            stored: each with the id of its prompt.
        """
        wanted = [(REASONS.index(why), n, why) for n, (_, each) in enumerate(stored) for why in self._reasons(each)]
        for _, n, reason in sorted(wanted):
            if within_budget(session, reason, self._settings.most(reason)):
                _make(session, reason, *stored[n], self._settings)

    def _reasons(self, ended: Ended) -> list[Reason]:
        of, reply = self._settings, ended.reply
        if not reply.for_training:
            return []
        if ended.withheld is not None:
            return ["withheld"]
        if ended.finish_reason not in WHOLE or reply.hit is not None:  # what is given again was drawn from before
            return []
        found: list[Reason] = []
        if drawn(reply.id, of.rate):
            found.append("rate")
        elif reply.id in self._new:
            found.append("novelty")
        if _broken(ended) is not None and drawn(reply.id, of.recorded_rate, "recorded"):
            found.append("recorded")
        return found


def drawn(completion_id: str, rate: float, among: str = "sampled") -> bool:
    """Whether a reply is one of the share that is sampled; the same whoever asks."""
    if not rate:
        return False
    digest = hashlib.sha256(f"{among} {completion_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2**64


def kept_text(text: str, asked: Reply, settings: SamplingSettings) -> str:
    """A text as it is stored: not at all where its caller said so, else without personal data where the settings do."""
    if not asked.keep_texts:
        return ""
    return redact(plain_text(text), PII)[0] if settings.redact else plain_text(text)


def _make(session: Session, reason: Reason, prompt_id: int, ended: Ended, settings: SamplingSettings) -> None:
    completion_id, why = ended.reply.id, WHY[reason]
    if reason == "withheld":
        _keep_withheld(session, prompt_id, ended, settings)
    elif reason == "recorded":
        create_task(
            session, "rule_check", prompt_id, [completion_id], source=f"recorded:{completion_id}",
            rule_version_id=_broken(ended), pool="flagged", why=why,
        )  # fmt: skip
    else:
        create_task(session, "rating", prompt_id, [completion_id], source=f"chat:{completion_id}", why=why)


def _keep_withheld(session: Session, prompt_id: int, ended: Ended, settings: SamplingSettings) -> None:
    """What broke a rule, for annotators to judge by that rule: nobody who chats gets to see it."""
    reply, source = ended.reply, f"withheld:{ended.reply.id}"
    kept = add_completion(
        session, session.get_one(Prompt, prompt_id), kept_text(ended.withheld or "", reply, settings), "withheld",
        policy_version_id=reply.version.id, once=source, details={**reply.origin(), "sampling": reply.sampling()},
    )  # fmt: skip
    create_task(
        session, "rule_check", prompt_id, [kept.id], source=source, rule_version_id=_broken(ended), pool="flagged",
        why=WHY["withheld"],
    )  # fmt: skip


def _broken(ended: Ended) -> int | None:
    """The rule that the guard found broken by a reply."""
    hits = (v.rule_version_id for v in ended.verdicts if v.outcome == "hit" and v.side == "output")
    return next((version_id for version_id in hits if version_id is not None), None)


def _last(messages: Sequence[Message]) -> str:
    """What was asked last: earlier turns come again with each call."""
    return next((message.content for message in reversed(messages) if message.role == "user"), "")
