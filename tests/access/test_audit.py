"""The audit log."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.audit import record
from access.models import AuditLog


def test_an_entry_says_who_did_what_to_which_thing(session: Session) -> None:
    record(session, "ana", "rule.edit", "rule:3", before={"severity": 1}, after={"severity": 2})
    entry = session.scalars(select(AuditLog)).one()
    assert (entry.actor, entry.action, entry.subject) == ("ana", "rule.edit", "rule:3")
    assert (entry.before, entry.after) == ({"severity": 1}, {"severity": 2})
    assert entry.at.tzinfo is not None
