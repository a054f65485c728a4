"""A table of figures, once: the page shows it, a plot is drawn from it, CSV and JSON hold the same rows.

A cell is a text, a number, an instant, a day, an `Estimate` or None. In CSV an estimate is five columns: value, low, high,
n, and why it is undefined.
"""

import csv
import datetime as dt
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flask import Response, jsonify, url_for

from console import words
from core.language import gettext
from feedback.quality.estimate import Estimate, Reason

Kind = Literal["text", "user", "number", "share", "figure", "seconds", "instant", "day", "standing", "significant"]
WRITERS: dict[Kind, Callable[[Any], str]] = {
    "share": words.percent,
    "seconds": words.duration,
    "figure": lambda cell: words.number(float(cell), 2),
    "significant": words.significant,
    "number": words.number,
}
"""How numbers are written."""

EXPORTED = 5000
"""Rows that a file holds at most."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Column:
    """A column: its name in files, its title on the page, and how its cells are written.

    `user` marks what people typed. `share`, `figure` and `significant` are how estimates and plain numbers are written: as
    percent, with two digits after the point, or with four digits that count.
    """

    name: str
    title: str
    kind: Kind = "text"
    shown: bool = True  # False: in files only, the page says it elsewhere


@dataclass(frozen=True)
class Plot:
    """How a table is drawn: its first column along x, these columns as lines, intervals as bars."""

    columns: tuple[str, ...]
    unit: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows under a title. `note` says what they are of; `empty` what comes here, where there are none."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]]
    empty: str = ""
    note: str = ""
    plot: Plot | None = None
    as_of: dt.datetime | None = None
    older: int | None = None  # where the next page of a list begins
    cut: bool = False  # there are more rows, and no way to page to them
    filters: dict[str, Any] = field(default_factory=dict)
    endpoint: str = "quality.table"  # where its files come from; its name, a form and the filters make their address

    @property
    def truncated(self) -> bool:
        """Whether there are more rows than these."""
        return self.cut or self.older is not None

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw."""
        return self.plot is not None and any(
            number_of(row.get(name)) is not None for row in self.rows for name in self.plot.columns
        )

    @property
    def percent(self) -> bool:
        """Whether what is drawn are shares."""
        return self.plot is not None and any(c.kind == "share" for c in self.columns if c.name in self.plot.columns)

    @property
    def undefined(self) -> Reason | None:
        """Why nothing is drawn, where an estimate says it."""
        cells = (row.get(name) for row in self.rows for name in (self.plot.columns if self.plot else ()))
        return next((cell.undefined for cell in cells if isinstance(cell, Estimate) and cell.undefined), None)


def number_of(cell: Any) -> float | None:
    """The number that a cell is drawn as."""
    return words.finite(cell.value if isinstance(cell, Estimate) else cell)


def because(reason: Reason | None) -> str:
    """Why a figure is undefined, in the reader's language."""
    return gettext("undefined, because %(reason)s", reason=gettext(reason.text, **reason.facts)) if reason else ""


def shown(cell: Any, kind: Kind) -> str:
    """A cell's value as the page writes it, an estimate without its interval."""
    if isinstance(cell, Estimate):
        cell = cell.value
    if cell is None:
        return words.NOTHING
    if kind in WRITERS:
        return WRITERS[kind](cell)
    return words.instant(cell) if isinstance(cell, dt.datetime) else str(cell)


def interval(cell: Any, kind: Kind) -> str:
    """An estimate's interval and n, as the page writes them."""
    if not isinstance(cell, Estimate) or cell.value is None:
        return ""
    n = f"n\u00a0{words.number(cell.n)}"
    if cell.low is None or cell.high is None:
        return n
    if kind == "share":
        return f"{words.percent_interval(cell.low, cell.high)}, {n}"
    return f"{words.number(cell.low, 2)} … {words.number(cell.high, 2)}, {n}"


def as_json(table: Table) -> dict[str, Any]:
    """The table as a JSON document holds it."""
    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "as_of": table.as_of.isoformat() if table.as_of else None,
        "filters": table.filters,
        "older": table.older,
        "truncated": table.truncated,
        "columns": [{"name": c.name, "title": c.title, "kind": c.kind} for c in table.columns],
        "rows": [{c.name: _plain(row.get(c.name)) for c in table.columns} for row in table.rows],
    }


def as_csv(table: Table) -> Iterator[str]:
    """The table as lines of CSV, with a head. A text that a spreadsheet would run as a formula gets a quote before it."""
    parts = _parts(table)
    yield _line([name for name, _, _ in parts])
    for row in table.rows:
        yield _line([_csv_cell(row.get(column), part) for _, column, part in parts])


def file_of(table: Table, form: str, name: str) -> Response:
    """The table as a response: JSON, or a CSV file of this name. Its head says whether there are more rows, and where."""
    if form == "json":
        answer = jsonify(as_json(table))
    else:
        answer = Response("".join(as_csv(table)), mimetype="text/csv")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    answer.headers["X-Truncated"] = "true" if table.truncated else "false"
    if table.older is not None:
        rest = url_for(table.endpoint, name=table.name, form=form, **table.filters, before=table.older)
        answer.headers["Link"] = f'<{rest}>; rel="next"'
    return answer


def _parts(table: Table) -> list[tuple[str, str, str]]:
    """(name in the file, column, part of the estimate or "")."""
    found = []
    for column in table.columns:
        if any(isinstance(row.get(column.name), Estimate) for row in table.rows):
            parts = ("value", "low", "high", "n", "undefined")
            found += [
                (column.name if part == "value" else f"{column.name}_{part}", column.name, part) for part in parts
            ]
        else:
            found.append((column.name, column.name, ""))
    return found


def _csv_cell(cell: Any, part: str) -> Any:
    value = _plain(cell)
    if isinstance(value, dict):
        value = value[part or "value"]
    elif part not in ("", "value"):
        value = None
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)  # a text, also one that is told in the reader's language
    return f"'{text}" if text.startswith(FORMULA) else text


def _plain(cell: Any) -> Any:
    if isinstance(cell, Estimate):
        return cell.plain() | {"undefined": because(cell.undefined) or None}
    return cell.isoformat() if isinstance(cell, dt.date) else cell  # an instant is a date too


def _line(values: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)  # its line ends, "\r\n", are what makes it quote both
    return buffer.getvalue()
