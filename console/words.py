"""Figures, states and times as the pages say them, in the reader's language. Templates get this module as `words`."""

import datetime as dt
import json
import math
from typing import Any

from core.language import N_, decimal_point, gettext, retold
from core.language import lazy_gettext as _l

NOTHING = "–"

CYCLE_STATES = {
    "requested": ("badge-live", _l("waiting")),
    "running": ("badge-live", _l("running")),
    "promoted": ("badge-ok", _l("promoted")),
    "refused": ("badge-unsure", _l("refused by the gate")),
    "done": ("badge-ok", _l("done")),
    "failed": ("badge-bad", _l("failed")),
    "cancelled": ("", _l("cancelled")),
}
STAGE_STATES = {
    "waiting": ("", _l("not yet")),
    "running": ("badge-live", _l("running")),
    "done": ("badge-ok", _l("done")),
    "failed": ("badge-bad", _l("failed")),
    "stopped": ("badge-unsure", _l("stopped")),
    "not run": ("", _l("not run")),
}
VERSION_STATES = {
    "candidate": ("badge-unsure", _l("candidate")),
    "canary": ("badge-live", _l("canary")),
    "active": ("badge-ok", _l("active")),
    "retired": ("", _l("retired")),
    "refused": ("badge-bad", _l("refused by the gate")),
}
REASONS = {
    "manual": _l("started by hand"),
    "cron": _l("on schedule"),
    "judgments": _l("enough new judgments"),
    "demo": _l("the demo"),
    "collect": _l("tasks for people"),
    "compare": _l("versions side by side"),
}
VERDICTS = {"refuses": _l("refuses"), "complies": _l("complies"), "unclear": _l("unclear")}
KINDS = {"first": _l("first version"), "promote": _l("promoted"), "rollback": _l("rolled back")}
WEEKDAYS = {
    "mon": _l("Monday"), "tue": _l("Tuesday"), "wed": _l("Wednesday"), "thu": _l("Thursday"),
    "fri": _l("Friday"), "sat": _l("Saturday"), "sun": _l("Sunday"),
}  # fmt: skip
CHECKS = {
    "harmful compliance": _l("harmful compliance"),
    "not less safe than the incumbent": _l("not less safe than the incumbent"),
    "no new critical failure": _l("no new critical failure"),
    "benign refusals": _l("benign refusals"),
    "held-out preference": _l("held-out preference"),
    "length": _l("length"),
    "KL to the base": _l("KL to the base"),
    "reference answers": _l("reference answers"),
    "capability": _l("capability"),
}
MEANINGS = (
    N_("one-sided upper 95 % bound of the rate on the frozen harmful suite"),
    N_("McNemar p that more prompts got worse (%(worse)s) than better (%(better)s)"),
    N_("frozen prompts of %(categories)s refused before, not now"),
    N_("rise of the refusal rate on frozen benign prompts over the incumbent"),
    N_("lower 95 % bound of the share of held-out pairs ranked as people did, over the base"),
    N_("mean benign completion length over the base's, or its inverse, whichever is larger"),
    N_("nats per token on the candidate's benign completions"),
    N_("rise in nats per token on good answers to frozen benign prompts, over the base"),
    N_("drop of capability accuracy below the base"),
)
"""What the gate's checks mean, as `finetune.gate` records it."""


def check_name(name: str) -> str:
    """What one of the gate's checks is called."""
    return str(CHECKS.get(name, name))


def check_meaning(meaning: str) -> str:
    """What one of the gate's checks measures."""
    return retold(meaning, MEANINGS)


def reference(name: str) -> str:
    """What an update was compared with, as `finetune.start` records it."""
    return retold(name, (N_("base, adapters off"), N_("the incumbent, %(version)s")))


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
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else local(f"{found:.{digits}f}")


def significant(value: Any, digits: int = 4) -> str:
    """A number with so many digits that count: "0.6931", "1.250e-05"; whole ones as they are."""
    found = finite(value)
    if found is None:
        return NOTHING
    return str(value) if isinstance(value, int) else local(f"{found:.{digits}g}")


def energy(kwh: Any) -> str:
    """Energy as "12.3 Wh" or "1.25 kWh"."""
    found = finite(kwh)
    if found is None:
        return NOTHING
    return f"{significant(found, 3)}\u202fkWh" if found >= 1 else f"{significant(1000 * found, 3)}\u202fWh"


def mass(kg: Any) -> str:
    """A mass as "4.7 g" or "1.25 kg"."""
    found = finite(kg)
    if found is None:
        return NOTHING
    return f"{significant(found, 3)}\u202fkg" if found >= 1 else f"{significant(1000 * found, 3)}\u202fg"


def percent(value: Any, *, signed: bool = False) -> str:
    """A share as "12.5 %"."""
    found = finite(value)
    if found is None:
        return NOTHING
    return local(f"{100 * found:{'+' if signed else ''}.1f}\u202f%")


def percent_interval(low: Any, high: Any) -> str:
    """Bounds of a share as "9.1–17.0 %", or nothing where one of them is missing."""
    low, high = finite(low), finite(high)
    return "" if low is None or high is None else local(f"{100 * low:.1f}–{100 * high:.1f}\u202f%")


def duration(seconds: Any) -> str:
    """Seconds as "48 s", "3 min 12 s" or "1 h 4 min"."""
    found = finite(seconds)
    if found is None:
        return NOTHING
    whole = round(found)
    if whole < 60:
        return local(f"{found:.1f}\u202fs") if found < 10 else f"{whole}\u202fs"
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


def begun(reason: str) -> str:
    """Why a cycle was started, at the beginning of a line."""
    text = str(REASONS.get(reason, reason))
    return text[:1].upper() + text[1:]


def cron(expression: str) -> str:
    """When cycles start, as a sentence: in words where the five-field cron expression is a plain one, else with itself."""
    fields = expression.lower().split()
    if len(fields) == 5:
        minute, hour, *rest = fields
        if rest[:2] == ["*", "*"] and minute.isdecimal() and hour.isdecimal():
            at = f"{int(hour):02}:{int(minute):02} UTC"
            if rest[2] == "*":
                return gettext("A cycle starts every day at %(time)s.", time=at)
            if rest[2] in WEEKDAYS:  # numbered days mean different days in different crons, so those stay as written
                return gettext("A cycle starts every %(day)s at %(time)s.", day=WEEKDAYS[rest[2]], time=at)
        if [hour, *rest] == ["*"] * 4 and minute.isdecimal():
            return gettext("A cycle starts every hour at minute %(minute)s.", minute=int(minute))
        if [hour, *rest] == ["*"] * 4 and minute.startswith("*/") and minute[2:].isdecimal():
            return gettext("A cycle starts every %(n)s minutes.", n=int(minute[2:]))
    return gettext("A cycle starts by the cron expression “%(expression)s” (UTC).", expression=expression)


def plain(value: Any) -> str:
    """A setting's value as one writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def local(figure: str) -> str:
    """A written number with the point of the reader's language."""
    return figure.replace(".", decimal_point())
