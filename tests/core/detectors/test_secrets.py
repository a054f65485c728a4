import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from access.keys import create_key
from core.detectors import PII, SECRETS, find_all
from evals import suites
from feedback.webhooks.signing import new_secret
from tests.core.detectors import planted
from tests.factories import make_person


def kinds(text: str) -> list[str]:
    return [span.kind for span in find_all(text, SECRETS)]


WITHOUT_BOUNDARY = ["aws_access_key", "github_token", "gitlab_token", "google_api_key", "stripe_key", "webhook_secret"]


@pytest.mark.parametrize("kind", WITHOUT_BOUNDARY)
@settings(deadline=None)
@given(st.data())
def test_a_telling_beginning_is_found_within_a_word(kind: str, data: st.DataObject) -> None:
    assert kind in kinds("x" + data.draw(planted.SECRETS[kind]))


@pytest.mark.parametrize(
    "text",
    [
        "I forgot my password: what can I do about it?",
        "password = your_password_here",
        "The token is refreshed every 30 minutes and the secret is safe.",
        "api_key = os.environ['API_KEY_2']",
        "password: ${DB_PASSWORD_1}",
        "He is the bearer of bad news, a Bearer of responsibilities.",
        "task-force, disk-usage and sk-learn-like-hyphenated-words",
        "-----BEGIN CERTIFICATE-----",
        "https://example.org:8080/path and http://user@example.org",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_not_found(text: str) -> None:
    assert kinds(text) == []


def test_our_own_secrets_are_found_by_their_form(session: Session) -> None:
    person = make_person(session)
    for n in range(20):
        _, key = create_key(session, person, f"key {n}")
        assert kinds(f"use {key}.") == ["dunnock_key"]
        assert kinds(f"use {new_secret()}.") == ["webhook_secret"]


def test_no_false_find_in_the_benign_suite() -> None:
    """528 requests and their references: nobody's PII and no secret stands there."""
    prompts = [*suites.benign("seed"), *suites.benign("frozen")]
    texts = [text for p in prompts for text in (p.text, p.reference or "")]
    assert len(texts) == 2 * 528
    assert [text for text in texts if find_all(text, (*SECRETS, *PII))] == []
