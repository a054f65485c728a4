import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.detectors import PII, SECRETS, Detector, Span, find_all, redact
from core.detectors.detector import undecided_from
from tests.core.detectors import planted

ALL = (*SECRETS, *PII)
each = pytest.mark.parametrize("detector", ALL, ids=lambda d: d.kind)
things = {**planted.SECRETS, **planted.PII}


def test_every_kind_is_planted_in_tests() -> None:
    assert set(things) == {detector.kind for detector in ALL}
    assert len({detector.kind for detector in ALL}) == len(ALL)


@each
@settings(deadline=None)
@given(st.data())
def test_what_is_planted_is_found_where_it_begins(detector: Detector, data: st.DataObject) -> None:
    thing = data.draw(things[detector.kind])
    text = f"Here: {thing} and so on."
    spans = list(detector.find(text))
    assert [span.kind for span in spans[:1]] == [detector.kind]
    assert spans[0].start == text.index(thing)


@each
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_is_decided_stays_decided(detector: Detector, data: st.DataObject) -> None:
    """What begins before `undecided_from` is found alike with and without the rest of the text, at every place."""
    thing = data.draw(things[detector.kind])
    text = data.draw(planted.prose(3)) + data.draw(st.sampled_from(["", " "])) + thing + data.draw(planted.prose(2))
    whole = set(detector.find(text))
    for n in range(len(text) + 1):
        end = undecided_from(detector.opening, detector.longest, text[:n], 0)
        assert {span for span in whole if span.start < end} == set(detector.find(text[:n], 0, end))


@each
@settings(deadline=None)
@given(st.data())
def test_no_match_is_longer_than_the_longest(detector: Detector, data: st.DataObject) -> None:
    text = data.draw(planted.prose(2)) + data.draw(things[detector.kind]) * data.draw(st.integers(1, 3))
    assert all(span.end - span.start <= detector.longest for span in detector.find(text))


def test_redaction_says_where_the_finds_stood() -> None:
    text = "Mail jo@example.org or call +49 170 1234567."
    redacted, spans = redact(text, PII)
    assert redacted == "Mail [EMAIL] or call [PHONE]."
    assert [text[s.start : s.end] for s in spans] == ["jo@example.org", "+49 170 1234567"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(planted.LURES) | planted.PII["email"] | planted.PII["card"] | st.just(" "), max_size=8))
def test_redaction_keeps_the_rest_and_leaves_nothing(bits: list[str]) -> None:
    text = " ".join(bits)
    redacted, spans = redact(text, PII)
    at, rebuilt = 0, ""
    for span in spans:
        assert span.start >= at
        rebuilt += text[at : span.start] + f"[{span.kind.upper()}]"
        at = span.end
    assert redacted == rebuilt + text[at:]


def test_what_is_longer_than_the_longest_is_redacted_as_a_whole() -> None:
    body = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 2] * 30)
    pem = f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"
    torn = f"-----BEGIN RSA PRIVATE KEY-----\n{body}"
    jwt = f"eyJ{'a1' * 100}.eyJ{'b2' * 2000}.{'c3' * 40}"
    token = "ghp_" + "Q7x" * 200
    for secret, kind in ((pem, "PRIVATE_KEY"), (torn, "PRIVATE_KEY"), (jwt, "JWT"), (token, "GITHUB_TOKEN")):
        redacted, (span,) = redact(f"Look: {secret}", SECRETS)
        assert redacted == f"Look: [{kind}]"
        assert (span.start, span.end) == (6, 6 + len(secret))
    assert redact(f"{pem}\nIt is mine.", SECRETS)[0] == "[PRIVATE_KEY]\nIt is mine."


@each
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_nothing_of_what_is_planted_is_left(detector: Detector, data: st.DataObject) -> None:
    thing = data.draw(things[detector.kind])
    redacted, spans = redact(f"Here: {thing}", ALL)
    assert spans[0].start == 6
    if detector.kind not in ("url_password", "private_key", "slack_webhook"):
        assert redacted.startswith("Here: [")
        assert len(redacted) <= len("Here: [] ") + 30


def test_of_overlapping_finds_the_first_and_longer_stays() -> None:
    (span,) = find_all("see postgresql://jo:x7Qm2LpR9vKd@db.example/x", (*SECRETS, *PII))
    assert span == Span("url_password", 14, 33)
