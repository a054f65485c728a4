"""The audit log: who did what to which thing. Rows are only added; the caller's transaction carries them."""

from typing import Any

from sqlalchemy.orm import Session

from access.models import AuditLog


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
        actor: a login, or the name of a process such as "worker".
        action: a dotted verb, e.g. "key.revoke".
        subject: what it was done to, e.g. "api_key:7".
        before: the fields that changed, as they were.
        after: the same fields, as they are now. Never a password or a secret.
    """
    entry = AuditLog(actor=actor, action=action, subject=subject, before=before, after=after)
    session.add(entry)
    session.flush()
    return entry
