"""What a detector is: a bounded pattern, a check of what it matched, and how a match begins.

Whether a match begins at a character depends on the `LOOK_BEHIND` characters before it and on the `longest` from there on, and
on nothing else. So a text that comes in pieces can be searched without looking at it from its beginning again, and what is
decided once stays decided (`Detector.undecided_from`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

LOOK_BEHIND = 1
"""How many characters before a match patterns may look at."""

IN_WORD = r"!-~\u00c0-\u024f"
"""Characters of which matches without a space are made: printable ASCII and the Latin letters beyond it."""

UNFINISHED_WORD = re.compile(rf"[{IN_WORD}]+\Z")


@dataclass(frozen=True)
class Span:
    """Where something of a kind stands: characters `start` up to and without `end`."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Detector:
    """Finds one kind of thing.

    Attributes:
        kind: its name, in lower case.
        pattern: bounded: no match is longer than `longest`, what it looks ahead at counted in.
        longest: characters. What is longer in truth is found by its beginning.
        opening: matches from where a match may be in progress to the end of a text; the default holds for matches without
            spaces. Texts that it does not hold for would be let through in pieces.
        length: how many characters of what matched are the thing, 0 for none: checksums, entropy.
        rest: what belongs to it beyond `longest`; only `redact` looks at it, which has the whole text.
    """

    kind: str
    pattern: re.Pattern[str]
    longest: int
    opening: re.Pattern[str] = UNFINISHED_WORD
    length: Callable[[str], int] = len
    rest: re.Pattern[str] | None = None

    def find(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Span]:
        """What begins at `start` or later and before `end`, in order; the characters before `start` are looked at too."""
        end = len(text) if end is None else end
        while (match := self.pattern.search(text, start, end + self.longest)) and match.start() < end:
            n = self.length(match[0])
            if n:
                yield Span(self.kind, match.start(), match.start() + n)
            start = match.start() + (n or 1)


def undecided_from(opening: re.Pattern[str], longest: int, text: str, start: int) -> int:
    """From where on a match could still be in progress at the end of `text`, or could end otherwise with more of it.

    No earlier than `start`, before which all is decided already. What is in progress from `start` on is let grow to twice
    `longest`, so that a run without end is searched once in so many characters and not at each of them.
    """
    n = len(text)
    if n - start <= 2 * longest and opening.match(text, start):
        return start
    found = opening.search(text, max(start, n - longest))
    return found.start() if found else n


def beginnings(words: Iterable[str]) -> str:
    """A pattern of all that these words begin with, each whole word included, the longer ones first."""
    found = {word[:n] for word in words for n in range(1, len(word) + 1)}
    return "|".join(re.escape(each) for each in sorted(found, key=lambda each: (-len(each), each)))


def find_all(text: str, detectors: Sequence[Detector]) -> list[Span]:
    """Everything found, without overlaps: of two the one that begins first, then the longer one."""
    found = [span for detector in detectors for span in detector.find(text)]
    kept: list[Span] = []
    for span in sorted(found, key=lambda s: (s.start, -s.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def redact(text: str, detectors: Sequence[Detector]) -> tuple[str, list[Span]]:
    """The text with each find replaced by its kind in brackets ("[EMAIL]"), and where the finds stood in the text given."""
    rests = {detector.kind: detector.rest for detector in detectors}
    spans: list[Span] = []
    pieces, at = [], 0
    for span in find_all(text, detectors):
        if span.start < at:
            continue
        rest = rests[span.kind]
        more = rest.match(text, span.end) if rest else None
        spans.append(replace(span, end=more.end()) if more else span)
        pieces += [text[at : span.start], f"[{span.kind.upper()}]"]
        at = spans[-1].end
    return "".join([*pieces, text[at:]]), spans
