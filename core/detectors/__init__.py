"""Finds PII and secrets in texts, whole ones and, through `serving.guard`, ones that come in pieces.

In: a text and detectors. Out: spans, or the text with its finds replaced. The one place for such patterns: datasets are
redacted with it, and the guard looks with it at what is said.
"""

from core.detectors.detector import LOOK_BEHIND, Detector, Span, find_all, redact, undecided_from
from core.detectors.pii import PII, pii
from core.detectors.secrets import SECRETS

__all__ = ["LOOK_BEHIND", "PII", "SECRETS", "Detector", "Span", "find_all", "pii", "redact", "undecided_from"]
