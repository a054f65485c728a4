"""The audit log: who did what to which thing. Rows are only added; the caller's transaction carries them.

The database itself refuses to change or remove a row (triggers, migration 0005). `entries` reads the log newest first.
"""

import datetime as dt
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import g, has_request_context
from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from access.models import AuditLog

PAGE = 50
LONG = 60  # characters; longer texts are compared word by word
VERY_LONG = 20_000  # and still longer ones are not: that would take seconds


@dataclass(frozen=True)
class Filters:
    """Which entries. Empty fields do not filter.

    Attributes:
        action: a whole action, or the part before its dot with the dot: "person." has all of a person's.
        subject: a whole subject, or its kind with the colon: "rule:" has all rules.
        since: from this instant on.
        until: before this instant.
    """

    actor: str = ""
    action: str = ""
    subject: str = ""
    since: dt.datetime | None = None
    until: dt.datetime | None = None


@dataclass(frozen=True)
class Change:
    """One field of an entry: parts of its text as ("same" | "gone" | "new", text), in reading order."""

    field: str
    parts: list[tuple[str, str]]


def record(
    session: Session,
    actor: str,
    action: str,
    subject: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> AuditLog:
    """Add one entry.

    Args:
        actor: a login, or the name of a process (`access.names.PROCESSES`).
        action: a dotted verb, e.g. "key.revoke".
        subject: what it was done to, e.g. "api_key:7".
        before: the fields that changed, as they were.
        after: the same fields, as they are now. Never a password or a secret.
    """
    entry = AuditLog(actor=actor, action=action, subject=subject, before=before, after=after, via=_via())
    session.add(entry)
    session.flush()
    return entry


def came_by_key(key_id: int) -> None:
    """Note that this request's acts are a program's: entries say by which key."""
    g.api_key_id = key_id


def _via() -> str:
    """How the act that is recorded came here: "browser", "api_key:7", or "process" where there is no request."""
    if not has_request_context():
        return "process"
    return f"api_key:{g.api_key_id}" if "api_key_id" in g else "browser"


def entries(
    session: Session, filters: Filters, before: int | None = None, limit: int = PAGE
) -> tuple[list[AuditLog], int | None]:
    """A page of entries, newest first, and the id that the next page goes on before, or None."""
    query = _filtered(filters)
    if before is not None:
        query = query.where(AuditLog.id < before)
    rows = list(session.scalars(query.order_by(AuditLog.id.desc()).limit(limit + 1)).all())
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def all_entries(session: Session, filters: Filters, batch: int = 1000) -> Iterator[AuditLog]:
    """Every entry of a filter, newest first, read in batches."""
    before: int | None = None
    while True:
        rows, before = entries(session, filters, before, batch)
        yield from rows
        session.expunge_all()
        if before is None:
            return


def actions(session: Session) -> list[str]:
    """The actions that occur, in order: one look into the index for each, however long the log is."""
    found = session.scalars(
        text(
            "WITH RECURSIVE found(action) AS (SELECT min(action) FROM audit_log UNION ALL"
            " SELECT (SELECT min(action) FROM audit_log WHERE audit_log.action > found.action) FROM found"
            " WHERE found.action IS NOT NULL) SELECT action FROM found WHERE action IS NOT NULL"
        )
    )
    return [str(action) for action in found]


def changes(entry: AuditLog) -> list[Change]:
    """What an entry says was changed, field by field."""
    before, after = entry.before or {}, entry.after or {}
    found = []
    for field in [*before, *(name for name in after if name not in before)]:
        if field not in before:
            parts = [("new", _shown(after[field]))]
        elif field not in after:
            parts = [("gone", _shown(before[field]))]
        else:
            parts = _compare(_shown(before[field]), _shown(after[field]))
        found.append(Change(field, parts))
    return found


def _filtered(filters: Filters) -> Select[AuditLog]:
    query = select(AuditLog)
    if filters.actor:
        query = query.where(AuditLog.actor == filters.actor)
    if filters.action:
        prefix = filters.action.endswith(".")
        query = query.where(
            AuditLog.action.startswith(filters.action, autoescape=True) if prefix else AuditLog.action == filters.action
        )
    if filters.subject:
        prefix = filters.subject.endswith(":")
        query = query.where(
            AuditLog.subject.startswith(filters.subject, autoescape=True)
            if prefix
            else AuditLog.subject == filters.subject
        )
    if filters.since is not None:
        query = query.where(AuditLog.at >= filters.since)
    if filters.until is not None:
        query = query.where(AuditLog.at < filters.until)
    return query


def _compare(before: str, after: str) -> list[tuple[str, str]]:
    if before == after:
        return [("same", after)]
    if not LONG < max(len(before), len(after)) <= VERY_LONG:
        return [("gone", before), ("new", after)]
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    parts: list[tuple[str, str]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(old[i:j])))
            continue
        parts += [(name, "".join(words)) for name, words in (("gone", old[i:j]), ("new", new[k:m])) if words]
    return parts


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
