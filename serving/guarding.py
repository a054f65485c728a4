"""The guard at work: prompts are checked before the engine is asked, replies as they come, and verdicts are kept.

In: who asks what, and the engine's events. Out: events that may go on. What is looked for stands in `serving.guard`, which does no
IO; here are the rules that hold now, the guard's model, and the clock. Rules, and the model trained last, are read anew once
they are older than a second, so that an edit holds for the next call.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache

from sqlalchemy.orm import Session

from core.detectors.pii import PII
from core.detectors.secrets import SECRETS
from core.messages import Message, whole_signs
from core.settings import Settings
from core.settings.serving import Action as Does
from feedback.rules.store import active_rules
from feedback.rules.thresholds import thresholds
from policy.protocol import ChatReply, Events, StreamEvent
from policy.shapes import TokenLogprob
from reward.models import guard_in_force
from serving.guard import injection
from serving.guard.leakage import LeakageScan
from serving.guard.patterns import PatternScan, Scan, judge
from serving.guard.verdicts import Outcome, Verdict, merge, stops
from serving.guard.window import Action, Ask, Cut, Pieces, Release, Window
from serving.guard_model import GuardModel, Word
from serving.replies import CUT
from serving.side_process import LOAD_S, Held, Unanswered
from serving.telemetry import UNTRACED, Trace

log = logging.getLogger("dunnock.serving")

RULES = "rules"
CONTEXT_CHARS = 1200
TENANTS_REMEMBERED = 1000
AGAIN_S = 1.0
"""How long a model that could not be loaded is left alone."""
AT_THE_END = Pieces(1 << 40, 1 << 40)
"""A check that only records asks once, when nobody waits for it."""


@dataclass(frozen=True)
class Rule:
    """A rule as replies are held to it.

    Attributes:
        threshold: P(broken) from which it counts as broken; None: by the settings, else by the model.
        does: what is done about it, no more than the settings have done about rules.
    """

    version_id: int
    name: str
    text: str
    refusal_text: str
    threshold: float | None = None
    does: Does = "block"


@dataclass(frozen=True)
class Standing:
    """What holds now.

    Attributes:
        model: the guard's model; None where none was trained.
    """

    rules: tuple[Rule, ...] = ()
    model: Held | None = None


class Guard:
    """What all calls share. One per app."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.guard
        self.model = GuardModel(settings.guard.base_url, settings.guard.timeout_s)
        self._artifact_dir = settings.artifact_dir
        self._standing: dict[int | None, tuple[float, Standing]] = {}
        self._loading: asyncio.Future[None] | None = None
        self._again_at = -math.inf

    # --- what holds

    def standing(self, session: Session, tenant_id: int | None = None) -> Standing:
        """The rules that hold for a tenant and the model that knows them, at most so old as the settings say."""
        read_at, found = self._standing.get(tenant_id, (-math.inf, Standing()))
        if time.monotonic() - read_at < self.settings.refresh_s:
            return found
        model = guard_in_force(session) if self.settings.model == "auto" else None
        found = Standing(
            _rules(session, tenant_id),
            None if model is None else Held(str(self._artifact_dir / model.path), model.sha256),
        )
        if len(self._standing) >= TENANTS_REMEMBERED:
            self._standing.clear()
        self._standing[tenant_id] = (time.monotonic(), found)
        return found

    async def ready(self, standing: Standing, most_s: float = LOAD_S) -> None:
        """Have the guard's process hold the newest model; where that fails the one before goes on, and it is tried again.

        Whoever needs it waits for the same one attempt, `most_s` at the longest; while the one before answers, no longer than for a verdict.
        """
        if standing.model is None or self.model.held == standing.model:
            return
        loop = asyncio.get_running_loop()
        if self._loading is None or self._loading.done() or self._loading.get_loop() is not loop:
            if time.monotonic() < self._again_at:
                return
            self._loading = loop.create_task(self._load(standing.model))
        await asyncio.wait({self._loading}, timeout=most_s if self.model.held is None else self.settings.timeout_s)

    async def _load(self, held: Held) -> None:
        try:
            await self.model.use(held)
        except Unanswered as error:
            self._again_at = time.monotonic() + AGAIN_S
            log.warning("the guard's model in %s is not loaded: %s", held.path, error)

    async def ask(
        self, standing: Standing, context: str, text: str, start: int = 0, asked: Sequence[Rule] | None = None
    ) -> dict[str, Word]:
        """A word on each rule that holds; a process that lost the model is given it again, once.

        Args:
            asked: the rules, where not all are.
            start: the first character that was not asked about before.

        Raises:
            Unanswered: there is none.
        """
        rules = {rule.name: rule.text for rule in (standing.rules if asked is None else asked)}
        try:
            return await self.model.judge(context, text, rules, start)
        except Unanswered:
            if self.model.held is not None:
                raise
        await self.ready(standing, self.settings.timeout_s)
        return await self.model.judge(context, text, rules, start)

    async def words(self, standing: Standing, messages: Sequence[Message], text: str) -> list[tuple[Rule, Word]]:
        """A word on each rule that is asked about, of a whole reply to a conversation.

        Raises:
            Unanswered: there is none; no model knows the rules, or it is not asked.
        """
        if standing.model is None or self.settings.output_rules == "off":
            raise Unanswered("not_scanned", "no model is asked about rules")
        rules = [rule for rule in standing.rules if rule.does != "off"]
        found = await self.ask(standing, _end_of(messages), text, asked=rules) if rules else {}
        return [(rule, found[rule.name]) for rule in rules]

    def reached(self, rule: Rule, word: Word) -> bool:
        """Whether a rule counts as broken: by its own threshold, else that of the settings, else the model's."""
        limit = rule.threshold or self.settings.threshold
        return word.broken >= limit if limit else word.hit

    def limit(self, rule: Rule, word: Word) -> float:
        """The P(broken) from which it does."""
        return rule.threshold or self.settings.threshold or word.threshold

    # --- prompts

    def check_prompt(self, messages: Sequence[Message]) -> "Checked":
        """What the checks say of what the user wrote, and whether it may go to the engine."""
        does = self.settings
        found = Checked()
        for text in (m.content for m in messages if m.role == "user"):
            if does.input_injection != "off":
                found.add(_injection(text), does.input_injection)
            for check, action, detectors in (
                ("secrets", does.input_secrets, SECRETS),
                ("pii", does.input_pii, PII),
            ):
                if action != "off":
                    found.add(judge(PatternScan(check, detectors), text, "input"), action)
        return found

    # --- replies

    def watch(self, messages: Sequence[Message], standing: Standing, path: str, trace: Trace = UNTRACED) -> "Watch":
        """What looks at one reply to a conversation."""
        return Watch(self, messages, standing, fail_closed=path not in self.settings.fail_open, trace=trace)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.model.close()


@dataclass
class Checked:
    """Verdicts on a prompt; `stop` is the first that does not let it pass."""

    verdicts: list[Verdict] = field(default_factory=list)
    stop: Verdict | None = None

    def add(self, verdict: Verdict, does: Does) -> None:
        """One more; several clear ones of a check are one."""
        known = next((i for i, v in enumerate(self.verdicts) if v.key == verdict.key), None)
        if known is None:
            self.verdicts.append(verdict)
        elif verdict.outcome != "clear":
            self.verdicts[known] = verdict
        if does == "block" and self.stop is None and stops(verdict, fail_closed=True):
            self.stop = verdict


class Watch:
    """One reply on its way out.

    Attributes:
        shown: what was let through, refusal text included.
        withheld: what the policy wrote in the place of the cut, where a rule was the reason.
    """

    def __init__(
        self,
        guard: Guard,
        messages: Sequence[Message],
        standing: Standing,
        *,
        fail_closed: bool,
        trace: Trace = UNTRACED,
    ) -> None:
        self._guard, self._standing, self._trace = guard, standing, trace
        self._context = _end_of(messages)
        does = guard.settings
        system = [m.content for m in messages if m.role == "system"]
        known = [m.content for m in messages if m.role == "user"]
        scans: list[tuple[Does, Scan]] = [
            (does.output_secrets, PatternScan("secrets", SECRETS)),
            (does.output_pii, PatternScan("pii", PII)),
        ]
        if system:
            scans.append((does.output_leak, LeakageScan(system, known)))
        held = [rule for rule in standing.rules if does.output_rules != "off" and rule.does != "off"]
        self._no_model = bool(held) and standing.model is None
        if standing.model is None:
            held = []
        blocks = does.output_rules == "block"
        self._blocking = [rule for rule in held if blocks and rule.does == "block"]
        self._recording = [rule for rule in held if not (blocks and rule.does == "block")]
        pieces = Pieces(does.first_chars, max(does.first_chars, does.piece_chars))
        self.window = Window(
            [scan for action, scan in scans if action == "block"],
            asked=(RULES,) if self._blocking else (), pieces=pieces, fail_closed=fail_closed,
        )  # fmt: skip
        # One window for each check that only records: a hit ends its own alone.
        self._records = [Window([scan], fail_closed=False) for action, scan in scans if action == "record"] + (
            [Window(asked=(RULES,), pieces=AT_THE_END, fail_closed=False)] if self._recording else []
        )
        self._unasked: list[tuple[Window, Ask]] = []
        self._written: list[str] = []
        self._shown: list[str] = []

    # --- streams

    def over(self, events: Events) -> "GuardedEvents":
        """The events as far as they are cleared."""
        return GuardedEvents(events, self)

    # --- whole replies

    async def whole(self, reply: ChatReply) -> tuple[str, str]:
        """Text and finish reason of a whole reply as it may be shown."""
        actions = self.feed(reply.text, last=True)
        while actions:
            action = actions.pop(0)
            if isinstance(action, Release):
                self.show(action.text)
            elif isinstance(action, Ask):
                actions += self.window.answer(action.upto, await self.ask(action))
            else:
                self.show(self.refusal(action))
                return self.shown, CUT
        await self.record_rest()
        return self.shown, reply.finish_reason

    # --- steps of both

    def feed(self, text: str, *, last: bool = False) -> list[Action]:
        """Take what the policy wrote next."""
        self._written.append(text)
        for record in self._records:
            self._later(record, record.feed(text, last=last))
        return self.window.feed(text, last=last)

    def finish(self) -> list[Action]:
        """The policy has ended."""
        return self.window.finish()

    async def ask(self, asked: Ask) -> list[Verdict]:
        """What the guard's model says of a piece, of the rules that block; verdicts without an answer where it did not."""
        return await self._ask(asked, self._blocking)

    async def _ask(self, asked: Ask, rules: Sequence[Rule]) -> list[Verdict]:
        began = time.perf_counter()
        try:
            before = len(asked.text) - (asked.upto - asked.start)
            with self._trace.part("guard model") as part:
                part.at(self._guard.model.url)
                words = await self._guard.ask(self._standing, self._context, asked.text, before, rules)
        except Unanswered as error:
            log.warning("the guard's model did not answer: %s", error)
            return [Verdict(RULES, "output", error.outcome, latency_s=time.perf_counter() - began)]
        spent_s = (time.perf_counter() - began) / len(words)
        return [self._verdict(rule, words[rule.name], spent_s) for rule in rules]

    def _verdict(self, rule: Rule, word: Word, spent_s: float) -> Verdict:
        outcome: Outcome = "hit" if self._guard.reached(rule, word) else "clear"
        return Verdict(
            RULES, "output", outcome, rule.name, rule_version_id=rule.version_id, score=word.broken,
            threshold=self._guard.limit(rule, word), latency_s=spent_s,
        )  # fmt: skip

    async def record_rest(self) -> None:
        """What is only recorded is asked at the end, when nobody waits for it any more."""
        for record in self._records:
            self._later(record, record.finish())
        for record, asked in self._unasked:
            record.answer(asked.upto, await self._ask(asked, self._recording))

    def _later(self, record: Window, actions: Sequence[Action]) -> None:
        self._unasked += [(record, action) for action in actions if isinstance(action, Ask)]

    def show(self, text: str) -> str:
        """What the reader gets, remembered."""
        self._shown.append(whole_signs(text))
        return self._shown[-1]

    def refusal(self, cut: Cut) -> str:
        """What is said at the cut: the words of the rule, or those of the settings."""
        rule = next((rule for rule in self._standing.rules if rule.version_id == cut.verdict.rule_version_id), None)
        words = rule.refusal_text if rule else self._guard.settings.refusal_text
        return f"\n\n{words}" if self._shown else words

    @property
    def shown(self) -> str:
        return "".join(self._shown)

    @property
    def withheld(self) -> str | None:
        cut = self.window.cut
        broke_rule = cut is not None and cut.verdict.check == RULES and cut.verdict.outcome == "hit"
        return "".join(self._written) if broke_rule and self._guard.settings.keep_withheld else None

    @property
    def stopped_by(self) -> Verdict | None:
        """The verdict that cut it."""
        return self.window.cut.verdict if self.window.cut else None

    def verdicts(self) -> list[Verdict]:
        """Of every check that is on, as far as it is known."""
        found = merge(v for window in (self.window, *self._records) for v in window.verdicts())
        if self._no_model:
            found.append(Verdict(RULES, "output", "not_scanned"))
        return found


class GuardedEvents:
    """An engine's events as far as the guard lets them through; one reader."""

    def __init__(self, events: Events, watch: Watch) -> None:
        self._events, self._watch = events, watch

    def close(self) -> None:
        """End the completion at the engine; safe to call twice."""
        self._events.close()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        watch, end, n = self._watch, StreamEvent(), 0
        told = _Told()
        events = aiter(self._events)
        coming: asyncio.Future[StreamEvent] | None = asyncio.ensure_future(anext(events))
        asking: asyncio.Future[tuple[Ask, list[Verdict]]] | None = None
        try:
            while coming is not None or asking is not None:
                waiting = [future for future in (coming, asking) if future is not None]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                actions: list[Action] = []
                if asking is not None and asking.done():
                    asked, verdicts = asking.result()
                    asking = None
                    actions += watch.window.answer(asked.upto, verdicts)
                if coming is not None and coming.done():
                    try:
                        event = coming.result()
                    except StopAsyncIteration:
                        coming = None
                        actions += watch.finish()
                    else:
                        n += bool(event.text)
                        end = event.after(end)
                        told.take(event)
                        actions += watch.feed(event.text) if event.text else []
                        coming = asyncio.ensure_future(anext(events))
                for action in actions:
                    if isinstance(action, Release):
                        yield StreamEvent(watch.show(action.text), tokens=told.upto(watch.window.released))
                    elif isinstance(action, Ask):
                        asking = asyncio.ensure_future(self._ask(action))
                    else:
                        self._events.close()
                        said = watch.refusal(action)
                        watch.show(said)
                        # the engine tells the count at the end, which is not waited for: a piece is a token or more
                        yield StreamEvent(said, CUT, end.prompt_tokens, end.completion_tokens or n)
                        return
            await watch.record_rest()
            tokens = told.upto(watch.window.released)
            yield replace(end, text="", tokens=tokens)
        finally:
            for future in (coming, asking):
                if future is not None:
                    future.cancel()
                    with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                        await future

    async def _ask(self, asked: Ask) -> tuple[Ask, list[Verdict]]:
        return asked, await self._watch.ask(asked)


class _Told:
    """Tokens that wait until all of their text is cleared."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._chars = 0

    def take(self, event: StreamEvent) -> None:
        """What came."""
        self._chars += len(event.text)
        self._waiting += [(self._chars, token) for token in event.tokens]

    def upto(self, released: int) -> tuple[TokenLogprob, ...]:
        """Those whose text has gone out, once each."""
        found = []
        while self._waiting and self._waiting[0][0] <= released:
            found.append(self._waiting.popleft()[1])
        return tuple(found)


def _rules(session: Session, tenant_id: int | None) -> tuple[Rule, ...]:
    held = thresholds(session)
    return tuple(
        Rule(v.id, v.rule.slug, v.text, v.refusal_text, *held.get(v.rule_id, (None, "block")))
        for v in active_rules(session, tenant_id)
    )


def _end_of(messages: Sequence[Message]) -> str:
    """The end of a conversation, as the guard's model reads it."""
    return "\n".join(f"{m.role}: {m.content}" for m in messages if m.role != "system")[-CONTEXT_CHARS:]


def _injection(text: str) -> Verdict:
    """The verdict on a turn; turns come again with every call of a conversation."""
    return _remembered(_Text(text))


class _Text:
    """A text that a cache knows by its hash alone."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def __hash__(self) -> int:
        return hash(self._sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Text) and other._sha256 == self._sha256


@lru_cache(maxsize=1024)
def _remembered(text: _Text) -> Verdict:
    return injection.check(text.text)
