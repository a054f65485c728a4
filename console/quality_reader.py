"""What the quality pages' tables are made with: the reader's filters, the words for kinds and pools, and what is said of
nothing."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from console.figures import Column, Kind, Table
from core.db import utcnow
from core.language import gettext as _
from core.language import lazy_gettext as _l
from core.language import ngettext, retold
from core.settings import QualitySettings
from feedback.assignment.annotators import STANDING_WHYS
from feedback.quality.acts import Window, left_out
from feedback.quality.kept import Kept, kept

DAYS = (7, 28, 90, 365)
PAGE = 50

KIND_WORDS = {
    "pairwise": _l("pairs"), "ranking": _l("rankings"), "rating": _l("ratings"), "rule_check": _l("rule checks"),
    "correction": _l("corrections"), "probe": _l("probes"),
}  # fmt: skip
POOL_WORDS = {
    "adjudication": _l("to be settled"), "canary": _l("canary"), "flagged": _l("flagged by users"),
    "informative": _l("informative"), "uniform": _l("even sample"), "gold": _l("known answers"),
    "repeat": _l("shown again"),
}  # fmt: skip
REASON_WORDS = {
    "rate": _l("drawn by the rate"), "novelty": _l("unlike what was asked before"),
    "recorded": _l("a rule broken, only recorded"), "withheld": _l("held back by the guard"),
    "flagged": _l("flagged by users"), "pair": _l("two versions side by side"),
}  # fmt: skip
SOURCE_WORDS = {
    "overlap": _l("two people on the same pair"),
    "repeats": _l("one person twice on the same pair"),
    "gold": _l("known answers"),
}
STANDING_WORDS = {
    "good": ("badge-ok", _l("good")), "warned": ("badge-unsure", _l("warned")), "paused": ("badge-bad", _l("paused")),
}  # fmt: skip


@dataclass(frozen=True)
class Filters:
    """What the reader asked for; the same words stand in the addresses of pages and of files."""

    days: int = 28
    simulated: bool = False
    rule: str = ""
    sort: str = ""
    before: int | None = None
    limit: int = PAGE

    @property
    def since(self) -> dt.datetime:
        """The beginning of the first day, in UTC."""
        first = utcnow().date() - dt.timedelta(days=self.days - 1)
        return dt.datetime.combine(first, dt.time(), dt.UTC)

    def query(self, **other: Any) -> dict[str, Any]:
        """The arguments of an address, without what is as usual."""
        found = {"days": self.days, "simulated": int(self.simulated), "rule": self.rule, "sort": self.sort} | other
        usual = {"days": 28, "simulated": 0, "rule": "", "sort": ""}
        return {name: value for name, value in found.items() if value is not None and value != usual.get(name)}


@dataclass(frozen=True)
class Reader:
    """What tables are made with: the database, what was asked for, and the settings."""

    session: Session
    filters: Filters
    settings: QualitySettings

    @property
    def window(self) -> Window:
        """Which judgments count."""
        return Window(self.filters.since, self.filters.simulated, self.settings.newest_tasks)

    def kept(self, name: str, compute: Callable[[], Any]) -> Kept[Any]:
        """A figure that depends on the window alone, kept for a while where it is dear."""
        return kept(self.session, (name, self.window), compute)

    def table(self, name: str, title: str, columns: list[Column], rows: list[dict[str, Any]], **more: Any) -> Table:
        """A table of this reader's filters."""
        return Table(name, title, columns, rows, filters=self.filters.query(), **more)


def kind_word(kind: str) -> str:
    return str(KIND_WORDS.get(kind, kind))


def standing_why(why: str) -> str:
    """Why somebody stands as they do, in the reader's language as far as it is told in words of ours."""
    return retold(why, STANDING_WHYS)


def count_left_out(reader: Reader) -> int:
    """Simulated judgments that the figures leave out."""
    return int(reader.kept("left out", lambda: left_out(reader.session, reader.window)).value)


def nothing(reader: Reader, found: object, reason: str) -> str:
    """Why a table is empty, and what was left out; nothing where something was found."""
    if found:
        return ""
    text = str(_("Undefined, because %(reason)s.", reason=reason))
    n = count_left_out(reader)
    if not n:
        return text
    more = ngettext("%(num)d simulated judgment is left out.", "%(num)d simulated judgments are left out.", n)
    return f"{text} {more}"


SORT_WORDS: dict[str, Any] = {
    "": _l("login"), "judgments": _l("most judgments"), "gold": _l("known answers, worst first"),
    "left": _l("farthest from even sides"), "swap": _l("least the same when swapped"), "fast": _l("too fast most often"),
    "seconds": _l("shortest time"),
}  # fmt: skip
KIND_OF_CELL: tuple[Kind, ...] = ("number", "share", "figure", "seconds")
"""Columns that are set to the right."""
