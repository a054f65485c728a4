"""Tasks with known answers: what they say of an annotator, who is warned, then paused."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.names import GOLD_CHECK
from core.settings import GoldSettings
from feedback.assignment.annotators import annotator_of, set_standing
from feedback.kinds.frame import JudgmentForm, Said, Shown
from feedback.models import Annotator, Gold, GoldResult


def measure(
    session: Session, shown: Shown, judgment_id: int, said: Said, form: type[JudgmentForm], settings: GoldSettings
) -> GoldResult:
    """Store whether a judgment of a gold task is the known answer, and what follows for the annotator."""
    known = session.get_one(Gold, shown.task_id)
    result = GoldResult(
        judgment_id=judgment_id, task_id=known.task_id, annotator_id=shown.annotator_id,
        passed=form.passes(said, known.expected),
    )  # fmt: skip
    session.add(result)
    session.flush()
    _judge_annotator(session, result.annotator_id, settings)
    return result


def _judge_annotator(session: Session, person_id: int, settings: GoldSettings) -> None:
    annotator = session.get(Annotator, person_id)
    passed = session.scalars(
        select(GoldResult.passed)
        .where(GoldResult.annotator_id == person_id)
        .where(GoldResult.judgment_id >= (annotator.judged_from if annotator else 0))
        .order_by(GoldResult.judgment_id.desc())
        .limit(settings.window)
    ).all()
    if len(passed) < settings.least:
        return
    share = sum(passed) / len(passed)
    standing = "paused" if share < settings.pause_below else "warned" if share < settings.warn_below else "good"
    current = annotator.standing if annotator else "good"
    if current in (standing, "paused"):  # only a lead ends a pause
        return
    why = f"{sum(passed)} of your last {len(passed)} tasks with a known answer were answered as known"
    set_standing(session, annotator_of(session, person_id), standing, why, GOLD_CHECK)
