"""Who a provider's claims belong to here. Somebody is (issuer, subject); an email address alone is never enough.

An identity gets to a person in three ways: by an invitation, by linking while signed in, or, where the settings say
`everybody`, by making the person. Domains of addresses and roles of claims are checked anew at each sign-in.
"""

import re

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.audit import record
from access.invitations import check_open, role_of, use
from access.linked import shown
from access.models import ROLES, OidcIdentity, Person
from access.names import OPENID, checked_login, folded
from access.oidc import Claims
from access.roster import set_role
from core.errors import Conflict, Forbidden, InvalidInput
from core.language import gettext
from core.settings import OidcSettings


def sign_in(session: Session, claims: Claims, settings: OidcSettings) -> Person:
    """The active person of these claims; made now where the settings allow that.

    Raises:
        Forbidden: unknown, deactivated, of a wrong domain or without a role.
    """
    role = _admitted(claims, settings)
    identity = _find(session, claims)
    if identity is not None:
        person = session.get_one(Person, identity.person_id)
        _refuse_inactive(person)
        identity.email = claims.email
        if role is not None:
            set_role(session, OPENID, person, role)
        return person
    if settings.people != "everybody":
        raise Forbidden(
            gettext(
                "the provider knows you, but nobody here does yet; ask a lead for an invitation, or sign in with your password and link the provider on your account page"
            ),
            code="oidc_unknown",
        )
    if role is None and settings.default_role == "refuse":
        raise Forbidden(gettext("you need an invitation; ask a lead or an admin"), code="oidc_unknown")
    return _add(session, claims, role or settings.default_role)


def accept_invitation(session: Session, claims: Claims, settings: OidcSettings, invitation_id: int) -> Person:
    """The new person of an invitation, who signs in by these claims.

    Raises:
        Conflict: the identity is somebody's already, or the link is for a new password.
        Forbidden: of a wrong domain or without a role.
        NotFound: the link no longer works.
    """
    role = _admitted(claims, settings)
    row = check_open(session, invitation_id)
    invited = role_of(row)
    if _find(session, claims) is not None:
        raise Conflict(gettext("you have an account here already; just sign in. The invitation was not used"))
    person = _add(session, claims, role or invited)
    use(session, row, person)
    return person


def link(session: Session, claims: Claims, settings: OidcSettings, person_id: int) -> OidcIdentity:
    """Let a signed-in person sign in by these claims too; linking twice changes nothing.

    Raises:
        Conflict: the identity is somebody else's.
        Forbidden: of a wrong domain, or without a role at the provider.
    """
    _admitted(claims, settings)
    found = _find(session, claims)
    if found is not None:
        if found.person_id != person_id:
            raise Conflict(gettext("this identity belongs to another account here"))
        return found
    person = session.get_one(Person, person_id)
    _refuse_inactive(person)
    return _attach(session, claims, person)


def role_by_claims(claims: Claims, settings: OidcSettings) -> str | None:
    """The highest role that the claims are mapped to; the default where none is; None where roles are given here.

    Raises:
        Forbidden: none is mapped, and the default is to refuse.
    """
    if not settings.roles:
        return None
    mapped = {settings.roles[value] for value in claims.values_of(settings.role_claim) if value in settings.roles}
    if mapped:
        return max(mapped, key=ROLES.index)
    if settings.default_role == "refuse":
        raise Forbidden(gettext("the provider gives you no role here; ask whoever runs it"), code="oidc_no_role")
    return settings.default_role


def _admitted(claims: Claims, settings: OidcSettings) -> str | None:
    """The role by claims of somebody whose address is of an allowed domain."""
    if settings.email_domains:
        verified = claims.all.get("email_verified")
        trusted = verified is True or (verified is None and settings.trust_email)
        domain = (claims.email or "").rpartition("@")[2].lower()
        if not trusted or domain not in {d.lower().lstrip("@") for d in settings.email_domains}:
            raise Forbidden(
                gettext(
                    "only people with a verified address of certain domains are let in, and yours is not among them"
                ),
                code="oidc_domain",
            )
    return role_by_claims(claims, settings)


def _find(session: Session, claims: Claims) -> OidcIdentity | None:
    return session.scalar(
        select(OidcIdentity).where(OidcIdentity.issuer == claims.issuer, OidcIdentity.subject == claims.subject)
    )


def _add(session: Session, claims: Claims, role: str) -> Person:
    person = Person(login=_free_login(session, claims), password_hash=None, role=role)
    session.add(person)
    _flush(session)
    record(session, person.login, "person.add", f"person:{person.id}", after={"role": role, "by": OPENID})
    _attach(session, claims, person)
    return person


def _attach(session: Session, claims: Claims, person: Person) -> OidcIdentity:
    row = OidcIdentity(person_id=person.id, issuer=claims.issuer, subject=claims.subject, email=claims.email)
    session.add(row)
    _flush(session)
    record(session, person.login, "identity.link", f"person:{person.id}", after=shown(row))
    return row


def _flush(session: Session) -> None:
    try:
        session.flush()
    except IntegrityError as error:  # the same sign-in in two tabs, say
        raise Conflict(gettext("somebody signed in in the same moment; begin again")) from error


def _free_login(session: Session, claims: Claims) -> str:
    """A login for somebody new: what the provider calls them, with a number where that is taken here, and "person" where it will not do."""
    name = claims.all.get("preferred_username")
    wanted = name if isinstance(name, str) else (claims.email or claims.subject)
    wanted = re.sub(r"\s+", " ", "".join(c for c in wanted if c.isprintable())).strip()[:100] or "person"
    try:
        wanted = checked_login(wanted)
    except InvalidInput:  # a process is called so, or it could be taken for somebody else
        wanted = "person"
    key = folded(wanted)
    alike = or_(Person.login_key == key, Person.login_key.startswith(f"{key}-", autoescape=True))
    taken = set(session.scalars(select(Person.login_key).where(alike)))
    taken |= {folded(login) for login in session.scalars(select(Person.login).where(Person.login == wanted))}
    names = (f"{wanted}-{n + 1}" if n else wanted for n in range(len(taken) + 1))
    return next(login for login in names if folded(login) not in taken)


def _refuse_inactive(person: Person) -> None:
    if not person.active or person.scripted:
        raise Forbidden(gettext("this account was deactivated; ask a lead or an admin"), code="oidc_inactive")
