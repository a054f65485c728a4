"""Drafts: what an annotator has typed but not submitted, kept by assignment until the submit."""

from typing import Any

from sqlalchemy import bindparam, delete
from sqlalchemy.orm import Session

from access.people import lock_person
from core.db import expire_known, table_of, utcnow
from core.errors import Conflict, InvalidInput
from core.language import gettext
from core.messages import plain_text
from feedback.assignment.leases import STATE_WORDS, find_assignment
from feedback.models import Draft

MAX_DRAFT_CHARACTERS = 200_000
DROP = delete(table_of(Draft)).where(table_of(Draft).c.assignment_id == bindparam("of_assignment"))


def save_draft(session: Session, token: str, annotator_id: int, form: dict[str, Any]) -> Draft:
    """Keep what is typed but not submitted.

    Raises:
        Conflict: the assignment was submitted or skipped, so there is nothing to keep a draft for.
        InvalidInput: it is far longer than any judgment.
    """
    lock_person(session, annotator_id)
    assignment = find_assignment(session, token, annotator_id, lock=True)
    if assignment.state not in ("live", "expired"):
        raise Conflict(
            gettext(
                "this task is %(state)s; its draft is not needed any more",
                state=gettext(STATE_WORDS.get(assignment.state, assignment.state)),
            )
        )
    clean = _clean(form)
    if len(str(clean)) > MAX_DRAFT_CHARACTERS:
        raise InvalidInput(
            gettext("a draft is at most %(most)s characters; the one before is kept", most=MAX_DRAFT_CHARACTERS)
        )
    draft = session.get(Draft, assignment.id)
    if draft is None:
        draft = Draft(assignment_id=assignment.id)
        session.add(draft)
    draft.form, draft.saved_at = clean, utcnow()
    session.flush()
    return draft


def load_draft(session: Session, token: str, annotator_id: int) -> dict[str, Any]:
    """The draft of an assignment; empty when nothing was typed."""
    draft = session.get(Draft, find_assignment(session, token, annotator_id).id)
    return {} if draft is None else draft.form


def drop_draft(session: Session, assignment_id: int) -> None:
    """Forget the draft of an assignment that was submitted."""
    session.connection().execute(DROP, {"of_assignment": assignment_id})
    expire_known(session, Draft, assignment_id)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, dict):
        return {plain_text(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value if isinstance(value, bool | int | float) else None
