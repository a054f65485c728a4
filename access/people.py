"""People: making accounts and checking passwords. Passwords are kept as argon2id hashes only."""

from dataclasses import dataclass
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import bindparam, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.models import ROLES, Person
from access.names import checked_login, folded, key_of
from core.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from core.language import gettext

MIN_PASSWORD_LENGTH = 10
MAX_PASSWORD_LENGTH = 1024  # argon2 would hash megabytes; nobody types them
OBVIOUS_PASSWORDS = {
    "password", "passwort", "letmein", "welcome", "changeme", "change-me", "qwertyuiop", "qwerty", "iloveyou",
    "administrator", "admin", "dunnock", "secret", "default", "abcdefghij", "you-will-never-guess",
}  # fmt: skip

_hasher = PasswordHasher()


def hash_password(password: str) -> str:
    """The argon2id hash that is stored for a password."""
    return _hasher.hash(password)


def create_person(session: Session, login: str, password: str, role: str, scripted: bool = False) -> Person:
    """Add a person who signs in with a password.

    Raises:
        InvalidInput: the login will not do (`access.names.checked_login`), the role unknown, or the password too easy.
        Conflict: the login is taken.
    """
    login = checked_login(login, scripted=scripted)
    if role not in ROLES:
        raise InvalidInput(
            gettext("role %(role)r is unknown; it is one of %(choices)s", role=role, choices=", ".join(ROLES)),
            param="role",
        )
    _refuse_easy(password, login)
    if find_login(session, login) is not None:
        raise Conflict(gettext("the login %(login)r is taken; choose another one", login=login))
    person = Person(login=login, password_hash=hash_password(password), role=role, scripted=scripted)
    session.add(person)
    try:
        session.flush()
    except IntegrityError as error:  # somebody else took it just now
        raise Conflict(gettext("the login %(login)r is taken; choose another one", login=login)) from error
    return person


def set_password(person: Person, password: str) -> None:
    """Give a person a new password; sessions that were opened with the old one no longer open anything.

    Raises:
        InvalidInput: it is too easy, too short or too long.
    """
    _refuse_easy(password, person.login)
    person.password_hash = hash_password(password)


def check_password(session: Session, login: str, password: str) -> Person:
    """The active person whose login and password these are.

    An unknown login costs a hash verification too, so that the answer's time does not tell who has an account.

    Raises:
        Unauthenticated: always with the same words, whatever was wrong.
    """
    person = find_login(session, login)
    stored = person.password_hash if person is not None else None
    matches = _verify(stored or _decoy_hash(), password[: MAX_PASSWORD_LENGTH + 1])
    if person is None or stored is None or not matches or not person.active:
        raise Unauthenticated(
            gettext("the login or the password is not right; capitals count in the password"), code="wrong_password"
        )
    return person


def find_login(session: Session, login: str) -> Person | None:
    """Who has this login, or one that is the same but for capitals; of both, who spells it so."""
    login = login.strip()
    query = select(Person).where(or_(Person.login == login, Person.login_key == (key_of(login) or login)))
    found = session.scalars(query).all()
    return next((person for person in found if person.login == login), found[0] if found else None)


def get_or_create_scripted(session: Session, login: str) -> Person:
    """The scripted person of this login, made if missing: it cannot sign in and its judgments are simulated.

    Raises:
        Conflict: a real person has this login.
    """
    login = checked_login(login, scripted=True)
    person = find_login(session, login)
    if person is None:
        person = Person(login=login, password_hash=None, role="annotator", scripted=True)
        session.add(person)
        session.flush()
    if not person.scripted:
        raise Conflict(
            gettext("%(login)r is a real person's login; scripted judgments need a login of their own", login=login)
        )
    return person


@dataclass(frozen=True)
class LockedPerson:
    """A person as far as their acts need to know them, their row held by this transaction where the database has such locks."""

    id: int
    login: str
    role: str
    scripted: bool


_LOCK = (
    select(Person.id, Person.login, Person.role, Person.scripted)
    .where(Person.id == bindparam("who"))
    .with_for_update(key_share=True)
)


def lock_person(session: Session, person_id: int) -> LockedPerson:
    """The person, locked on PostgreSQL: two tabs of one person act one after the other.

    Raises:
        NotFound: no such person.
    """
    row = session.connection().execute(_LOCK, {"who": person_id}).one_or_none()
    if row is None:
        raise NotFound(gettext("there is no person %(person_id)s", person_id=person_id))
    return LockedPerson(*row)


def _refuse_easy(password: str, login: str) -> None:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidInput(
            gettext(
                "the password has %(n)s characters; it needs %(least)s to %(most)s",
                n=len(password),
                least=MIN_PASSWORD_LENGTH,
                most=MAX_PASSWORD_LENGTH,
            ),
            param="password",
        )
    plain = password.lower()
    bare = plain.strip("0123456789!?.*#$@_- ")
    repeated = len(set(plain)) < 4
    counted = plain in "01234567890123456789" or plain in "98765432109876543210"
    if (
        repeated
        or counted
        or not bare
        or bare in OBVIOUS_PASSWORDS
        or plain in OBVIOUS_PASSWORDS
        or bare in (login.lower(), folded(login))
    ):
        raise InvalidInput(
            gettext("this password is easy to guess; a few unrelated words make a good one"), param="password"
        )


def _verify(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


@lru_cache(maxsize=1)
def _decoy_hash() -> str:
    return hash_password("nobody has this password")
