"""Links that let somebody in once: invitations for new people, and reset links for those who need a new password.

Made by a lead or an admin for a role that they may give; shown once, kept as a sha256; good until used, revoked or
expired, and only as long as whoever made it could still make it.
"""

import datetime as dt
import hashlib
import secrets
from typing import cast

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from access.audit import record
from access.keys import revoke_keys
from access.linked import unlink_all
from access.models import ROLES, Invitation, Person
from access.people import create_person, set_password
from access.roster import Actor, changeable, grantable, role_word
from access.sessions import end_sessions
from core.db import utcnow
from core.errors import Conflict, Forbidden, InvalidInput, NotFound
from core.language import gettext

PAGE = 50
MAX_NOTE = 200


def invite(session: Session, actor: Actor, role: str, note: str, life_s: int) -> tuple[Invitation, str]:
    """Make an invitation for somebody new.

    Returns:
        The row and the token of its link, which is not stored and cannot be shown again.

    Raises:
        InvalidInput: there is no such role.
        Forbidden: it is not theirs to give.
    """
    if role not in ROLES:
        raise InvalidInput(
            gettext("role %(role)r is unknown; it is one of %(choices)s", role=role, choices=", ".join(ROLES)),
            param="role",
        )
    if role not in grantable(actor.role):
        raise Forbidden(gettext("the role %(role)s is given by admins", role=role_word(role)))
    row, token = _add(session, actor, life_s, role=role, note=note.strip()[:MAX_NOTE])
    after = {"role": role} | ({"note": row.note} if row.note else {})
    record(session, actor.login, "invitation.make", f"invitation:{row.id}", after=after)
    return row, token


def make_reset(session: Session, actor: Actor, person_id: int, life_s: int) -> tuple[Invitation, str]:
    """Make a link with which a person sets a new password; earlier ones of theirs stop working. Nothing else changes
    until it is used.

    Raises:
        Forbidden: the actor may not change this person.
        Conflict: the person may not come in, or is a script.
    """
    person = changeable(session, actor, person_id)
    if person.scripted or not person.active:
        raise Conflict(gettext("%(login)s cannot sign in; activate the account first", login=person.login))
    now = utcnow()
    session.execute(
        update(Invitation)
        .where(Invitation.person_id == person.id, Invitation.used_at.is_(None), Invitation.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    row, token = _add(session, actor, life_s, person_id=person.id)
    record(session, actor.login, "person.reset_link", f"person:{person.id}", after={"invitation": row.id})
    return row, token


def find_open(session: Session, token: str) -> Invitation:
    """The invitation of a link that still works.

    Raises:
        NotFound: unknown, used, revoked or expired, or made by somebody who may no longer make it: all alike.
    """
    row = session.scalar(select(Invitation).where(Invitation.token_sha256 == _sha256(token)))
    if row is None:
        raise _void()
    return check_open(session, row.id)


def check_open(session: Session, invitation_id: int) -> Invitation:
    """As `find_open`, by its id."""
    row = session.get_one(Invitation, invitation_id)
    maker = session.get_one(Person, row.made_by_id)
    person = session.get_one(Person, row.person_id) if row.person_id is not None else None
    shut_out = not maker.active or (person is not None and not person.active)
    if state_of(row) != "open" or shut_out or (person or row).role not in grantable(maker.role):
        raise _void()
    return row


def accept(session: Session, row: Invitation, login: str, password: str) -> Person:
    """Use a link with a password: a new person, or a new password for the one it is for, whose sessions and keys all end and
    whose identities at a provider are unlinked.

    Raises:
        InvalidInput: the login or the password will not do.
        Conflict: the login is taken.
        NotFound: somebody else used the link first.
    """
    if row.person_id is not None:
        person = session.get_one(Person, row.person_id)
        set_password(person, password)
        after = {"by": f"invitation:{row.id}", "ended": end_sessions(session, person.id)}
        # Somebody else may have had the old password, and with it have made keys or linked an identity of theirs.
        after["keys"] = revoke_keys(session, person.login, person.id)
        after["identities"] = unlink_all(session, person)
        record(session, person.login, "person.password", f"person:{person.id}", after=after)
    else:
        person = create_person(session, login, password, role_of(row))
        record(session, person.login, "person.add", f"person:{person.id}", after={"role": person.role})
    use(session, row, person)
    return person


def use(session: Session, row: Invitation, person: Person) -> None:
    """Mark a link as used; of two at once one gets through.

    Raises:
        NotFound: it is used, revoked or expired by now.
    """
    now = utcnow()
    claimed = session.execute(
        update(Invitation)
        .where(
            Invitation.id == row.id,
            Invitation.used_at.is_(None),
            Invitation.revoked_at.is_(None),
            Invitation.expires_at > now,
        )
        .values(used_at=now, used_by_id=person.id)
    )
    if cast("CursorResult[tuple[()]]", claimed).rowcount != 1:
        raise _void()
    record(session, person.login, "invitation.accept", f"invitation:{row.id}", after={"person": person.id})


def revoke(session: Session, actor: Actor, invitation_id: int) -> Invitation:
    """Make a link void; one that is over already stays as it is.

    Raises:
        NotFound: there is none.
        Forbidden: it is for a role that the actor does not look after.
    """
    row = session.scalar(select(Invitation).where(Invitation.id == invitation_id).with_for_update())
    if row is None:
        raise NotFound(gettext("there is no invitation %(invitation_id)s", invitation_id=invitation_id))
    role = row.role or session.get_one(Person, row.person_id).role
    if role not in grantable(actor.role):
        raise Forbidden(gettext("an invitation for the role %(role)s is looked after by admins", role=role_word(role)))
    if state_of(row) == "open":
        row.revoked_at = utcnow()
        record(session, actor.login, "invitation.revoke", f"invitation:{row.id}")
        session.flush()
    return row


def list_invitations(session: Session, before: int | None = None) -> tuple[list[tuple[Invitation, str]], int | None]:
    """A page of links with who made each, newest first, and the id that the next page goes on before, or None."""
    query = select(Invitation, Person.login).join(Person, Person.id == Invitation.made_by_id)
    if before is not None:
        query = query.where(Invitation.id < before)
    rows = [(row, maker) for row, maker in session.execute(query.order_by(Invitation.id.desc()).limit(PAGE + 1))]
    return rows[:PAGE], rows[PAGE - 1][0].id if len(rows) > PAGE else None


def invitations_after(session: Session, after: int, limit: int) -> tuple[list[tuple[Invitation, str]], int | None]:
    """As `list_invitations`, oldest first, and the id that the next page goes on after, or None."""
    query = select(Invitation, Person.login).join(Person, Person.id == Invitation.made_by_id)
    query = query.where(Invitation.id > after).order_by(Invitation.id).limit(limit + 1)
    rows = [(row, maker) for row, maker in session.execute(query)]
    return rows[:limit], rows[limit - 1][0].id if len(rows) > limit else None


def state_of(row: Invitation) -> str:
    """ "open", "used", "revoked" or "expired"."""
    if row.used_at is not None:
        return "used"
    if row.revoked_at is not None:
        return "revoked"
    return "open" if row.expires_at > utcnow() else "expired"


def role_of(row: Invitation) -> str:
    """The role that an invitation gives."""
    if row.role is None:
        raise Conflict(gettext("this link is for a new password, not for a new person"))
    return row.role


def _add(
    session: Session,
    actor: Actor,
    life_s: int,
    *,
    role: str | None = None,
    person_id: int | None = None,
    note: str = "",
) -> tuple[Invitation, str]:
    token = secrets.token_urlsafe(32)
    row = Invitation(
        token_sha256=_sha256(token),
        role=role,
        person_id=person_id,
        note=note,
        made_by_id=actor.id,
        expires_at=utcnow() + dt.timedelta(seconds=life_s),
    )
    session.add(row)
    session.flush()
    return row, token


def _void() -> NotFound:
    return NotFound(
        gettext("this link does not work: it was used, revoked or has expired; ask for a new one"), code="link_void"
    )


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # 256 random bits: a plain hash is enough
