"""The audit log for leads and admins: filtered by the URL, newest first, and the same as CSV or JSON."""

import csv
import datetime as dt
import io
import json
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, render_template, request

from access.audit import Filters, actions, all_entries, changes, entries
from access.models import AuditLog
from access.paging import before_id
from access.views import require_role
from core.db import Database
from core.errors import InvalidInput
from core.language import gettext
from core.messages import plain_text
from core.web import runtime

FIELDS = ("id", "at", "actor", "action", "subject", "before", "after", "via")

blueprint = Blueprint("audit", __name__)


@blueprint.get("/audit")
@require_role("lead")
def index() -> str:
    asked = _asked()
    with runtime().db.read() as db:
        rows, older = entries(db, _filters(asked), before_id())
        return render_template(
            "access/audit.html",
            rows=[(row, changes(row)) for row in rows],
            older=older,
            asked=asked,
            actions=actions(db),
            via_word=_via_word,
        )


@blueprint.get("/audit.csv")
@require_role("lead")
def as_csv() -> Response:
    return _download(_csv(runtime().db, _filters(_asked())), "text/csv", "csv")


@blueprint.get("/audit.json")
@require_role("lead")
def as_json() -> Response:
    return _download(_json(runtime().db, _filters(_asked())), "application/json", "json")


def _csv(db: Database, filters: Filters) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line)
    writer.writerow(FIELDS)
    with db.read() as session:
        for entry in all_entries(session, filters):
            writer.writerow([_cell(value) for value in _row(entry).values()])
            if line.tell() > 1 << 16:
                yield line.getvalue()
                line.seek(0)
                line.truncate()
    yield line.getvalue()


def _json(db: Database, filters: Filters) -> Iterator[str]:
    with db.read() as session:
        lead = "["
        for entry in all_entries(session, filters):
            yield f"{lead}\n{json.dumps(_row(entry), ensure_ascii=False)}"
            lead = ","
        yield "\n]\n" if lead == "," else "[]\n"


def _row(entry: AuditLog) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in FIELDS} | {"at": entry.at.isoformat()}


def _cell(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _download(body: Iterator[str], kind: str, ending: str) -> Response:
    answer = Response(body, mimetype=kind)
    answer.headers["Content-Disposition"] = f'attachment; filename="audit-log.{ending}"'
    return answer


def _asked() -> dict[str, str]:
    # Plain, since a file is on its way when the database is asked: PostgreSQL would refuse a NUL only then.
    return {n: plain_text(request.args.get(n, "")).strip() for n in ("actor", "action", "subject", "since", "until")}


def _via_word(via: str) -> str:
    """How an act came, in words."""
    kind, _, key_id = via.partition(":")
    if kind == "api_key":
        return gettext("by API key %(key_id)s", key_id=key_id)
    return gettext("in a browser") if kind == "browser" else gettext("by a process")


def _filters(asked: dict[str, str]) -> Filters:
    since, until = _day(asked, "since", 0), _day(asked, "until", 1)
    return Filters(asked["actor"], asked["action"], asked["subject"], since, until)


def _day(asked: dict[str, str], name: str, later: int) -> dt.datetime | None:
    """The beginning of a day in UTC, or of the one after it."""
    if not asked[name]:
        return None
    try:
        day = dt.datetime.strptime(asked[name], "%Y-%m-%d").replace(tzinfo=dt.UTC)
        return day + dt.timedelta(days=later)
    except (ValueError, OverflowError):
        raise InvalidInput(
            gettext("%(name)s=%(value)r is no day; write it as 2026-11-25", name=name, value=asked[name]), param=name
        ) from None
