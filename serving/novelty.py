"""How new a prompt is: seldom seen word pairs make it so. In: texts, one after the other. Out: a rank of each among the last ones.

    score = mean over distinct words and word pairs of 1 / sqrt(1 + times seen before)

and a prompt's novelty is the share of the last 1000 scores that lie below its own. Counts stand in one table that
words are hashed into: no word is kept, and a prompt costs the same however many came before. Each process counts what it
serves, beginning with the newest stored prompts; after `AGE` prompts all counts are halved, so that what was
usual long ago becomes new again. What says the same in other words counts as new, and another language does so once.

Source: the count-based bonus of Strehl and Littman 2008, as in Bellemare et al. 2016, arXiv:1606.01868.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from itertools import pairwise

from feedback.near import words

SLOTS = 1 << 18
MOST_WORDS, MOST_CHARS = 256, 4096
REMEMBERED = 1000
ENOUGH = 50
AGE = 100_000
MOST_COUNT = 2**16 - 1
EXPONENT = 3


class Novelty:
    """The table. Of one thread."""

    def __init__(self) -> None:
        self._counts = array("H", bytes(2 * SLOTS))
        self._scores: deque[float] = deque(maxlen=REMEMBERED)
        self._n = 0

    def look(self, text: str) -> float:
        """How new a text is, 0 … 1, before it is counted; 0 while too few are known to say."""
        slots = _slots(text)
        score = sum((1 + self._counts[slot]) ** -0.5 for slot in slots) / max(1, len(slots))
        rank = sum(other < score for other in self._scores) / max(1, len(self._scores))
        known = len(self._scores) >= ENOUGH
        self._scores.append(score)
        self._count(slots)
        return rank if known else 0.0

    def _count(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._counts[slot] = min(MOST_COUNT, self._counts[slot] + 1)
        self._n += 1
        if self._n % AGE == 0:
            self._counts = array("H", (count // 2 for count in self._counts))


def share(novelty: float, rate: float) -> float:
    """With what probability a prompt is drawn: the rate on the average, four times that for the newest, none for the most usual.

    The mean of (k + 1) · q^k over ranks q that are even in [0, 1] is 1.
    """
    return min(1.0, rate * (EXPONENT + 1) * novelty**EXPONENT)


def _slots(text: str) -> set[int]:
    """Where a text is counted. Python's own hash differs from process to process, so nobody can aim at a slot."""
    said = words(text[:MOST_CHARS])[:MOST_WORDS]
    return {hash(gram) % SLOTS for gram in (*said, *pairwise(said))}
