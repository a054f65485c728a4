import pytest

from core.detectors import PII, find_all, pii


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find_all(text, PII)]


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Write to jörg.müller+x@mail.example.org, please", "email", "jörg.müller+x@mail.example.org"),
        ("请联系john@example.com谢谢", "email", "john@example.com"),
        ("GB82 WEST 1234 5698 7654 32 is mine", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("de89370400440532013000", "iban", "de89370400440532013000"),
        ("pay 5 4111 1111 1111 1111 22 today", "card", "4111 1111 1111 1111"),
        ("378282246310005", "card", "378282246310005"),
        ("SSN 078-05-1121.", "ssn", "078-05-1121"),
        ("from 192.168.0.17, port 80", "ip", "192.168.0.17"),
        ("at 2001:db8::ff00:42:8329 now", "ip", "2001:db8::ff00:42:8329"),
        ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffa", "ip", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffa"),
        ("fe80::1%", "ip", "fe80::1"),
        ("call 0170-1234567 now", "phone", "0170-1234567"),
        ("call +33 1 23 45 67 89!", "phone", "+33 1 23 45 67 89"),
    ],
)
def test_found(text: str, kind: str, what: str) -> None:
    assert found(text) == [(kind, what)]


@pytest.mark.parametrize(
    "text",
    [
        "In 1999 it had 12 rooms, 3.5 baths and cost 250000.",
        "From 1998-2003 2004 and 1914-1918.",
        "It weighs 12.345.678 kg, or 1,234,567.89.",
        "On 2024-11-30 at 12:30:45 it was 20 °C.",
        "987-65-4320 is no such number",
        "std::vector<int> a::b; use 256.1.1.1",
        "@decorator, user@localhost, a @ b.c",
        "DIN EN12 is the norm for all of the windows that are built",
    ],
)
def test_not_found(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [("4111 1111 1111 1112", "card"), ("GB82 WEST 1234 5698 7654 33", "iban"), ("XX82 1234 5698 7654 32", "iban")],
)
def test_check_digits_count(text: str, kind: str) -> None:
    """What remains may still be taken for a phone number: too much is better than too little before a text is stored."""
    assert kind not in [kind for kind, _ in found(text)]


def test_kinds_are_chosen_by_name() -> None:
    assert [d.kind for d in pii(["ip", "email"])] == ["ip", "email"]
    with pytest.raises(KeyError, match="name"):
        pii(["name"])
