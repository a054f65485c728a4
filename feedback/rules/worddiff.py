"""A word diff: what was taken out of a text and what was put in. The page's worddiff.js does the same while one types."""

import re
from difflib import SequenceMatcher
from typing import Literal

Run = tuple[Literal["same", "del", "ins"], str]

# Each word with the space before it; Han and kana have no spaces between words, so there each sign is one.
WORDS = re.compile(r"\s*[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\s*[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|\s+")
MAX_PAIRS = 250_000  # of words to compare; texts that differ in more are shown as replaced


def word_diff(before: str, after: str) -> list[Run]:
    """Runs that make `before` without the "ins" ones and `after` without the "del" ones; neighbours differ in kind."""
    a, b = WORDS.findall(before), WORDS.findall(after)
    start = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest = min(len(a), len(b)) - start
    ends = zip(reversed(a), reversed(b), strict=False)
    end = next((n for n, (x, y) in enumerate(ends) if x != y or n == rest), rest)
    head, tail = a[:start], a[len(a) - end :]
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    runs: list[Run] = [("same", "".join(head))]
    if len(a) * len(b) > MAX_PAIRS:
        runs += [("del", "".join(a)), ("ins", "".join(b))]
    else:
        for kind, i, i2, j, j2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            if kind == "equal":
                runs.append(("same", "".join(a[i:i2])))
            else:
                runs += [("del", "".join(a[i:i2])), ("ins", "".join(b[j:j2]))]
    return _joined([*runs, ("same", "".join(tail))])


def _joined(runs: list[Run]) -> list[Run]:
    joined: list[Run] = []
    for kind, text in runs:
        if text and joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        elif text:
            joined.append((kind, text))
    return joined
