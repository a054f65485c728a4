"""Secrets that stand in texts by their look: keys of well-known services, tokens, private keys, passwords beside their name.

A key with a fixed beginning is found by that beginning and its alphabet, in the middle of a word too. What has none is found
only beside a word like "password" and only if it looks drawn at random. Forms are those that the services document.
"""

import math
import re
from collections import Counter
from collections.abc import Callable

from core.detectors.detector import Detector, beginnings

ENTROPY_BITS = 3.0
"""Least Shannon entropy of a value per character that counts as drawn: words are at 2 to 3, twelve drawn characters at 3.3."""

_NAME = (
    r"(?:pass(?:word|wd|phrase|wort)|kennwort|pwd|secret|token|credential"
    r"|(?:api|access|private|auth|account|encryption)[_-]?key)"
)
_NAMES = (
    "password", "passwd", "passphrase", "passwort", "kennwort", "pwd", "secret", "token", "credential",
    *(f"{of}{tie}key" for of in ("api", "access", "private", "auth", "account", "encryption") for tie in ("", "_", "-")),
)  # fmt: skip
"""All that `_NAME` matches, but for those that begin with another one."""
_TO = r"[\"'`*]{0,2}[ \t]{0,3}(?:=>|:=|==|=|:|is\b|ist\b|lautet\b)[ \t]{0,3}[\"'`*]{0,3}"
_VALUE = r"[^\s\"'`,;<>(){}\[\]]"
_ASSIGNED = re.compile(rf"{_NAME}\w{{0,20}}{_TO}", re.IGNORECASE)


def entropy(text: str) -> float:
    """Shannon entropy of its characters, bits per character."""
    n = len(text)
    return -sum(k / n * math.log2(k / n) for k in Counter(text).values()) if n else 0.0


def _drawn(value: str) -> bool:
    """Whether a value looks drawn at random and not written: letters and digits in it, and enough entropy."""
    return (
        any(c.isdigit() for c in value)
        and any(c.isalpha() for c in value)
        and entropy(value) >= ENTROPY_BITS
        and "$" not in value[:1]
    )


def _assignment(text: str) -> int:
    name = _ASSIGNED.match(text)
    return len(text) if name and _drawn(text[name.end() :].rstrip(".!?*")) else 0


def _bearer(text: str) -> int:
    return len(text) if _drawn(text.rsplit(maxsplit=1)[-1]) else 0


def _mixed(text: str) -> int:
    # "sk-learn-like-hyphenated-words" has no digit.
    return len(text) if any(c.isdigit() for c in text) else 0


def _url(text: str) -> int:
    return 0 if "${" in text or "<" in text else len(text)


_REST = re.compile(r"[A-Za-z0-9_+/=-]*")


_BEGINNINGS = (
    "AKIA", "ASIA", *(f"gh{c}_" for c in "pousr"), "github_pat_",
    *(f"gl{kind}-" for kind in ("pat", "dt", "rt", "ptt", "ft", "imt", "agent", "oas", "soat", "ffct", "cbt")),
    *(f"xox{c}-" for c in "abeoprs"), "xapp-", "hooks.slack.com/services/", "hooks.slack.com/workflows/", "sk-", "AIza", "GOCSPX-", "ya29.",
    *(f"{c}k_{mode}_" for c in "sr" for mode in ("live", "test")), "whsec_", "dk-", "hf_", "npm_", "pypi-AgE",
)  # fmt: skip
_OPENING = re.compile(rf"(?:{beginnings(_BEGINNINGS)})\Z|(?:{'|'.join(map(re.escape, _BEGINNINGS))})[!-~]{{0,212}}\Z")
"""One for all keys, so that a text is searched once for them."""


def _key(kind: str, pattern: str, longest: int, length: Callable[[str], int] = len) -> Detector:
    return Detector(kind, re.compile(pattern, re.ASCII), longest, _OPENING, length=length, rest=_REST)


JWT = Detector(
    "jwt",
    re.compile(r"eyJ[\w-]{8,512}\.eyJ[\w-]{8,512}", re.ASCII),
    longest=3 + 512 + 1 + 3 + 512,
    opening=re.compile(
        r"ey?\Z|eyJ[\w-]{0,512}\Z|eyJ[\w-]{8,512}\.(?:e(?:y(?:J[\w-]{0,512})?)?)?\Z",
        re.ASCII,
    ),
    rest=re.compile(r"[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?"),
)
PRIVATE_KEY = Detector(
    "private_key",
    re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    longest=5 + 6 + 39 + 11 + 6 + 5,
    rest=re.compile(r"[\s\S]{0,20000}?-----END [A-Z0-9 ]{1,60}-----|[A-Za-z0-9+/=:,\s-]*"),
    opening=re.compile(r"-{1,5}\Z|-----B?E?G?I?N?\Z|-----BEGIN [A-Z0-9 ]{0,56}-{0,5}\Z"),
)
BEARER = Detector(
    "bearer_token",
    re.compile(r"\bBearer[ \t]{1,3}[\w.~+/-]{16,200}={0,2}", re.ASCII | re.IGNORECASE),
    longest=6 + 3 + 200 + 2 + 1,
    opening=re.compile(
        r"b(?:e(?:a(?:r(?:e(?:r(?:[ \t]{1,3}[\w.~+/-]{0,200}={0,2})?)?)?)?)?)?\Z", re.ASCII | re.IGNORECASE
    ),
    length=_bearer,
    rest=_REST,
)
PASSWORD = Detector(
    "password",
    re.compile(rf"{_NAME}\w{{0,20}}{_TO}{_VALUE}{{8,128}}", re.IGNORECASE),
    longest=10 + 4 + 20 + 2 + 3 + 6 + 3 + 3 + 128 + 1,
    opening=re.compile(
        rf"(?:{beginnings(_NAMES)})\Z|{_NAME}\w{{0,20}}[\"'`*]{{0,2}}[ \t]{{0,3}}"
        rf"(?:(?:[:=]{{1,2}}|=>|i|is|ist|l|la|lau|laut|laute|lautet)(?:[ \t]{{0,3}}[\"'`*]{{0,3}}{_VALUE}{{0,128}})?)?\Z",
        re.IGNORECASE,
    ),
    length=_assignment,
    rest=re.compile(rf"{_VALUE}*"),
)

SECRETS = (
    _key("aws_access_key", r"(?:AKIA|ASIA)[A-Z0-9]{16}", 20),
    _key("github_token", r"gh[pousr]_[A-Za-z0-9]{36,200}|github_pat_[A-Za-z0-9_]{22,200}", 212),
    _key("gitlab_token", r"gl(?:pat|dt|rt|ptt|ft|imt|agent|oas|soat|ffct|cbt)-[\w-]{20,200}", 209),
    _key("slack_token", r"xox[abeoprs]-[A-Za-z0-9-]{10,200}|xapp-\d-[A-Za-z0-9-]{10,200}", 208),
    _key("slack_webhook", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{20,120}", 152),
    _key("model_api_key", r"(?<![A-Za-z0-9])sk-[\w-]{20,200}", 204, _mixed),
    _key("google_api_key", r"AIza[A-Za-z0-9_-]{35}", 39),
    _key("google_oauth", r"GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{20,200}", 206),
    _key("stripe_key", r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,200}", 208),
    _key("webhook_secret", r"whsec_[A-Za-z0-9+/]{24,200}={0,2}", 209),
    _key("dunnock_key", r"(?<![A-Za-z0-9_-])dk-[A-Za-z0-9_-]{43}", 46),
    _key("hugging_face_token", r"hf_[A-Za-z0-9]{34}", 37),
    _key("npm_token", r"npm_[A-Za-z0-9]{36}", 40),
    _key("pypi_token", r"pypi-AgE[A-Za-z0-9_-]{40,200}", 209),
    Detector(
        "url_password",
        # From where the scheme ends: any word could be one, and none could be shown before the next had come.
        re.compile(r"://[^\s:/@]{1,64}:[^\s/@]{3,64}@", re.ASCII),
        longest=133,
        opening=re.compile(r":/?\Z|://[^\s/@]{0,130}\Z", re.ASCII),
        length=_url,
    ),
    JWT,
    PRIVATE_KEY,
    BEARER,
    PASSWORD,
)
"""All kinds, the telling ones first: a key beside the word "token" is named by its service."""
