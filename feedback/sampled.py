"""The budget of sampled tasks: so many of each reason and day, over all processes. In: a reason. Out: whether one more may be made.

A day is counted in a row by one conditional statement, in the transaction that makes the task: what is rolled back was
not asked. Who asks for several reasons in one transaction does so in the order of `REASONS`, so that no two wait for each
other.
"""

import datetime as dt
from collections.abc import Sequence
from typing import get_args

from sqlalchemy import Date, bindparam, func, select, text
from sqlalchemy.orm import Session

from core.db import utcnow
from core.settings.serving import Reason
from feedback.models import SampledDay

REASONS: tuple[Reason, ...] = get_args(Reason)

_DAY = bindparam("day", type_=Date())
_ASK = text(
    """INSERT INTO sampled_day (day, reason, asked, left_out) VALUES (:day, :reason, 1, 0)
       ON CONFLICT (day, reason) DO UPDATE SET asked = sampled_day.asked + 1
       WHERE :most = 0 OR sampled_day.asked < :most
       RETURNING asked"""
).bindparams(_DAY)
_LEAVE_OUT = text("UPDATE sampled_day SET left_out = left_out + 1 WHERE day = :day AND reason = :reason").bindparams(
    _DAY
)


def within_budget(session: Session, reason: Reason, most: int, now: dt.datetime | None = None) -> bool:
    """Count one more task of a reason, where the day has room for it; else that it was left out.

    Args:
        most: tasks of the reason in a day; 0 is any number.
    """
    where = {"day": _day(now), "reason": reason}
    connection = session.connection()
    if connection.execute(_ASK, {**where, "most": most}).one_or_none() is not None:
        return True
    connection.execute(_LEAVE_OUT, where)
    return False


def has_room(session: Session, reason: Reason, most: int, now: dt.datetime | None = None) -> bool:
    """Whether a task of a reason could be made now; nothing is counted."""
    if not most:
        return True
    today = select(SampledDay.asked).where(SampledDay.day == _day(now), SampledDay.reason == reason)
    return (session.scalar(today) or 0) < most


def sampled(session: Session, days: int) -> Sequence[tuple[str, int, int]]:
    """Of the last days, today included: each reason with how many tasks were made and how many left out."""
    since = _day(None) - dt.timedelta(days=days - 1)
    query = select(SampledDay.reason, func.sum(SampledDay.asked), func.sum(SampledDay.left_out))
    rows = session.execute(query.where(SampledDay.day >= since).group_by(SampledDay.reason))
    found = {reason: (int(asked), int(left_out)) for reason, asked, left_out in rows}
    return [(reason, *found[reason]) for reason in REASONS if reason in found]


def _day(now: dt.datetime | None) -> dt.date:
    return (now or utcnow()).astimezone(dt.UTC).date()
