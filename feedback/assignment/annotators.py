"""Annotators: how they stand, and what they do not want to see. A lead pauses them and lets them go on."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from access.audit import record
from access.models import Person
from core.db import utcnow
from core.errors import InvalidInput, NotFound
from core.language import N_, gettext
from feedback.models import Annotator, GoldResult, Prompt

BY_LEAD, GO_ON = N_("a lead paused them"), N_("a lead let them go on")
STANDING_WHYS = (
    BY_LEAD,
    GO_ON,
    N_("%(right)s of your last %(n)s tasks with a known answer were answered as known"),
)
"""Why somebody stands as they do, where no lead said it in words of their own."""

MAX_REASON = 500  # characters


def annotator_of(session: Session, person_id: int) -> Annotator:
    """The row of a person, made if it is missing."""
    annotator = session.get(Annotator, person_id)
    if annotator is None:
        annotator = Annotator(person_id=person_id, standing="good", opted_out=[], judged_from=0, risky_n=0)
        session.add(annotator)
        session.flush()
    return annotator


def set_standing(session: Session, annotator: Annotator, standing: str, why: str, actor: str) -> None:
    """Change how somebody stands ("good", "warned", "paused"), with an entry in the audit log.

    Known answers count anew from here: who was warned is judged by what they do about it.
    """
    before = {"standing": annotator.standing, "why": annotator.standing_why}
    newest = select(func.max(GoldResult.judgment_id)).where(GoldResult.annotator_id == annotator.person_id)
    annotator.judged_from = (session.scalar(newest) or 0) + 1
    annotator.standing, annotator.standing_why, annotator.standing_at = standing, why, utcnow()
    session.flush()
    after = {"standing": standing, "why": why}
    record(session, actor, f"annotator.{standing}", f"person:{annotator.person_id}", before, after)


def pause(session: Session, person_id: int, actor: str, reason: str) -> bool:
    """Give an annotator no more tasks until `resume`.

    Returns:
        Whether anything was changed: False where they were paused already.

    Raises:
        NotFound: there is no such person.
    """
    return _set_by_lead(session, person_id, "paused", reason.strip() or BY_LEAD, actor)


def resume(session: Session, person_id: int, actor: str, reason: str) -> bool:
    """Let a warned or paused annotator go on; what they have answered so far is not held against them any more.

    Returns:
        Whether anything was changed: False where they may work already.

    Raises:
        NotFound: there is no such person.
    """
    return _set_by_lead(session, person_id, "good", reason.strip() or GO_ON, actor)


def _set_by_lead(session: Session, person_id: int, standing: str, why: str, actor: str) -> bool:
    annotator = _locked(session, person_id)
    if annotator.standing == standing:
        return False
    set_standing(session, annotator, standing, why[:MAX_REASON], actor)
    return True


def _locked(session: Session, person_id: int) -> Annotator:
    """The row of a person, whose own is held where the database has such locks: of two leads one comes second."""
    if session.get(Person, person_id, with_for_update=True) is None:
        raise NotFound(gettext("there is no person %(person_id)s", person_id=person_id))
    annotator = annotator_of(session, person_id)
    session.refresh(annotator)
    return annotator


def topics(session: Session) -> list[str]:
    """All categories that prompts have, in alphabetical order."""
    found = select(Prompt.category).where(Prompt.category.is_not(None)).distinct().order_by(Prompt.category)
    return [str(category) for category in session.scalars(found)]


def opt_out(session: Session, person_id: int, categories: Iterable[str]) -> Annotator:
    """Set the topics that an annotator is not given.

    Raises:
        InvalidInput: a topic that no prompt has.
    """
    wanted = sorted(set(categories))
    if unknown := set(wanted) - set(topics(session)):
        raise InvalidInput(gettext("there is no topic %(unknown)r", unknown=sorted(unknown)[0]), param="topics")
    annotator = annotator_of(session, person_id)
    annotator.opted_out = wanted
    session.flush()
    return annotator
