"""Identities at a provider that are linked to people: listed and taken away. `access.identities` links them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.audit import record
from access.models import OidcIdentity, Person
from core.errors import Conflict, NotFound
from core.language import gettext


def identities_of(session: Session, person_id: int) -> list[OidcIdentity]:
    """A person's identities, oldest first."""
    query = select(OidcIdentity).where(OidcIdentity.person_id == person_id).order_by(OidcIdentity.id)
    return list(session.scalars(query).all())


def unlink(session: Session, identity_id: int, person_id: int) -> None:
    """Take an identity away from a person.

    Raises:
        NotFound: they have no such identity.
        Conflict: it is their only way to sign in.
    """
    linked = {row.id: row for row in identities_of(session, person_id)}
    if identity_id not in linked:
        raise NotFound(gettext("you have no identity %(identity_id)s", identity_id=identity_id))
    person = session.get_one(Person, person_id)
    if person.password_hash is None and len(linked) == 1:
        raise Conflict(gettext("this is your only way to sign in; ask a lead for a link to set a password first"))
    _remove(session, person, linked[identity_id])


def unlink_all(session: Session, person: Person) -> int:
    """Take all identities away from a person, who has a password; returns how many there were."""
    linked = identities_of(session, person.id)
    for row in linked:
        _remove(session, person, row)
    return len(linked)


def shown(row: OidcIdentity) -> dict[str, str | None]:
    """An identity as the audit log has it."""
    return {"issuer": row.issuer, "subject": row.subject, "email": row.email}


def _remove(session: Session, person: Person, row: OidcIdentity) -> None:
    record(session, person.login, "identity.unlink", f"person:{person.id}", before=shown(row))
    session.delete(row)
    session.flush()
