"""How much somebody may ask of the chat API: requests per minute and, of tenants, tokens per day. Held over all processes.

Requests are paced by the generic cell rate algorithm: one instant per limit, up to which its requests are paid for; a
request moves it on by a minute's share, and is refused where it would lie more than a minute ahead. So a whole minute's
requests may come at once after a quiet minute, and then as many as fit evenly. In the database that is one statement in a
transaction of its own, and none where there is no limit; refused requests write nothing. With
`DUNNOCK_LIMITS__STORAGE_URL` the library `limits` counts instead, by its sliding window counter; while that storage does
not answer, the database does.
Source: ITU-T I.371, "virtual scheduling algorithm".

Tokens are checked before a reply and counted with it, in the transaction that stores it: replies that began within the
quota are finished, so a tenant can go over it by what is on its way. A day ends at midnight UTC.

    admit(db, limits, terms, settings)     before a reply is made
    spend(session, tenant_id, …)           where it is stored
"""

import datetime as dt
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Date, bindparam, select, text
from sqlalchemy.orm import Session

from access.models import TenantUsage
from core.db import Database, utcnow
from core.errors import RateLimited
from core.language import gettext
from core.settings import LimitsSettings

log = logging.getLogger("dunnock.limits")

MINUTE_US = 60_000_000
STORAGE_TIMEOUT_S = 1.0
CHARACTERS_PER_TOKEN = 4  # of English in common vocabularies, roughly

_TAKE = text(
    """INSERT INTO pace (subject, paid_until_us) VALUES (:subject, :now + :share)
       ON CONFLICT (subject) DO UPDATE
       SET paid_until_us = CASE WHEN pace.paid_until_us > :now THEN pace.paid_until_us ELSE :now END + :share
       WHERE pace.paid_until_us + :share <= :now + :room
       RETURNING paid_until_us"""
).bindparams(*(bindparam(name, type_=BigInteger()) for name in ("now", "share", "room")))
_PAID_UNTIL = text("SELECT paid_until_us FROM pace WHERE subject = :subject")
_SPEND = text(
    """INSERT INTO tenant_usage (tenant_id, day, requests, prompt_tokens, completion_tokens)
       VALUES (:tenant_id, :day, 1, :prompt_tokens, :completion_tokens)
       ON CONFLICT (tenant_id, day) DO UPDATE
       SET requests = tenant_usage.requests + 1,
           prompt_tokens = tenant_usage.prompt_tokens + excluded.prompt_tokens,
           completion_tokens = tenant_usage.completion_tokens + excluded.completion_tokens"""
).bindparams(
    bindparam("day", type_=Date()),
    *(bindparam(name, type_=BigInteger()) for name in ("prompt_tokens", "completion_tokens")),
)


_making = threading.Lock()
_strategies: dict[str, Any] = {}


@dataclass(frozen=True)
class Limit:
    """So many requests per minute of one subject, e.g. "tenant:3"; None or 0 for no limit."""

    subject: str
    requests_per_minute: int | None


@dataclass(frozen=True)
class Terms:
    """What was agreed with a tenant, as it is at the time of the call; None is no limit, no pin, and no consent of its own."""

    tenant_id: int
    key: str
    requests_per_minute: int | None
    tokens_per_day: int | None
    policy_version: str | None
    consent: str | None = None

    @property
    def pace(self) -> Limit:
        """Its limit of requests, over all its keys."""
        return Limit(f"tenant:{self.tenant_id}", self.requests_per_minute)


def admit(
    db: Database, limits: Sequence[Limit], terms: Terms | None, settings: LimitsSettings, now: dt.datetime | None = None
) -> None:
    """Let a request through, and count it. A request that the quota refuses is not counted.

    Raises:
        RateLimited: over a limit of requests, or the tokens of the day are used up.
    """
    now = now or utcnow()
    if terms is not None and terms.tokens_per_day is not None:
        with db.read() as session:
            check_quota(session, terms, now)
    take(db, limits, settings, now)


def take(
    db: Database, limits: Sequence[Limit], settings: LimitsSettings | None = None, now: dt.datetime | None = None
) -> None:
    """Count one request against all of these limits, or against none of them.

    Args:
        settings: where they are counted; left out, in the database.

    Raises:
        RateLimited: one of them is reached.
    """
    limits = [limit for limit in limits if limit.requests_per_minute]
    if not limits:
        return
    if settings is not None and settings.storage_url and _taken_elsewhere(limits, settings.storage_url):
        return
    now_us = int((now or utcnow()).timestamp() * 1_000_000)
    with db.session() as session:  # what is raised rolls back the limits before
        for limit in limits:
            _take(session, limit, now_us)


def check_quota(session: Session, terms: Terms, now: dt.datetime | None = None) -> None:
    """Look whether a tenant has tokens left today; one row is read where it has a quota.

    Raises:
        RateLimited: it has none; the code is `insufficient_quota`, and it has them again after midnight UTC.
    """
    if terms.tokens_per_day is None:
        return
    now = (now or utcnow()).astimezone(dt.UTC)
    used = session.scalar(
        select(TenantUsage.prompt_tokens + TenantUsage.completion_tokens).where(
            TenantUsage.tenant_id == terms.tenant_id, TenantUsage.day == now.date()
        )
    )
    if (used or 0) >= terms.tokens_per_day:
        midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
        raise RateLimited(
            gettext(
                "%(used)s of %(limit)s tokens of this day are used up; there are new ones after midnight UTC",
                used=used,
                limit=terms.tokens_per_day,
            ),
            math.ceil((midnight - now).total_seconds()),
            code="insufficient_quota",
        )


def spend(
    session: Session, tenant_id: int | None, prompt_tokens: int, completion_tokens: int, now: dt.datetime | None = None
) -> None:
    """Count a request with its tokens to a tenant's day, by one statement; of the house nothing is counted.

    Args:
        prompt_tokens: of the prompt, once however many replies were made.
        completion_tokens: of all replies. Where the engine did not get to say, `estimated_tokens`: a caller who always breaks
            off would pay nothing otherwise.
    """
    if tenant_id is None:
        return
    day = (now or utcnow()).astimezone(dt.UTC).date()
    counted = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    session.connection().execute(_SPEND, {"tenant_id": tenant_id, "day": day, **counted})


def estimated_tokens(words: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(words) / CHARACTERS_PER_TOKEN)


def _take(session: Session, limit: Limit, now_us: int) -> None:
    n = limit.requests_per_minute or 1
    share = max(1, MINUTE_US // n)
    values = {"subject": limit.subject, "now": now_us, "share": share, "room": share * n}
    connection = session.connection()
    if connection.execute(_TAKE, values).one_or_none() is None:
        paid_until = connection.execute(_PAID_UNTIL, {"subject": limit.subject}).scalar_one()
        raise _refusal(limit, (paid_until + share - now_us - share * n) / 1_000_000)


def _refusal(limit: Limit, wait_s: float) -> RateLimited:
    return RateLimited(
        gettext(
            "more than %(n)s requests a minute; the next one may come in %(wait)s s",
            n=limit.requests_per_minute,
            wait=max(1, math.ceil(wait_s)),
        ),
        max(1, math.ceil(wait_s)),
    )


def _taken_elsewhere(limits: Sequence[Limit], url: str) -> bool:
    """Count in the storage of this URL, by its clock; False where it does not answer."""
    strategy = _strategy(url)  # first: what follows imports its library too
    from limits import RateLimitItemPerMinute
    from limits.errors import StorageError

    try:
        for limit in limits:
            item = RateLimitItemPerMinute(limit.requests_per_minute or 1)
            if not strategy.hit(item, limit.subject):
                raise _refusal(limit, strategy.get_window_stats(item, limit.subject).reset_time - utcnow().timestamp())
    except StorageError as error:
        log.error("requests are counted in the database: %s does not answer (%s)", url.partition("://")[0], error)
        return False
    return True


def _strategy(url: str) -> Any:
    """The counter of a storage; its connections are kept."""
    from limits.storage import storage_from_string
    from limits.strategies import SlidingWindowCounterRateLimiter

    with _making:  # two threads that begin at once would import a client half, and make two
        if url not in _strategies:
            timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), STORAGE_TIMEOUT_S)
            options = timeouts if url.startswith(("redis", "valkey")) else {}
            storage = storage_from_string(url, wrap_exceptions=True, **options)
            _strategies[url] = SlidingWindowCounterRateLimiter(storage)
        return _strategies[url]
