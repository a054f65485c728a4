"""Adaptive best-of-N: one completion, or several of which the best is given, as the risk of the first one has it (Sparrow's reranking).

    risk  = the greatest P(broken) of the first completion over the rules that hold, in parts of the rule's threshold
    score = reward − weight · Σ P(broken)

The guard's model says both P(broken), the preference reward model, in the scoring process, the reward. Below the risk of the
settings the first completion is the answer, and costs what one costs. From it on further ones are drawn at once, as many as the
request's budget of tokens has room for, and the one with the highest score is the answer. Where the guard's model or the
scoring process does not answer, the first one is: the guard looks at whatever is given, as always.

Of a stream all is drawn before its first text. Source of the reranking: Glaese et al. 2022, arXiv:2209.14375, section 3.5.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prometheus_client import Counter
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import DunnockError
from core.settings import Settings
from policy.models import PolicyVersion
from policy.protocol import ChatReply, ChatRequest
from reward.models import RewardModel
from serving.engines import Engines
from serving.guarding import Guard, Standing
from serving.replies import Ended, Reply
from serving.score_model import ScoreModel
from serving.side_process import Held, Unanswered
from serving.telemetry import UNTRACED, Trace

log = logging.getLogger("dunnock.serving")

SAMPLED = "sampled"
"""The source of a completion that was drawn and not given."""
Outcome = Literal["one", "several", "unknown", "unscored", "late"]
CALLS = Counter("dunnock_best_of", "Calls by how their completion was come by", ["outcome"])
DRAWN = Counter("dunnock_best_of_drawn", "Completions that were drawn beside the first")
TOKENS = Counter("dunnock_best_of_tokens", "Completion tokens of those that were not given", ["version"])


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a request.

    Attributes:
        outcome: `one`: the risk was low, or there was no budget for more; `several`; `unknown`: nobody could tell the risk;
            `unscored`: nobody could tell which is best; `late`: that took too long. In all but `several` the first is given.
        others: those that are not given.
        scores: of the given one and of the others, in that order; empty where none were made.
    """

    given: ChatReply
    outcome: Outcome
    risk: float | None = None
    others: tuple[ChatReply, ...] = ()
    scores: tuple[float, ...] = ()

    def told(self) -> dict[str, Any]:
        """What callers are told, and the record of the given one says."""
        risk = None if self.risk is None else round(self.risk, 3)
        return {"drawn": 1 + len(self.others), "risk": risk, "outcome": self.outcome}

    def beside(self, reply: Reply) -> list[Ended]:
        """The completions that are not given, as they are stored: their tokens are paid for, and nobody saw them."""
        told = [None, *self.scores[1:]] if self.scores else [None] * (1 + len(self.others))
        return [
            Ended(
                replace(reply, id=f"{reply.id}-s{i}", source=SAMPLED, slot=None, best_of={"score": told[i]}, stored=False),
                each.text, each.finish_reason, (each.prompt_tokens, each.completion_tokens),
            )
            for i, each in enumerate(self.others, 1)
        ]  # fmt: skip


class BestOf:
    """Draws completions. One per app."""

    def __init__(self, settings: Settings, engines: Engines, guard: Guard) -> None:
        self.settings = settings.best_of
        self.model = ScoreModel(settings.best_of.base_url, settings.best_of.timeout_s)
        self._engines, self._guard = engines, guard
        self._artifact_dir, self._refresh_s = settings.artifact_dir, settings.guard.refresh_s
        self._known: tuple[float, Held | None] = (-math.inf, None)

    def scorer(self, session: Session) -> Held | None:
        """The reward model that ranks: the newest that clears its bar, read anew once it is older than a second."""
        read_at, found = self._known
        if time.monotonic() - read_at >= self._refresh_s:
            query = select(RewardModel).where(RewardModel.kind == "preference", RewardModel.clears_bar)
            model = session.scalar(query.order_by(RewardModel.id.desc()).limit(1))
            found = None if model is None else Held(str(self._artifact_dir / model.path), model.sha256)
            self._known = (time.monotonic(), found)
        return found

    def wanted(self, request: ChatRequest, choices: int) -> bool:
        """Whether a request may get more than one: not where several choices are asked for, each of which is wanted as it comes, and
        not of a raw text: the reward model has learnt conversations."""
        return self.settings.n > 1 and choices == 1 and not request.raw

    async def draw(
        self, version: PolicyVersion, request: ChatRequest, standing: Standing, scorer: Held | None, trace: Trace = UNTRACED
    ) -> Drawn:  # fmt: skip
        """One completion or several, and which is given. Errors as of `Engines.complete`, of the first one alone."""
        first = await self._engines.complete(version, request, trace)
        found = await self._beyond(first, version, request, standing, scorer, trace)
        CALLS.labels(found.outcome).inc()
        DRAWN.inc(len(found.others))
        TOKENS.labels(version.name).inc(sum(each.completion_tokens for each in found.others))
        return found

    async def _beyond(
        self, first: ChatReply, version: PolicyVersion, request: ChatRequest, standing: Standing, scorer: Held | None,
        trace: Trace,
    ) -> Drawn:  # fmt: skip
        try:
            risk = await self.risk(request, standing, first.text)
        except Unanswered as error:
            log.warning("the risk of a reply is unknown: %s", error)
            return Drawn(first, "unknown")
        more = min(self.settings.n - 1, self.settings.extra_tokens // request.max_tokens)
        if risk < self.settings.risk or more < 1:
            return Drawn(first, "one", risk)
        if scorer is None:
            return Drawn(first, "unscored", risk)
        drawn = [first]
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await self.model.use(scorer)
                drawn += await self._further(version, request, more, trace)
                scores = await self.scores(request, standing, [each.text for each in drawn])
        except TimeoutError:
            return Drawn(first, "late", risk, tuple(drawn[1:]))
        except Unanswered as error:
            log.warning("replies cannot be told apart: %s", error)
            return Drawn(first, "unscored", risk, tuple(drawn[1:]))
        best = max(range(len(drawn)), key=scores.__getitem__)
        order = [best, *(i for i in range(len(drawn)) if i != best)]
        return Drawn(drawn[best], "several", risk, tuple(drawn[i] for i in order[1:]), tuple(scores[i] for i in order))

    async def risk(self, request: ChatRequest, standing: Standing, text: str) -> float:
        """The greatest P(broken) over the rules that hold, in parts of the rule's threshold: from 1 on the guard finds it broken.

        Raises:
            Unanswered: no model knows the rules, or it does not answer.
        """
        words = await self._guard.words(standing, request.messages, text)
        return max((word.broken / self._guard.limit(rule, word) for rule, word in words), default=0.0)

    async def scores(self, request: ChatRequest, standing: Standing, texts: Sequence[str]) -> list[float]:
        """reward − weight · Σ P(broken) of each text.

        Raises:
            Unanswered: one of the two models does not answer.
        """
        rewards, broken = await asyncio.gather(
            self.model.score(request.messages, texts), self._broken(standing, request, texts)
        )
        return [reward - self.settings.rule_weight * each for reward, each in zip(rewards, broken, strict=True)]

    async def _broken(self, standing: Standing, request: ChatRequest, texts: Sequence[str]) -> list[float]:
        """Σ P(broken) of each, one after the other: replies that others wait for are asked about in between."""
        return [
            math.fsum(word.broken for _, word in await self._guard.words(standing, request.messages, text))
            for text in texts
        ]

    async def _further(
        self, version: PolicyVersion, request: ChatRequest, n: int, trace: Trace
    ) -> list[ChatReply]:  # fmt: skip
        """Up to `n` more, drawn at once; those that fail are left out."""
        requests = [self._other(request, i) for i in range(1, n + 1)]
        made = await asyncio.gather(
            *(self._engines.complete(version, each, trace) for each in requests), return_exceptions=True
        )
        for failed in made:
            if isinstance(failed, BaseException) and not isinstance(failed, DunnockError):
                raise failed
        return [each for each in made if isinstance(each, ChatReply)]

    def _other(self, request: ChatRequest, i: int) -> ChatRequest:
        """The request of a further completion, which has to come out differently."""
        seed = None if request.seed is None else (request.seed + i) % 2**31
        temperature = request.temperature or self.settings.temperature
        return request.model_copy(update={"seed": seed, "temperature": temperature})

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.model.close()
