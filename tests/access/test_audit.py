"""The audit log: what an entry says, that it stays, and how the log is read."""

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from access.audit import Filters, actions, all_entries, changes, entries, record
from access.models import AuditLog
from core.db import Database, utcnow


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database of either kind."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")


def test_an_entry_says_who_did_what_to_which_thing(session: Session) -> None:
    record(session, "ana", "rule.edit", "rule:3", before={"severity": 1}, after={"severity": 2})
    entry = session.scalars(select(AuditLog)).one()
    assert (entry.actor, entry.action, entry.subject) == ("ana", "rule.edit", "rule:3")
    assert (entry.before, entry.after) == ({"severity": 1}, {"severity": 2})
    assert entry.at.tzinfo is not None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'somebody else'",
        "UPDATE audit_log SET actor = actor WHERE id = 1",
        "DELETE FROM audit_log",
        "DELETE FROM audit_log WHERE id = 1",
        "TRUNCATE audit_log",
        "INSERT OR REPLACE INTO audit_log (id, at, actor, action, subject) VALUES (1, '2026-01-01', 'x', 'x', 'x')",
        "INSERT INTO audit_log (id, at, actor, action, subject) VALUES (1, '2026-01-01', 'x', 'x', 'x')"
        " ON CONFLICT (id) DO UPDATE SET actor = 'x'",
    ],
)
def test_the_database_refuses_to_change_or_remove_an_entry(db: Database, statement: str) -> None:
    with db.session() as session:
        record(session, "ana", "rule.edit", "rule:3", after={"severity": 2})
    if db.is_sqlite and statement.startswith("TRUNCATE"):
        return  # it has no such statement
    with pytest.raises(DBAPIError) as caught, db.session() as session:
        session.execute(text(statement))
    if not (not db.is_sqlite and "OR REPLACE" in statement):  # PostgreSQL does not know that one
        assert "append-only" in str(caught.value)
    with db.session() as session:
        assert session.scalars(select(AuditLog.actor)).all() == ["ana"]
        record(session, "ben", "rule.edit", "rule:3")  # and goes on taking new ones
        assert len(session.scalars(select(AuditLog.id)).all()) == 2


def fill(session: Session) -> None:
    for n in range(7):
        record(session, ("ana", "ben")[n % 2], ("rule.edit", "rule.add", "key.add")[n % 3], f"rule:{n}")
    record(session, "ana", "rules.edit", "rules:1")
    record(session, "a%", "rule_.x", "rule_:1")


def test_filters(session: Session) -> None:
    fill(session)

    def found(**filters: object) -> int:
        return len(entries(session, Filters(**filters))[0])

    assert found() == 9
    assert found(actor="ana") == 5
    assert found(actor="a%") == 1
    assert found(action="rule.edit") == 3
    assert found(action="rule.") == 5
    assert found(action="rule_.") == 1
    assert found(subject="rule:3") == 1
    assert found(subject="rule:") == 7
    assert found(actor="ben", action="rule.") == 2
    now = utcnow()
    assert found(since=now - dt.timedelta(hours=1), until=now + dt.timedelta(hours=1)) == 9
    assert found(since=now + dt.timedelta(hours=1)) == found(until=now - dt.timedelta(hours=1)) == 0


def test_pages_join_without_gap_or_repeat_while_the_log_grows(session: Session) -> None:
    fill(session)
    seen, before = [], None
    while True:
        rows, before = entries(session, Filters(), before, limit=4)
        seen += [row.id for row in rows]
        if before is None:
            break
        record(session, "late", "comes.meanwhile", "x")
    assert seen == list(range(9, 0, -1))
    assert [row.id for row in all_entries(session, Filters(actor="ana"), batch=2)] == [8, 7, 5, 3, 1]


def test_actions_are_found_by_the_index(db: Database) -> None:
    with db.session() as session:
        assert actions(session) == []
        fill(session)
        assert actions(session) == ["key.add", "rule.add", "rule.edit", "rule_.x", "rules.edit"]


def said(before: dict[str, object] | None, after: dict[str, object] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(c.field, c.parts) for c in changes(AuditLog(before=before, after=after))]


def test_changes_are_told_field_by_field() -> None:
    assert said(None, None) == []
    assert said({"role": "annotator"}, {"role": "lead"}) == [("role", [("gone", "annotator"), ("new", "lead")])]
    assert said({"active": True, "n": 1}, {"active": True}) == [
        ("active", [("same", "true")]),
        ("n", [("gone", "1")]),
    ]
    assert said(None, {"tags": ["ä", None]}) == [("tags", [("new", '["ä", null]')])]


def test_long_texts_are_compared_word_by_word() -> None:
    before = "Never threaten anybody. Never claim to be a person. Give no medical advice beyond first aid."
    after = before.replace("threaten", "insult or threaten").replace(" beyond first aid", "")
    [(_, parts)] = said({"text": before}, {"text": after})
    assert "".join(words for kind, words in parts if kind != "new") == before
    assert "".join(words for kind, words in parts if kind != "gone") == after
    assert ("new", "insult or ") in parts or ("new", "insult or") in [(k, w.strip()) for k, w in parts]
    assert sum(len(words) for kind, words in parts if kind == "same") > len(after) * 0.7
    huge = "word " * 10_000
    assert [kind for kind, _ in said({"text": huge}, {"text": huge + "x"})[0][1]] == ["gone", "new"]
