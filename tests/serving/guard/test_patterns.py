"""A planted secret never leaves, however the reply is cut into pieces.

What is guaranteed and tested: not one character from where the secret begins is released. The secret begins where its detector
says, so with "password" beside it at that word.
"""

import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.detectors import PII, SECRETS, Detector, Span
from serving.guard.patterns import PatternScan, judge
from serving.guard.window import Window
from tests.core.detectors import planted
from tests.serving.guard.driving import Seen, drive

things = {**planted.SECRETS, **planted.PII}
ALL = (*SECRETS, *PII)
each_kind = pytest.mark.parametrize("kind", sorted(things))


def scans() -> list[PatternScan]:
    return [PatternScan("secrets", SECRETS), PatternScan("pii", PII)]


def first(text: str) -> tuple[int, int, Span] | None:
    """The first find in a whole text, by the detectors alone."""
    finds = [(next(detector.find(text), None), rank) for rank, detector in enumerate(ALL)]
    return min(((span.start, rank, span) for span, rank in finds if span), default=None)


def outcome(seen: Seen, window: Window) -> object:
    verdict = seen.cut and seen.cut.verdict
    return (
        seen.released,
        seen.cut and seen.cut.at,
        [(v.check, v.outcome, v.kind, v.start) for v in window.verdicts()],
        (verdict and (verdict.check, verdict.kind, verdict.start)),
    )


def stream(pieces: list[str]) -> tuple[Seen, object]:
    window = Window(scans())
    seen = drive(window, pieces)
    return seen, outcome(seen, window)


@each_kind
@settings(max_examples=12, deadline=None)
@given(
    before=planted.prose(), behind=planted.prose(2), cuts=st.lists(st.integers(0, 10**6), max_size=30), data=st.data()
)
def test_a_planted_thing_never_leaves(
    kind: str, before: str, behind: str, cuts: list[int], data: st.DataObject
) -> None:
    thing = data.draw(things[kind])
    text = f"{before} {thing} {behind}"
    begin = len(before) + 1
    whole, expected = stream([text])
    assert whole.cut
    assert whole.cut.verdict.outcome == "hit"
    found = first(text)
    assert found
    assert whole.cut.verdict.start == found[0] <= begin
    ways = [planted.split(text, cuts), list(text)]
    ways += [[text[:at], text[at:]] for at in range(begin, min(begin + len(thing) + 1, begin + 300))]
    for pieces in ways:
        seen, got = stream(pieces)
        assert len(seen.released) <= begin
        assert text.startswith(seen.released)
        assert got == expected


@settings(max_examples=150, deadline=None)
@given(bits=planted.prose(12), cuts=st.lists(st.integers(0, 10**6), max_size=40))
@example(bits="4111 1111 1111 1111 2222", cuts=[3, 20])
@example(bits="password is is is x7Qm2LpR", cuts=[9])
def test_the_whole_and_its_pieces_are_judged_alike(bits: str, cuts: list[int]) -> None:
    whole, expected = stream([bits])
    found = first(bits)
    assert (whole.cut.verdict.start if whole.cut else None) == (found[0] if found else None)
    if not found:
        assert whole.released == bits
    for pieces in (planted.split(bits, cuts), list(bits)):
        seen, got = stream(pieces)
        assert got == expected
        assert bits.startswith(seen.released)


class Counted:
    """How many characters were searched."""

    characters = 0


class CountedOpening:
    """An opening that counts what it is given to look at."""

    def __init__(self, opening: re.Pattern[str]) -> None:
        self._opening = opening

    def match(self, text: str, start: int) -> object:
        Counted.characters += len(text) - start
        return self._opening.match(text, start)

    def search(self, text: str, start: int) -> object:
        Counted.characters += len(text) - start
        return self._opening.search(text, start)


class CountedDetector(Detector):
    """A detector that counts what it is given to search."""

    def find(self, text: str, start: int = 0, end: int | None = None) -> Iterator[Span]:
        Counted.characters += len(text) - start
        return super().find(text, start, end)


def counted(text: str, size: int) -> float:
    """Characters searched by a detector, for each of the text."""
    Counted.characters = 0
    openings = {d.opening: CountedOpening(d.opening) for d in ALL}
    detectors = [CountedDetector(d.kind, d.pattern, d.longest, openings[d.opening], d.length) for d in ALL]  # type: ignore[arg-type]
    scan = PatternScan("secrets", detectors)
    for at in range(0, len(text), size):
        scan.feed(text[at : at + size])
    scan.feed("", last=True)
    assert scan.found is None
    return Counted.characters / len(ALL) / len(text)


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        ("The little bird sings in the hedge, and 12 more answer. ", 3),
        ("x", 30),
        ("日本語のテキスト", 3),
        ("+ - ( 1 ", 3),
    ],
    ids=["prose", "one word", "no spaces", "digits"],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_each_character_is_searched_a_bounded_number_of_times(unit: str, most: float, size: int) -> None:
    short, long = (counted((unit * n)[:n], size) for n in (4_000, 20_000))
    assert 0 < long <= most
    assert long <= 1.2 * short


def test_what_is_kept_of_a_long_text_is_bounded() -> None:
    scan = PatternScan("secrets", ALL)
    for _ in range(2000):
        scan.feed("x" * 50)
        assert len(scan._text) <= 2 * max(d.longest for d in ALL) + 51
    assert scan.clear >= 100_000 - 2 * max(d.longest for d in ALL)


def test_prose_is_clear_a_word_behind() -> None:
    text = "The dunnock is a small passerine; it was called the hedge sparrow in 1758 and sings from low perches."
    scan, lags = PatternScan("secrets", ALL), []
    for n, character in enumerate(text, start=1):
        scan.feed(character)
        lags.append(n - scan.clear)
    assert max(lags) <= len("passerine;")


def test_the_verdict_on_a_whole_text() -> None:
    text = "Mail me: jo@example.org"
    verdict = judge(PatternScan("pii", PII), text, "input")
    assert (verdict.check, verdict.side, verdict.outcome, verdict.kind) == ("pii", "input", "hit", "email")
    assert (verdict.start, verdict.end, verdict.quote) == (9, 23, "jo@example.org")
    clear = judge(PatternScan("pii", PII), "Nothing here", "input")
    assert (clear.outcome, clear.upto, clear.kind) == ("clear", 12, "")
