"""Whether a reply repeats the system turns: words shared in runs, found while the reply is being written.

In: the system turns, and the reply in pieces. Compared are words without case, accents, punctuation, markup and signs that
nobody sees. Three words in a row that stand so in a system turn are shared; a passage of shared words with no more than
`MOST_BETWEEN` other words at once between them is a leak when it holds `LEAK_WORDS` of them. Not found: translations,
summaries, encodings, passages of which more than every third word was changed.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Sequence

from core.detectors import Span

GRAM = 3
LEAK_WORDS = 12
LEAST_WORDS = 8
"""A system turn with fewer words has nothing to leak that is not a common phrase."""
MOST_BETWEEN = 4
LONGEST_WORD = 64

# Han and kana are written without spaces: a sign of them stands for half a word.
_SIGN = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_INNER = r"\u0300-\u036f\u00ad\u200b-\u200f\u2060-\u2064\ufeff"
_WORD = re.compile(rf"[{_SIGN}]|(?:(?![{_SIGN}])[\w{_INNER}]){{1,{LONGEST_WORD}}}")
Gram = tuple[str, ...]


def _plain(word: str) -> str:
    """A word as it is compared; "" for one of which nothing is left."""
    if not word.isascii():
        word = "".join(c for c in unicodedata.normalize("NFKD", word) if unicodedata.category(c) not in ("Mn", "Cf"))
    return word.casefold().strip("_")


def _words(text: str) -> list[str]:
    return [plain for m in _WORD.finditer(text) if (plain := _plain(m[0]))]


def _is_sign(word: str) -> bool:
    return re.match(f"[{_SIGN}]", word) is not None


def _weight(word: str) -> float:
    return 0.5 if _is_sign(word) else 1.0


def _grams(words: Sequence[str]) -> set[Gram]:
    return {tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)}


class LeakageScan:
    """Looks for the system turns in a reply that comes in pieces (a `serving.guard.patterns.Scan`).

    Args:
        system: the system turns.
        known: what the user wrote. What stands there too is no secret to them, and repeating it no leak.
    """

    check = "system_prompt_leak"

    def __init__(self, system: Sequence[str], known: Sequence[str] = ()) -> None:
        self.clear = 0
        self.found: Span | None = None
        turns = [words for words in map(_words, system) if sum(map(_weight, words)) >= LEAST_WORDS]
        told = {gram for text in known for gram in _grams(_words(text))}
        self._grams = {gram for words in turns for gram in _grams(words)} - told
        self._begins = {gram[:n] for gram in self._grams for n in range(1, GRAM)}
        self._wanted = min([float(LEAK_WORDS), *(sum(map(_weight, words)) for words in turns)])
        self._recent: deque[tuple[str, int]] = deque(maxlen=GRAM)  # words with where they begin
        self._run_start: int | None = None
        self._shared = 0.0
        self._between = 0
        self._text, self._offset = "", 0

    def feed(self, text: str, *, last: bool = False) -> None:
        if self.found is None and (text or last):
            self._text += text
            self._read(finished=last)

    def _read(self, *, finished: bool) -> None:
        """Take in the words that are complete."""
        done = len(self._text)
        for match in _WORD.finditer(self._text):
            if (
                match.end() == len(self._text)
                and len(match[0]) < LONGEST_WORD
                and not finished
                and not _is_sign(match[0])
            ):
                done = match.start()
                break
            word = _plain(match[0])
            begin = self._leak_with(word, self._offset + match.start()) if word else None
            if begin is not None:
                self.clear, self.found = begin, Span("system_prompt", begin, self._offset + match.end())
                return
        self._text, self._offset = self._text[done:], self._offset + done
        self.clear = self._offset if finished else self._held_from()

    def _leak_with(self, word: str, start: int) -> int | None:
        """Count a word; where the passage began that is a leak with it, None while it is none."""
        self._recent.append((word, start))
        if tuple(w for w, _ in self._recent) in self._grams:
            if self._run_start is None:
                self._run_start, self._shared, self._between = self._recent[0][1], 0.0, GRAM - 1
            fresh = min(self._between + 1, GRAM)
            self._shared += sum(_weight(w) for w, _ in list(self._recent)[-fresh:])
            self._between = 0
            return self._run_start if self._shared >= self._wanted else None
        self._between += 1
        if self._between > MOST_BETWEEN:
            self._run_start = None
        return None

    def _held_from(self) -> int:
        """Where the passage began that could become a leak, else where three shared words may have begun."""
        if self._run_start is not None:
            return self._run_start
        for n in range(min(GRAM - 1, len(self._recent)), 0, -1):
            last = list(self._recent)[-n:]
            if tuple(w for w, _ in last) in self._begins:
                return last[0][1]
        return self._offset
