"""Which texts say nearly the same. In: texts and prompts. Out: words, clusters of prompts, representatives of texts.

Compared are words without their case, the punctuation around them and signs that nobody sees; nearness is the Jaccard
similarity of word 3-grams, found by MinHash LSH (Broder 1997). What differs in a word of a short text is never near: "yes" and
"no" are not. What says the same in other words is not found either.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

PERMUTATIONS = 128
FIND_ALL = (0.02, 0.98)  # what false and missed hits weigh: hits are checked, missed ones would split a cluster
HIGHEST_THRESHOLD = 0.9  # of the index alone, which has no bands for more; hits are checked against the true one
AROUND_WORDS = ".,;:!?…\"'`*_()[]«»“”„‘’\x1f"  # no signs that a number or a formula may have


def words(text: str) -> list[str]:
    """The words of a text as they are compared. Of a text that has none, what it is made of."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    pieces = text.casefold().split()
    return [word for piece in pieces if (word := piece.strip(AROUND_WORDS))] or pieces


class Near:
    """An index of texts.

    Args:
        jaccard: how alike two texts must be, 0 … 1.
    """

    def __init__(self, jaccard: float, texts: Iterable[str] = ()) -> None:
        from datasketch import MinHashLSH

        self._jaccard = jaccard
        threshold = min(jaccard, HIGHEST_THRESHOLD)
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=FIND_ALL)
        self._signatures: dict[str, Any] = {}
        for text in texts:
            self._insert(text, _minhash(text))

    def like(self, text: str) -> list[str]:
        """Texts of the index that are near this one, the nearest first; it need not be there itself."""
        return self._hits(self._signatures[text] if text in self._signatures else _minhash(text))

    def place(self, text: str) -> str:
        """The nearest text of the index, where one is near; else this one, which is added."""
        own = _minhash(text)
        hits = self._hits(own)
        if hits:
            return hits[0]
        self._insert(text, own)
        return text

    def _insert(self, text: str, signature: Any) -> None:
        self._signatures[text] = signature
        self._index.insert(text, signature)

    def _hits(self, signature: Any) -> list[str]:
        alike = {found: self._signatures[found].jaccard(signature) for found in self._index.query(signature)}
        return sorted((f for f, near in alike.items() if near >= self._jaccard), key=lambda f: (-alike[f], f))


def representatives(texts: Iterable[str], jaccard: float) -> dict[str, str]:
    """For each text the one that stands for it; one that is near no earlier one, in the order of the alphabet, is its own.

    So all that a text stands for are near it, and no chain of small steps leads from one text to quite another.
    """
    index = Near(jaccard)
    return {text: index.place(text) for text in sorted(set(texts))}


def prompt_text(prompt: Sequence[dict[str, str]]) -> str:
    """The turns of a prompt as one text, without its system turns."""
    return "\x1f ".join(_normal(m["content"]) for m in prompt if m["role"] != "system")


def clusters(
    prompts: Iterable[Sequence[dict[str, str]]], frozen_prompts: Sequence[str], jaccard: float
) -> dict[str, str | None]:
    """The name of each prompt's cluster, by `prompt_text`; None for one that touches a frozen prompt.

    Two prompts are in one cluster where steps from one near prompt to the next lead from one to the other.
    """
    texts = sorted({prompt_text(prompt) for prompt in prompts})
    index = Near(jaccard, texts)
    frozen = {_normal(f) for f in frozen_prompts}
    forbidden = {hit for text in frozen for hit in index.like(text)}
    forbidden |= {text for text in texts if _last_turn(text) in frozen}
    root = {text: text for text in texts}

    def find(text: str) -> str:
        while root[text] != text:
            text = root[text]
        return text

    for text in texts:
        for other in index.like(text):
            low, high = sorted((find(text), find(other)), key=_name)
            root[high] = low
    return {text: None if text in forbidden else _name(find(text)) for text in texts}


def _minhash(text: str) -> Any:
    from datasketch import MinHash

    said = words(text)
    signature = MinHash(num_perm=PERMUTATIONS)
    for gram in {" ".join(said[i : i + 3]) for i in range(max(1, len(said) - 2))}:
        signature.update(gram.encode())
    return signature


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _name(text: str) -> str:
    """A prompt's hash. The lowest of a cluster names it, so its share never rises and what is held out stays so."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_turn(text: str) -> str:
    return text.rsplit("\x1f ", 1)[-1].strip()
