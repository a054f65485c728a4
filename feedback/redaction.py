"""Strips what plainly identifies people from texts before they are frozen into a dataset.

Patterns only: e-mail addresses, phone and card numbers, IP addresses. Names and places are not found.
"""

import re

PATTERNS = (
    ("EMAIL", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b")),
    ("IP", re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")),
    ("CARD", re.compile(r"\b\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{1,7}\b|\b\d{15,19}\b")),
    ("PHONE", re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,5}\b")),
)


def redact(text: str) -> tuple[str, int]:
    """The text with each find replaced by its kind in brackets, and how many there were."""
    total = 0
    for kind, pattern in PATTERNS:
        text, n = pattern.subn(f"[{kind}]", text)
        total += n
    return text, total
