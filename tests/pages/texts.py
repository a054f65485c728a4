"""Texts for every field that people fill in, harmless or hostile; each says which field it stands in: «rule.title: …».

A page is safe when it has the same elements with both, and when whatever stands between « and » reorders nothing else.
"""

import itertools

from core.messages import plain_text
from tests.hostile import HOSTILE

POLYGLOT = "'\"></b></textarea></title><svg/onload=window.hit=9>\u2069\u202e"
"""Markup and bidi signs for fields in which nothing longer fits."""

EVERYTHING = plain_text(" ".join(HOSTILE.values()))
SHORTER = plain_text(" ".join(text for name, text in HOSTILE.items() if name != "one long word"))
FORMATTED = """

# Heading

1. **bold** and `code`
2. [link](javascript:window.hit=10) <img src=x onerror="window.hit=11"> ![picture](http://example.org/x.png)

| left | right |
| :--- | ----: |
| a    | b     |

```<script>window.hit=12</script>" onload="
pre </code></pre><svg/onload=window.hit=13>
```

"""
"""Markdown, of which the pages show some as such."""


class Texts:
    """Gives every field its text and remembers the fields."""

    def __init__(self, hostile: bool) -> None:
        self.hostile = hostile
        self.fields: set[str] = set()

    def __call__(self, field: str, limit: int = 100_000, tail: object = "") -> str:
        """The text of a field; `tail` tells those of one field apart and sorts them. Where the limit is small it is one line."""
        self.fields.add(field)
        payloads = [EVERYTHING, SHORTER, POLYGLOT, ""] if self.hostile else ["Quiet words", ""]
        for payload in payloads:
            text = f"«{field}: {' '.join(filter(None, (str(tail), payload)))}»"
            if len(text) <= limit:
                return text
        raise ValueError(f"no text for {field} fits into {limit} characters")

    def one(self, field: str, name: str, limit: int) -> str:
        """One text of the corpus by its name, in one line, cut to fit."""
        self.fields.add(field)
        text = " ".join(plain_text(HOSTILE[name]).split()) if self.hostile else "Quiet words"
        return f"«{field}: {name} {text[: limit - len(field) - len(name) - 5]}»"

    def formatted(self, field: str, tail: object) -> str:
        """A text in Markdown."""
        self.fields.add(field)
        return f"«{field}: {tail} {EVERYTHING if self.hostile else 'Quiet words'}{FORMATTED}»"


class Formulas(Texts):
    """The same for spreadsheets: every text begins as a formula does."""

    def __init__(self) -> None:
        super().__init__(hostile=False)
        self._starts = itertools.cycle(["=", "+", "-", "@", "\t=", "\r="])

    def __call__(self, field: str, limit: int = 100_000, tail: object = "") -> str:
        return f"{next(self._starts)}{super().__call__(field, limit - 2, tail)}"

    def one(self, field: str, name: str, limit: int) -> str:
        return f"={super().one(field, name, limit - 1)}"
