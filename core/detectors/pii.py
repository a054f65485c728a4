"""What plainly identifies people: e-mail addresses, phone numbers, IBANs, payment cards, US social security numbers, IPs.

Patterns and checksums only: names, places and dates of birth are not found. Checksums and formats of numbers are
python-stdnum's; IP addresses are the standard library's.
"""

import ipaddress
import re

from stdnum import iban, luhn
from stdnum.us import ssn

from core.detectors.detector import Detector

_DIGITS = re.compile(r"\d+")
_LETTER = r"A-Za-z0-9\u00c0-\u024f"
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")


def _card(text: str) -> int:
    """The longest beginning of a row of digit groups that is a card number: 13 to 19 digits, Luhn, first digit 2 … 6."""
    ends = [m.end() for m in _DIGITS.finditer(text)]
    for end in reversed(ends):
        digits = re.sub(r"[ -]", "", text[:end])
        if 13 <= len(digits) <= 19 and luhn.is_valid(digits):
            return end
    return 0


def _iban(text: str) -> int:
    """The longest beginning that is an IBAN: its country's form and length, and mod 97. Source: ISO 13616."""
    for end in range(len(text), 14, -1):
        if text[end - 1] != " " and iban.is_valid(text[:end]):
            return end
    return 0


def _phone(text: str) -> int:
    """The longest beginning of 7 to 15 digits, but for what looks like years or has marks between its thousands."""
    groups, ends = [], []
    for match in _DIGITS.finditer(text):
        groups.append(match[0])
        ends.append(match.end())
    while ends and sum(map(len, groups)) > 15:
        groups.pop()
        ends.pop()
    if sum(map(len, groups)) < 7:
        return 0
    if text[0] not in "+(":
        if all(_YEAR.fullmatch(group) for group in groups):
            return 0
        if "." in text and len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:]):
            return 0
    return ends[-1]


def _ip(text: str) -> int:
    # "::" alone and "a::b" are code rather than addresses.
    if text.count(":") < 7 and ":" in text and not any(c.isdigit() for c in text):
        return 0
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text)


def _ssn(text: str) -> int:
    return len(text) if ssn.is_valid(text.replace(" ", "-")) else 0


EMAIL = Detector(
    "email",
    re.compile(rf"[{_LETTER}_.+%-]{{1,64}}@[{_LETTER}][{_LETTER}.-]{{0,126}}\.[A-Za-z\u00c0-\u024f]{{2,24}}"),
    longest=64 + 1 + 127 + 1 + 24 + 1,
)
PHONE = Detector(
    "phone",
    re.compile(
        r"(?<![\w.+-])(?:\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\d)"
        r"|(?:\(\d{2,5}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,5}(?![\w-]))"
    ),
    longest=54,
    opening=re.compile(r"[+(\d][\d ./()-]{0,52}\Z"),
    length=_phone,
)
IBAN = Detector(
    "iban",
    re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}"),
    longest=66,
    opening=re.compile(r"[A-Za-z]{1,2}\Z|[A-Za-z]{2}\d{1,2}(?: ?[A-Za-z0-9]){0,30} ?\Z"),
    length=_iban,
)
CARD = Detector(
    "card",
    re.compile(r"(?<![\w.])[2-6](?:[ -]?\d){12,18}(?!\d)"),
    longest=39,
    opening=re.compile(r"\d(?:[ -]?\d){0,18}[ -]?\Z"),
    length=_card,
)
SSN = Detector(
    "ssn",
    re.compile(r"(?<![\w-])\d{3}([ -])\d{2}\1\d{4}(?![\w-])"),
    longest=12,
    opening=re.compile(r"\d{1,3}(?:[ -](?:\d{1,2}(?:[ -]\d{0,4})?)?)?\Z"),
    length=_ssn,
)
IP = Detector(
    "ip",
    re.compile(
        r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|(?=[0-9A-Fa-f:]{0,4}:)[0-9A-Fa-f:]{6,39}(?![\w:]))",
    ),
    longest=41,
    length=_ip,
)

PII = (EMAIL, IBAN, CARD, SSN, IP, PHONE)
"""All kinds, in the order in which they are asked where two find the same."""

ALL_KINDS = tuple(detector.kind for detector in PII)


def pii(kinds: "tuple[str, ...] | list[str]" = ALL_KINDS) -> tuple[Detector, ...]:
    """The detectors of these kinds.

    Raises:
        KeyError: there is no such kind.
    """
    by_kind = {detector.kind: detector for detector in PII}
    return tuple(by_kind[kind] for kind in kinds)
