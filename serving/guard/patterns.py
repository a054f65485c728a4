"""Secrets and PII in a text that comes in pieces, each character searched a bounded number of times.

In: pieces. Out: up to where the text is decided and clear, or the first find. Whatever the pieces are, what is found is what
`core.detectors` would have found first in the whole text.
"""

import re
from collections.abc import Sequence
from functools import cache
from time import perf_counter
from typing import Protocol

from core.detectors import LOOK_BEHIND, Detector, Span, undecided_from
from serving.guard.verdicts import Side, Verdict


class Scan(Protocol):
    """A check that reads a text as it comes and says at once how far it is decided.

    Attributes:
        check: its name in verdicts.
        clear: characters, from the text's beginning, in which nothing begins that will be found. It never goes back.
        found: the first find. It stands for good, and `clear` is where it begins.
    """

    check: str
    clear: int
    found: Span | None

    def feed(self, text: str, *, last: bool = False) -> None:
        """Take the next piece; after the last one all is decided."""


class PatternScan:
    """Detectors over a text in pieces.

    Args:
        check: the name of the check.
        detectors: what to find; where two find something at the same character, the first one names it.
    """

    def __init__(self, check: str, detectors: Sequence[Detector]) -> None:
        self.check = check
        self.clear = 0
        self.found: Span | None = None
        self._groups = _grouped(tuple(detectors))
        self._decided = [0] * len(self._groups)  # of each group, in characters of the whole text
        self._candidates: list[tuple[int, int, Span]] = []
        self._text, self._offset = "", 0  # what may be looked at again, and where in the whole text it begins

    def feed(self, text: str, *, last: bool = False) -> None:
        if self.found is None and (text or last):
            self._text += text
            self._search(finished=last)

    def _search(self, *, finished: bool) -> None:
        n = len(self._text)
        for i, (opening, longest, members) in enumerate(self._groups):
            start = self._decided[i] - self._offset
            end = n if finished else undecided_from(opening, longest, self._text, start)
            if end > start:
                self._look(members, start, end)
                self._decided[i] = end + self._offset
        decided = min(self._decided, default=n + self._offset)
        first = min(self._candidates, default=None)
        # A group that is not so far yet may still find something that begins earlier.
        if first and (finished or decided > first[0]):
            self.found, self.clear = first[2], first[0]
            return
        self.clear = min(decided, first[0]) if first else decided
        keep = max(0, self.clear - self._offset - LOOK_BEHIND)
        self._text, self._offset = self._text[keep:], self._offset + keep

    def _look(self, members: Sequence[tuple[int, Detector]], start: int, end: int) -> None:
        for rank, detector in members:
            for span in detector.find(self._text, start, end):
                at = span.start + self._offset
                self._candidates.append((at, rank, Span(span.kind, at, span.end + self._offset)))
                break


@cache
def _grouped(detectors: tuple[Detector, ...]) -> list[tuple[re.Pattern[str], int, list[tuple[int, Detector]]]]:
    """Detectors whose matches begin alike, with their longest match: what holds text back is asked once for all of them."""
    groups: dict[re.Pattern[str], list[tuple[int, Detector]]] = {}
    for rank, detector in enumerate(detectors):
        groups.setdefault(detector.opening, []).append((rank, detector))
    return [(opening, max(d.longest for _, d in members), members) for opening, members in groups.items()]


def judge(scan: Scan, text: str, side: Side) -> Verdict:
    """The verdict of a fresh scan on a whole text."""
    begun = perf_counter()
    scan.feed(text, last=True)
    spent_s = perf_counter() - begun
    if scan.found is None:
        return Verdict(scan.check, side, "clear", latency_s=spent_s, upto=len(text))
    kind, start, end = scan.found.kind, scan.found.start, scan.found.end
    return Verdict(
        scan.check, side, "hit", kind, latency_s=spent_s, upto=start, start=start, end=end, quote=text[start:end]
    )
