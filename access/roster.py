"""Who may change whom: lists of people, their roles, and whether they may come in. Every change is in the audit log.

A lead looks after annotators and reviewers, an admin after everybody. Nobody changes themselves, and the last admin
who can sign in stays one.
"""

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from access.audit import record
from access.models import ROLES, Person, SessionRecord
from access.sessions import end_sessions
from core.errors import Conflict, Forbidden, InvalidInput, NotFound
from core.language import gettext
from core.language import lazy_gettext as _l

GRANTS: dict[str, tuple[str, ...]] = {"lead": ("annotator", "reviewer"), "admin": ROLES}
"""Which roles somebody with a role may give and take; roles that are not named, none."""

PAGE = 50
ROLE_WORDS = {"annotator": _l("annotator"), "reviewer": _l("reviewer"), "lead": _l("lead"), "admin": _l("admin")}


class Actor(Protocol):
    """Who does it, as far as it matters here: a `SignedInPerson`, or a `Person`."""

    @property
    def id(self) -> int: ...
    @property
    def login(self) -> str: ...
    @property
    def role(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """One line of the list."""

    person: Person
    last_seen_at: dt.datetime | None


def role_word(role: str) -> str:
    """What a role is called."""
    return str(ROLE_WORDS.get(role, role))


def grantable(role: str) -> tuple[str, ...]:
    """The roles that somebody with this role may give."""
    return GRANTS.get(role, ())


def list_people(
    session: Session, *, search: str = "", role: str = "", active: bool | None = None, after: str = ""
) -> tuple[list[Row], str | None]:
    """A page of people by login, and the login that the next page goes on after, or None."""
    seen = select(func.max(SessionRecord.last_seen_at)).where(SessionRecord.person_id == Person.id).scalar_subquery()
    query = select(Person, seen).order_by(Person.login)
    if search:
        query = query.where(func.lower(Person.login).contains(search.lower(), autoescape=True))
    if role:
        query = query.where(Person.role == role)
    if active is not None:
        query = query.where(Person.active.is_(active))
    if after:
        query = query.where(Person.login > after)
    rows = [Row(person, at) for person, at in session.execute(query.limit(PAGE + 1))]
    return rows[:PAGE], rows[PAGE - 1].person.login if len(rows) > PAGE else None


def find_person(session: Session, person_id: int) -> Person:
    """The person of this id.

    Raises:
        NotFound: there is none.
    """
    person = session.get(Person, person_id)
    if person is None:
        raise NotFound(gettext("there is no person %(person_id)s", person_id=person_id))
    return person


def why_not(actor: Actor, person: Person) -> str | None:
    """Why somebody may not change a person; None if they may."""
    if person.id == actor.id:
        return gettext("nobody changes their own role or access; ask another lead or admin")
    if person.tenant_id is not None:
        return gettext("this is the account of a tenant's keys; it is looked after on the page of the tenant")
    if person.role not in grantable(actor.role):
        return gettext("a person with the role %(role)s is looked after by admins", role=role_word(person.role))
    return None


def changeable(session: Session, actor: Actor, person_id: int) -> Person:
    """The person, if the actor may change them. Where the database has row locks, theirs, the actor's and all admins'
    are taken in order: of two admins who remove each other one comes second, does not deadlock, and is an admin no more.

    Raises:
        NotFound: there is none.
        Forbidden: it is themselves, the role is above what they look after, or the actor has lost their own meanwhile.
    """
    concerned = or_(Person.role == "admin", Person.id.in_((actor.id, person_id)))
    locked = select(Person.id, Person.role, Person.active).where(concerned).order_by(Person.id).with_for_update()
    roles = {id_: role for id_, role, active in session.execute(locked) if active}
    person = session.get(Person, person_id, populate_existing=True)
    if person is None:
        raise NotFound(gettext("there is no person %(person_id)s", person_id=person_id))
    if roles.get(actor.id) != actor.role:
        raise Forbidden(gettext("your own role was changed just now; nothing was done"))
    if reason := why_not(actor, person):
        raise Forbidden(reason)
    return person


def change_role(session: Session, actor: Actor, person_id: int, role: str) -> Person:
    """Give a person another role.

    Raises:
        InvalidInput: there is no such role.
        Forbidden: the actor may not change this person, or not give this role.
        Conflict: it would take the last admin away.
    """
    if role not in ROLES:
        raise InvalidInput(
            gettext("role %(role)r is unknown; it is one of %(choices)s", role=role, choices=", ".join(ROLES)),
            param="role",
        )
    person = changeable(session, actor, person_id)
    if role not in grantable(actor.role):
        raise Forbidden(gettext("the role %(role)s is given by admins", role=role_word(role)))
    set_role(session, actor.login, person, role)
    return person


def set_role(session: Session, actor: str, person: Person, role: str) -> None:
    """Set a role, whoever asks; the same role again changes nothing.

    Raises:
        Conflict: it would take the last admin away.
    """
    if person.role == role:
        return
    refuse_last_admin(session, person)
    record(session, actor, "person.role", f"person:{person.id}", {"role": person.role}, {"role": role})
    person.role = role
    session.flush()


def set_active(session: Session, actor: Actor, person_id: int, active: bool) -> Person:
    """Let a person in again, or shut them out: at once, with all their sessions and keys.

    Raises:
        Forbidden: the actor may not change this person.
        Conflict: they are the last admin.
    """
    person = changeable(session, actor, person_id)
    if person.active == active:
        return person
    if not active:
        refuse_last_admin(session, person)
        end_sessions(session, person.id)
    action = "person.activate" if active else "person.deactivate"
    record(session, actor.login, action, f"person:{person.id}", {"active": person.active}, {"active": active})
    person.active = active
    session.flush()
    return person


def end_all_sessions(session: Session, actor: Actor, person_id: int) -> int:
    """Sign a person out of every browser.

    Returns:
        How many sessions were ended.

    Raises:
        Forbidden: the actor may not change this person.
    """
    person = changeable(session, actor, person_id)
    n = end_sessions(session, person.id)
    record(session, actor.login, "session.end", f"person:{person.id}", after={"ended": n})
    return n


def refuse_last_admin(session: Session, person: Person) -> None:
    """Raise Conflict where this person is the only admin who can sign in."""
    if person.role != "admin" or not person.active or person.scripted:
        return
    query = select(Person.id).where(Person.role == "admin", Person.active.is_(True), Person.scripted.is_(False))
    if session.scalars(query.order_by(Person.id).with_for_update()).all() == [person.id]:
        raise Conflict(gettext("%(login)s is the last admin; make another one first", login=person.login))
