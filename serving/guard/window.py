"""The stream window: lets out of a reply only what every check has cleared. It does no IO; whoever serves drives it.

    window = Window([PatternScan("secrets", SECRETS), LeakageScan(system)], asked=("rules",))
    for piece in engine:
        for action in window.feed(piece): ...
    for action in window.finish(): ...

`Release(text)` goes to the user. `Ask(start, upto, text)` wants the checks that need a model; what they say comes back by
`window.answer(upto, verdicts)`, which returns actions as well, and the stream may go on feeding meanwhile: at most one Ask is
open, and the next one takes all that has come. `Cut(verdict, at)` is the end: nothing from character `at` on was or will be
released. A whole reply is one `feed` and `finish`, and asks once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from core.detectors import Span
from serving.guard.boundaries import torn_nowhere
from serving.guard.patterns import Scan
from serving.guard.verdicts import Outcome, Side, Verdict, first_stop, merge

SECOND_CHARS = 8
"""A word or two: a reader who has seen the first is not kept waiting for long."""


@dataclass(frozen=True)
class Release:
    """Text that every check has cleared: the next characters of the reply."""

    text: str


@dataclass(frozen=True)
class Ask:
    """A question to the checks that need a model: is the reply clear up to here?

    Attributes:
        start: the first character that was not asked about before.
        upto: answer with this number.
        text: the reply up to `upto`; of what comes before `start` only the last `context_chars`.
    """

    start: int
    upto: int
    text: str


@dataclass(frozen=True)
class Cut:
    """The end of the reply at character `at`, and why."""

    verdict: Verdict
    at: int


Action = Release | Ask | Cut


@dataclass(frozen=True)
class Pieces:
    """How much is asked about at once, in characters.

    Attributes:
        first_chars: of the first question: small, so that the first word is soon there.
        piece_chars: of later ones, which double from `SECOND_CHARS` up to this: a question costs about the same whatever it holds.
        context_chars: how much of what was asked before goes along.
    """

    first_chars: int = 1
    piece_chars: int = 512
    context_chars: int = 4000


class Window:
    """Holds a reply back until it is cleared.

    Args:
        scans: checks that read along and decide at once.
        asked: names of the checks that are asked; with none, no `Ask` is made.
        pieces: how much they are asked about at once.
        fail_closed: a check that did not answer cuts the reply; else its text is released and the verdict tells of it.
        side: whose text it is, for the verdicts.
    """

    def __init__(
        self,
        scans: Sequence[Scan] = (),
        *,
        asked: Sequence[str] = (),
        pieces: Pieces = Pieces(),
        fail_closed: bool = True,
        side: Side = "output",
    ) -> None:
        self.fail_closed = fail_closed
        self.released = 0
        self.cut: Cut | None = None
        self.done = False
        self._scans, self._asked, self._pieces, self._side = tuple(scans), tuple(asked), pieces, side
        self._text = _Held()
        self._size = pieces.first_chars
        self._open: Ask | None = None
        self._questioned = 0  # characters that were asked about
        self._answered = 0  # … and answered for
        self._said: list[Verdict] = []
        self._answers = 0
        self._heard: Counter[object] = Counter()  # of how many answers each verdict's key was part
        self._spent_s = [0.0] * len(self._scans)
        self._finishing = False

    def feed(self, text: str, *, last: bool = False) -> list[Action]:
        """Take the next piece of the reply.

        Args:
            last: no text follows, as after `finish`; what comes whole is searched once so, not also for what may be in progress.

        Raises:
            RuntimeError: after the last piece or `finish`.
        """
        if self._finishing:
            raise RuntimeError("the reply was finished: no text can follow")
        if self.cut:
            return []
        self._finishing = last
        self._text.append(text)
        for i, scan in enumerate(self._scans):
            begun = perf_counter()
            scan.feed(text, last=last)
            self._spent_s[i] += perf_counter() - begun
        return self._go_on()

    def finish(self) -> list[Action]:
        """There is no more text. Once all is answered `done` is true; a second call changes nothing."""
        return [] if self.cut or self._finishing else self.feed("", last=True)

    def answer(self, upto: int, verdicts: Sequence[Verdict]) -> list[Action]:
        """What the asked checks say of the reply up to `upto`, one verdict or more of each.

        A check that says nothing counts as `not_scanned`. An answer after the cut changes nothing.

        Raises:
            ValueError: `upto` is not what the open question asks about.
        """
        if self.cut:
            return []
        if self._open is None or upto != self._open.upto:
            wanted = self._open.upto if self._open else "nothing"
            raise ValueError(f"an answer up to character {upto} while {wanted} is asked about")
        silent = set(self._asked) - {verdict.check for verdict in verdicts}
        said = [replace(v, upto=upto) if v.outcome == "clear" else v for v in verdicts]
        said += [Verdict(check, self._side, "not_scanned") for check in self._asked if check in silent]
        self._said = merge([*self._said, *said])
        self._heard.update({verdict.key for verdict in said})
        self._answers += 1
        self._open = None
        stop = first_stop(said, fail_closed=self.fail_closed)
        if stop:
            return self._end_by(stop)
        self._answered = upto
        return self._go_on()

    def verdicts(self) -> list[Verdict]:
        """A verdict of every check on the reply as far as it is known: "clear" only from checks that saw all there was.

        Before `done` the outcome of the others is "not_scanned"; so is it after a cut for those that had not come as far.
        """
        said = [self._of_scan(i) for i in range(len(self._scans))]
        for verdict in self._said:
            always = self._heard[verdict.key] == self._answers
            if verdict.outcome == "clear" and not (always and self._seen(verdict.upto)):
                verdict = replace(verdict, outcome="not_scanned")  # noqa: PLW2901
            said.append(verdict)
        heard = {verdict.check for verdict in self._said}
        return [*said, *(Verdict(check, self._side, "not_scanned") for check in self._asked if check not in heard)]

    def _of_scan(self, i: int) -> Verdict:
        scan, spent_s = self._scans[i], self._spent_s[i]
        if self.cut and (self.cut.verdict.check, self.cut.verdict.side) == (scan.check, self._side):
            return replace(self.cut.verdict, latency_s=spent_s)
        upto = min(scan.clear, max(self.cut.at, self.cut.verdict.start or 0)) if self.cut else scan.clear
        outcome: Outcome = "clear" if self._seen(scan.clear) else "not_scanned"
        return Verdict(scan.check, self._side, outcome, latency_s=spent_s, upto=upto)

    def _seen(self, upto: int) -> bool:
        """Whether a check that came so far saw all that there is to see: the reply, or what stands before its cut."""
        return self.done or (self.cut is not None and upto >= max(self.cut.at, 1))

    def _go_on(self) -> list[Action]:
        """Whatever can be done now: release, cut, ask, in this order."""
        found = self._first_found()
        if found:
            span, check = found
            actions = self._release(span.start)
            quote = self._text.between(span.start, span.end)
            hit = Verdict(
                check, self._side, "hit", span.kind, upto=span.start, start=span.start, end=span.end, quote=quote
            )
            return [*actions, *self._end_by(hit)]
        limit = min((scan.clear for scan in self._scans), default=self._text.end)
        actions = [*self._release(limit), *self._ask()]
        if self._finishing and self.released == self._text.end and self._open is None:
            self.done = True
        return actions

    def _first_found(self) -> tuple[Span, str] | None:
        """The find that begins first, once no scan can find an earlier one; the same however the reply was cut into pieces."""
        finds = [(scan.found.start, i) for i, scan in enumerate(self._scans) if scan.found]
        if not finds:
            return None
        start, i = min(finds)
        if any(scan.found is None and scan.clear <= start and not self._finishing for scan in self._scans):
            return None
        span = self._scans[i].found
        return (span, self._scans[i].check) if span else None

    def _release(self, limit: int) -> list[Action]:
        """What stands before `limit` and is answered for."""
        limit = min(limit, self._answered) if self._asked else limit
        if limit <= self.released:
            return []
        rest = self._text.between(self.released, self._text.end)
        length = torn_nowhere(rest, limit - self.released, more=not self._finishing)
        if length == 0:
            return []
        self.released += length
        context = self._questioned - self._pieces.context_chars
        self._text.forget(min(self.released, context) if self._asked else self.released)
        return [Release(rest[:length])]

    def _ask(self) -> list[Action]:
        fresh = self._text.end - self._questioned
        if not self._asked or self._open or not fresh or (fresh < self._size and not self._finishing):
            return []
        start, upto = self._questioned, self._text.end
        self._open = Ask(
            start, upto, self._text.between(max(self._text.begin, start - self._pieces.context_chars), upto)
        )
        self._questioned = upto
        self._size = min(max(2 * self._size, SECOND_CHARS), self._pieces.piece_chars)
        return [self._open]

    def _end_by(self, verdict: Verdict) -> list[Action]:
        self.cut = Cut(verdict, self.released)
        return [self.cut]


class _Held:
    """The end of a growing text, by the characters' places in all of it."""

    def __init__(self) -> None:
        self.begin = self.end = 0
        self._parts: list[str] = []

    def append(self, text: str) -> None:
        self._parts.append(text)
        self.end += len(text)

    def between(self, start: int, end: int) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0][start - self.begin : end - self.begin] if self._parts else ""

    def forget(self, before: int) -> None:
        """Keep nothing from before this character."""
        if before > self.begin:
            self._parts = [self.between(before, self.end)]
            self.begin = before
