"""How often somebody may try to sign in: counted in the database, so that it holds over all web processes.

A try is written down and committed before it is checked, and counted together with its own row. Of tries that come
at once the k-th to commit counts at least k, so no more than the limit get through. A success and a refusal are taken
back: only failures within the window count, and knocking on does not lengthen the wait.
"""

import datetime as dt
import hashlib
import hmac
from ipaddress import ip_address, ip_network

from sqlalchemy import ColumnElement, and_, delete, func, select

from access.models import SignInAttempt
from core.db import Database, utcnow
from core.errors import TooManyRequests
from core.language import N_, gettext

PER_LOGIN_AND_ADDRESS = 10  # in a minute
PER_ADDRESS = 60  # in a minute
PER_LOGIN = 100  # in an hour, from wherever
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)

SLOW_DOWN = N_("Too many attempts to sign in. Wait a minute, then try again.")
LATER = N_("Too many attempts to sign in with this login. Wait an hour, or ask a lead for a new link.")


def admit(db: Database, secret: str, login: str, address: str) -> int:
    """Count a try to sign in.

    Returns:
        The number of the try, for `forgive` when it succeeds.

    Raises:
        TooManyRequests: there were too many failures within the window.
    """
    login_key, address_key = _key(secret, "login", login), _key(secret, "address", _network(address))
    now = utcnow()
    with db.session() as session:
        session.execute(delete(SignInAttempt).where(SignInAttempt.at < now - HOUR))
        attempt = SignInAttempt(at=now, login_key=login_key, address_key=address_key)
        session.add(attempt)
        session.flush()
        number = attempt.id
    by_login, by_address = SignInAttempt.login_key == login_key, SignInAttempt.address_key == address_key
    limits: list[tuple[ColumnElement[bool], dt.timedelta, int, str]] = [
        (and_(by_login, by_address), MINUTE, PER_LOGIN_AND_ADDRESS, SLOW_DOWN),
        (by_address, MINUTE, PER_ADDRESS, SLOW_DOWN),
        (by_login, HOUR, PER_LOGIN, LATER),
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
