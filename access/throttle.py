"""How often somebody may try to sign in: counted in the database, so that it holds over all web processes.

A try is written down and committed before it is checked, and counted together with its own row. Of tries that come
at once the k-th to commit counts at least k, so no more than the limit get through. A success and a refusal are taken
back: only failures within the window count, and knocking on does not lengthen the wait.

Strangers' failures close a login to strangers only. A browser that somebody signed in with before shows so by a cookie, and
an address from which they did is known by their sessions; each of these has a budget of its own.
Source: OWASP, "Slow Down Online Guessing Attacks with Device Cookies".
"""

import datetime as dt
import hashlib
import hmac
import secrets
from ipaddress import ip_address, ip_network

from sqlalchemy import ColumnElement, and_, delete, func, select
from sqlalchemy.orm import Session

from access.models import SessionRecord, SignInAttempt
from access.names import folded
from access.people import find_login
from core.db import Database, utcnow
from core.errors import TooManyRequests
from core.language import N_, gettext

PER_LOGIN_AND_ADDRESS = 10  # in a minute
PER_ADDRESS = 60  # in a minute
PER_LOGIN = 100  # in an hour, from wherever nobody knows it; and from each known device or address
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
DEVICE_LIFE = dt.timedelta(days=365)

SLOW_DOWN = N_("Too many attempts to sign in. Wait a minute, then try again.")
LATER = N_(
    "Too many attempts to sign in with this login. Use a browser in which you signed in before, wait an hour, or ask a lead for a new link."
)


def admit(db: Database, secret: str, login: str, address: str, device: str = "") -> int:
    """Count a try to sign in.

    Args:
        device: what the browser shows of `device_cookie`; what is not good counts as nothing.

    Returns:
        The number of the try, for `forgive` when it succeeds.

    Raises:
        TooManyRequests: there were too many failures within the window.
    """
    key, now = folded(login), utcnow()
    kind, place = "login", _key(secret, "address", _network(address))
    if _made_for(secret, key, device):
        kind, place = "device", _key(secret, "device", device)
    with db.session() as session:
        if kind == "login" and _known_address(session, login, address):
            kind = "known"
        session.execute(delete(SignInAttempt).where(SignInAttempt.at < now - HOUR))
        attempt = SignInAttempt(at=now, login_key=_key(secret, kind, key), address_key=place)
        session.add(attempt)
        session.flush()
        number = attempt.id
    by_login, by_place = SignInAttempt.login_key == attempt.login_key, SignInAttempt.address_key == place
    hourly = by_login if kind == "login" else and_(by_login, by_place)
    limits: list[tuple[ColumnElement[bool], dt.timedelta, int, str]] = [
        (and_(by_login, by_place), MINUTE, PER_LOGIN_AND_ADDRESS, SLOW_DOWN),
        (by_place, MINUTE, PER_ADDRESS, SLOW_DOWN),
        (hourly, HOUR, PER_LOGIN, LATER),
    ]
    with db.read() as session:
        for condition, window, limit, words in limits:
            found = session.scalar(
                select(func.count()).select_from(SignInAttempt).where(condition, SignInAttempt.at > now - window)
            )
            if (found or 0) > limit:
                forgive(db, number)
                raise TooManyRequests(gettext(words))
    return number


def forgive(db: Database, number: int) -> None:
    """Take a try back: it succeeded, or it was not let through."""
    with db.session() as session:
        session.execute(delete(SignInAttempt).where(SignInAttempt.id == number))


def device_cookie(secret: str, login: str, shown: str = "") -> str:
    """What a browser keeps after somebody signed in with it: a number, and a seal that ties it to their login.

    Args:
        shown: what the browser has; it stays where it is of this login.
    """
    if _made_for(secret, folded(login), shown):
        return shown
    number = secrets.token_urlsafe(16)
    return f"{number}.{_key(secret, 'device of', f'{folded(login)}:{number}')}"


def _made_for(secret: str, key: str, device: str) -> bool:
    number, _, seal = device.partition(".")
    return hmac.compare_digest(seal.encode(), _key(secret, "device of", f"{key}:{number}").encode())


def _known_address(session: Session, login: str, address: str) -> bool:
    """Whether the person of this login signed in from this address before (as far as sessions are kept)."""
    person = find_login(session, login)
    if person is None:
        return False
    seen = select(SessionRecord.address).where(SessionRecord.person_id == person.id).distinct()
    return _network(address) in {_network(known) for known in session.scalars(seen)}


def _key(secret: str, kind: str, value: str) -> str:
    # People type passwords into the wrong field; what was typed is not kept in a readable form.
    return hmac.new(secret.encode(), f"{kind}:{value}".encode(), hashlib.sha256).hexdigest()


def _network(address: str) -> str:
    """An address, or the /64 of an IPv6 one: that much of it one customer has to choose from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)
