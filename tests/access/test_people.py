"""Accounts and passwords."""

import time
from statistics import median

import pytest
from sqlalchemy.orm import Session

from access.people import check_password, create_person, get_or_create_scripted
from core.errors import Conflict, InvalidInput, Unauthenticated
from tests.factories import PASSWORD, make_person


def test_a_person_signs_in_with_their_password(session: Session) -> None:
    person = create_person(session, " ana ", PASSWORD, "annotator")
    assert person.login == "ana"
    assert person.password_hash is not None
    assert person.password_hash.startswith("$argon2id$")
    assert check_password(session, "ana", PASSWORD).id == person.id


@pytest.mark.parametrize(
    "password",
    ["short", "password", "password123!", "1234567890", "0987654321", "aaaaaaaaaaaa", "ababababab", "changeme1234",
     "you-will-never-guess", "bob-the-builder", "          ", "!!!!????....", "x" * 2000],
)  # fmt: skip
def test_easy_passwords_are_refused(session: Session, password: str) -> None:
    with pytest.raises(InvalidInput, match="password"):
        create_person(session, "bob-the-builder", password, "annotator")


def test_login_role_and_duplicates_are_checked(session: Session) -> None:
    with pytest.raises(InvalidInput, match="role"):
        create_person(session, "ana", PASSWORD, "king")
    for login in ("", "  ", "a" * 121, "a\nb"):
        with pytest.raises(InvalidInput, match="login"):
            create_person(session, login, PASSWORD, "annotator")
    create_person(session, "ana", PASSWORD, "lead")
    with pytest.raises(Conflict, match="taken"):
        create_person(session, "ana", PASSWORD, "annotator")


def test_wrong_unknown_inactive_and_scripted_get_the_same_words(session: Session) -> None:
    make_person(session, "ana")
    make_person(session, "gone", active=False)
    get_or_create_scripted(session, "script")
    words = set()
    for login, password in [("ana", "wrong password"), ("nobody", PASSWORD), ("gone", PASSWORD), ("script", PASSWORD)]:
        with pytest.raises(Unauthenticated) as caught:
            check_password(session, login, password)
        words.add(caught.value.message)
    assert len(words) == 1


def test_an_unknown_login_takes_as_long_as_a_wrong_password(session: Session) -> None:
    make_person(session, "ana")

    def seconds(login: str) -> float:
        start = time.perf_counter()
        with pytest.raises(Unauthenticated):
            check_password(session, login, "wrong password")
        return time.perf_counter() - start

    seconds("nobody")  # the decoy hash is made once
    known, unknown = [median(seconds(login) for _ in range(5)) for login in ("ana", "nobody")]
    assert unknown > known / 4  # without the decoy it is a thousandth


def test_scripted_people_are_made_once_and_never_shadow_real_ones(session: Session) -> None:
    first = get_or_create_scripted(session, "loop")
    assert first.scripted
    assert first.password_hash is None
    assert get_or_create_scripted(session, "loop").id == first.id
    make_person(session, "ana")
    with pytest.raises(Conflict, match="real person"):
        get_or_create_scripted(session, "ana")
