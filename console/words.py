"""Figures, states and times as the pages say them. Pure functions; templates get this module as `words`."""

import datetime as dt
import json
import math
from typing import Any

NOTHING = "–"

CYCLE_STATES = {
    "requested": ("badge-live", "waiting"),
    "running": ("badge-live", "running"),
    "promoted": ("badge-ok", "promoted"),
    "refused": ("badge-unsure", "refused by the gate"),
    "done": ("badge-ok", "done"),
    "failed": ("badge-bad", "failed"),
    "cancelled": ("", "cancelled"),
}
STAGE_STATES = {
    "waiting": ("", "not yet"),
    "running": ("badge-live", "running"),
    "done": ("badge-ok", "done"),
    "failed": ("badge-bad", "failed"),
    "stopped": ("badge-unsure", "stopped"),
    "not run": ("", "not run"),
}
VERSION_STATES = {
    "candidate": ("badge-unsure", "candidate"),
    "canary": ("badge-live", "canary"),
    "active": ("badge-ok", "active"),
    "retired": ("", "retired"),
    "refused": ("badge-bad", "refused by the gate"),
}
REASONS = {
    "manual": "started by hand",
    "cron": "on schedule",
    "judgments": "enough new judgments",
    "demo": "the demo",
    "collect": "tasks for people",
}
KINDS = {"first": "first version", "promote": "promoted", "rollback": "rolled back"}
WEEKDAYS = {
    "mon": "Monday", "tue": "Tuesday", "wed": "Wednesday", "thu": "Thursday",
    "fri": "Friday", "sat": "Saturday", "sun": "Sunday",
}  # fmt: skip


def finite(value: Any) -> float | None:
    """The value as a finite number, or None: what a report holds may be missing or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3) -> str:
    """A number with so many digits after the point; whole ones in groups of three."""
    found = finite(value)
    if found is None:
        return NOTHING
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{found:.{digits}f}"


def percent(value: Any, *, signed: bool = False) -> str:
    """A share as "12.5 %"."""
    found = finite(value)
    if found is None:
        return NOTHING
    return f"{100 * found:{'+' if signed else ''}.1f}\u202f%"


def percent_interval(low: Any, high: Any) -> str:
    """Bounds of a share as "9.1–17.0 %", or nothing where one of them is missing."""
    low, high = finite(low), finite(high)
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}\u202f%"


def duration(seconds: Any) -> str:
    """Seconds as "48 s", "3 min 12 s" or "1 h 4 min"."""
    found = finite(seconds)
    if found is None:
        return NOTHING
    whole = round(found)
    if whole < 60:
        return f"{found:.1f}\u202fs" if found < 10 else f"{whole}\u202fs"
    if whole < 3600:
        return f"{whole // 60}\u202fmin {whole % 60}\u202fs"
    return f"{whole // 3600}\u202fh {whole % 3600 // 60}\u202fmin"


def megabytes(value: Any) -> str:
    """Peak memory as "1 234 MB"."""
    found = finite(value)
    return NOTHING if not found else f"{number(round(found))}\u202fMB"


def short(sha256: str | None) -> str:
    """The first characters of a hash; the whole of it belongs in a title."""
    return sha256[:10] if sha256 else NOTHING


def instant(value: dt.datetime | None) -> str:
    """An instant in UTC, which a script turns into local time."""
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC") if value else NOTHING


def counted(n: Any, singular: str, plural: str | None = None) -> str:
    """ "1 pair", "3 pairs"."""
    return f"{number(n)} {singular if n == 1 else plural or singular + 's'}"


def cron(expression: str) -> str:
    """A five-field cron expression in words where it is a plain one, else the expression itself."""
    fields = expression.lower().split()
    if len(fields) != 5:
        return f"by the cron expression “{expression}” (UTC)"
    minute, hour, *rest = fields
    if rest[:2] == ["*", "*"] and minute.isdecimal() and hour.isdecimal():
        at = f"at {int(hour):02}:{int(minute):02} UTC"
        if rest[2] == "*":
            return f"every day {at}"
        if rest[2] in WEEKDAYS:  # numbered days mean different days in different crons, so those stay as written
            return f"every {WEEKDAYS[rest[2]]} {at}"
    if [hour, *rest] == ["*"] * 4 and minute.isdecimal():
        return f"every hour at minute {int(minute)}"
    if [hour, *rest] == ["*"] * 4 and minute.startswith("*/") and minute[2:].isdecimal():
        return f"every {int(minute[2:])} minutes"
    return f"by the cron expression “{expression}” (UTC)"


def plain(value: Any) -> str:
    """A setting's value as one writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
