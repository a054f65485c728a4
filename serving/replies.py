"""Replies: what is known of them while they are made, and how they are told. `serving.recorder` stores them."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import NotFound
from core.language import gettext
from feedback.consent import TRAINING
from feedback.models import Completion, completion_id
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from policy.shapes import TokenLogprob
from serving.calls import Call
from serving.guard.verdicts import GRAVITY, Verdict
from serving.prompting import NOT_PROMPTED, Prompted

if TYPE_CHECKING:
    from serving.cache import Hit, Slot

CUT = "content_filter"
"""OpenAI's word for the end of a reply that was not let through."""
SAMPLING_FIELDS = {"max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"}


@dataclass
class Reply:
    """One completion that is being served.

    Attributes:
        keep_texts: whether its caller lets prompt and completion be stored; else only what is counted of them is.
        consent: what its words may be used for, one of `feedback.consent.CONSENTS`.
        user_key: its end user, as `feedback.consent.user_key` has it.
        call: which it answers.
        prompted: the system prompt that it was given.
        source: "sampled" where it was drawn beside the one that was given.
        best_of: how it was come by, where several may be drawn (`serving.best_of`).
        place: which of the prompts of its call it answers.
        echo: whether the prompt, a raw text, is told with it.
        slot: where it may be kept, to be given again.
        hit: the one that is given again.
    """

    version: PolicyVersion
    request: ChatRequest
    person_id: int | None = None
    tenant_id: int | None = None
    keep_texts: bool = True
    consent: str = TRAINING
    user_key: str | None = None
    call: Call = field(default_factory=Call, repr=False)
    prompted: Prompted = NOT_PROMPTED
    source: str = "served"
    best_of: dict[str, Any] | None = None
    place: int = 0
    echo: bool = False
    slot: "Slot | None" = None
    hit: "Hit | None" = None
    id: str = field(default_factory=completion_id)
    created: int = field(default_factory=lambda: int(time.time()))
    started_s: float = field(default_factory=time.monotonic)
    stored: bool = False

    @property
    def echoed(self) -> str:
        """What is told before its text."""
        return self.request.messages[0].content if self.echo else ""

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every part of the answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.version.name,
            "dunnock": {
                "policy_version": self.version.name,
                **({"system_prompt": self.prompted.name} if self.prompted.name else {}),
                **({"cache": self.hit.kind} if self.hit else {}),
                **({"best_of": self.best_of} if self.best_of else {}),
            },
        }

    @property
    def for_training(self) -> bool:
        """Whether annotators may be asked about it, and policies learn from it."""
        return self.keep_texts and self.consent == TRAINING

    def origin(self) -> dict[str, Any]:
        """What all completions of its request have in common: what they may be used for, whose words they answer, under which system
        prompt."""
        return {"consent": self.consent, "user_key": self.user_key, **self.prompted.row()}

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that were asked for, and how it was come by where several may be drawn."""
        asked = self.request.model_dump(mode="json", include=SAMPLING_FIELDS)
        asked |= {"raw": True} if self.request.raw else {}
        return asked | ({"best_of": self.best_of} if self.best_of else {})

    def details(self, finish_reason: str, usage: tuple[int | None, int | None]) -> dict[str, Any]:
        """What is stored of a completion beside its text."""
        return {
            **self.origin(),
            "id": self.id,
            "finish_reason": finish_reason,
            "sampling": self.sampling(),
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "latency_s": time.monotonic() - self.started_s,
            "person_id": self.person_id,
            "cached_from": self.hit.completion_id if self.hit else None,
        }


@dataclass(frozen=True)
class Ended:
    """A reply that is whole or cut.

    Attributes:
        usage: prompt and completion tokens, None where the engine did not get to say.
        verdicts: what the guard said of prompt and reply.
        withheld: what the policy wrote, where that broke a rule and is kept for annotators.
        stopped_by: the verdict that cut it.
        energy_j: what the engine took for it, estimated; None where there is no estimate.
    """

    reply: Reply
    text: str
    finish_reason: str
    usage: tuple[int | None, int | None] = (None, None)
    verdicts: Sequence[Verdict] = ()
    withheld: str | None = None
    stopped_by: Verdict | None = None
    energy_j: float | None = None


def several(n: int, first: Reply) -> list[Reply]:
    """So many replies to one request, each with an id of its own and, where the first has a seed, the next one; those to the
    further prompts of a call are counted on."""
    seed, base = first.request.seed, n * first.place
    requests = [
        first.request if i == 0 or seed is None else first.request.model_copy(update={"seed": _following(seed, i)})
        for i in range(n)
    ]
    ids = [f"{first.id}-{base + i}" if base + i else first.id for i in range(n)]
    return [
        first if id_ == first.id else replace(first, id=id_, request=request)
        for id_, request in zip(ids, requests, strict=True)
    ]


def by_prompt(ended: Iterable[Ended]) -> list[list[Ended]]:
    """The replies to a call by the prompt that they answer, in order."""
    return [list(group) for _, group in groupby(ended, key=lambda each: each.reply.place)]


def usage_of(ended: Sequence[Ended]) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of the replies to a call, as far as they are known; each prompt is told once."""
    prompts = [tokens for group in by_prompt(ended) if (tokens := group[0].usage[0]) is not None]
    written = [tokens for each in ended if (tokens := each.usage[1]) is not None]
    return sum(prompts) if prompts else None, sum(written) if written else None


def choice_body(index: int, ended: Ended, whole: ChatReply | None) -> dict[str, Any]:
    """A reply as one of an answer's `choices`."""
    reply = ended.reply
    told = None
    if reply.request.logprobs:
        told = _told(ended, whole)
    return {
        "index": index,
        "completion_id": reply.id,
        **reply.request.shape.choice(f"{reply.echoed}{ended.text}", ended.finish_reason, told),
        "guard": guard_body(ended.verdicts, cut=ended.finish_reason == CUT, stopped_by=ended.stopped_by),
    }


def _told(ended: Ended, whole: ChatReply | None) -> list[TokenLogprob]:
    """The tokens that may be told: those of a reply where all of it is shown, those of the caller's own prompt in any case; behind these
    a refusal stands as one token, of no probability, so that nobody takes the last of the prompt for what was written."""
    if whole is None:
        return []
    if ended.text == whole.text:
        return [*(whole.prompt or ()), *(whole.told() or ())]
    return [*whole.prompt, TokenLogprob(ended.text, None)] if whole.prompt else []


def guard_body(verdicts: Sequence[Verdict], *, cut: bool, stopped_by: Verdict | None = None) -> dict[str, Any] | None:
    """The guard's word on a reply: the gravest outcome, and of what was cut the check and the kind; None where nothing was on.

    Args:
        stopped_by: the verdict that cut it; others, which were only recorded, may be graver.
    """
    if not verdicts:
        return None
    gravest = max(verdicts, key=lambda verdict: GRAVITY[verdict.outcome])
    by = stopped_by or gravest
    shown = {"check": by.check, "kind": by.kind or None} if cut else {"check": None, "kind": None}
    return {"outcome": gravest.outcome, "cut": cut, **shown}


def earlier_replies(session: Session, ids: Sequence[str], person_id: int | None) -> dict[str, str]:
    """The texts of replies that the same caller was given, by id.

    Raises:
        NotFound: one is unknown, was given to somebody else, or has no text that was kept; the answer does not tell which.
    """
    if not ids:
        return {}
    served = select(Completion.id, Completion.text).where(
        Completion.id.in_(ids),
        Completion.source == "served",
        Completion.person_id.is_not_distinct_from(person_id),
        Completion.text != "",
    )
    found = {row.id: row.text for row in session.execute(served)}
    if missing := next((each for each in ids if each not in found), None):
        raise NotFound(gettext("you were given no reply %(completion_id)r", completion_id=missing), param="messages")
    return found


def tokens_of(ended: Iterable[Ended]) -> int:
    """Completion tokens, as far as they are known."""
    return sum(each.usage[1] or 0 for each in ended)


def usage_body(usage: tuple[int | None, int | None]) -> dict[str, int]:
    """The `usage` object of an answer."""
    prompt, completion = usage[0] or 0, usage[1] or 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _following(seed: int, i: int) -> int:
    """The seed so many places on, within 64 bits."""
    return (seed + i + 2**63) % 2**64 - 2**63
