"""Quoted words, found again in the text that they were taken from."""

import re
from collections.abc import Iterable


def mark_quotes(text: str, quotes: Iterable[str]) -> tuple[list[tuple[bool, str]], list[str]]:
    """The text in runs, each with whether it is quoted, and the quotes that are not in it.

    Every place where a quote occurs is marked; the space between its words may be any space. Quotes may overlap.
    """
    spans, missing = [], []
    for quote in quotes:
        words = quote.split()
        found = [m.span() for m in re.finditer(r"\s+".join(map(re.escape, words)), text)] if words else []
        if words and not found:
            missing.append(quote)
        spans += found
    runs, at = [], 0
    for start, end in sorted(spans):
        if start > at:
            runs.append((False, text[at:start]))
        if end > at:
            runs.append((True, text[max(start, at) : end]))
            at = end
    if at < len(text):
        runs.append((False, text[at:]))
    return runs, missing
