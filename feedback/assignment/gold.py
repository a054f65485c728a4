"""Tasks with known answers: what they say of an annotator, who is warned first, and paused if it goes on."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.names import GOLD_CHECK
from core.settings import GoldSettings
from feedback.assignment.annotators import annotator_of, set_standing
from feedback.kinds.frame import JudgmentForm, Said, Shown
from feedback.models import Annotator, Assignment, Gold, GoldResult, Judgment, Task


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


def measure_skip(session: Session, person_id: int, settings: GoldSettings) -> None:
    """What follows for an annotator from a task with a known answer that they have just skipped."""
    _judge_annotator(session, person_id, settings)


def _judge_annotator(session: Session, person_id: int, settings: GoldSettings) -> None:
    annotator = session.get(Annotator, person_id)
    current = annotator.standing if annotator else "good"
    if current == "paused":  # only a lead ends a pause
        return
    passed, n = _passed(session, person_id, annotator, settings)
    if n < min(settings.window, settings.after_warning if current == "warned" else settings.least):
        return
    share = passed / n
    if current == "good":
        standing = "warned" if share < max(settings.warn_below, settings.pause_below) else "good"
    else:
        standing = "paused" if share < settings.pause_below else "warned" if share < settings.warn_below else "good"
    if standing != current:
        why = f"{passed} of your last {n} tasks with a known answer were answered as known"
        set_standing(session, annotator_of(session, person_id), standing, why, GOLD_CHECK)


def _passed(session: Session, person_id: int, annotator: Annotator | None, settings: GoldSettings) -> tuple[int, int]:
    """Of the newest tasks with a known answer since the standing last changed: how many were passed, of how many that count.

    Those that were skipped count as not passed, but for the first `skips_free` of them; what may upset is skipped freely.
    """
    answers = session.execute(
        select(GoldResult.passed, Judgment.assignment_id)
        .join(Judgment, Judgment.id == GoldResult.judgment_id)
        .where(GoldResult.annotator_id == person_id)
        .where(GoldResult.judgment_id >= (annotator.judged_from if annotator else 0))
        .order_by(GoldResult.judgment_id.desc())
        .limit(settings.window)
    ).all()
    skips = (
        select(Assignment.id)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.annotator_id == person_id, Assignment.state == "skipped", Task.pool == "gold", ~Task.risky)
        .where(~Assignment.skip_reason.startswith("flagged:"))  # leads look at those
        .order_by(Assignment.id.desc())
        .limit(settings.window)
    )
    if annotator is not None and annotator.standing_at is not None:
        skips = skips.where(Assignment.created_at > annotator.standing_at)
    if len(answers) == settings.window:
        skips = skips.where(Assignment.id > min(row.assignment_id for row in answers))
    outcomes = [(row.assignment_id, row.passed) for row in answers] + [(n, None) for n in session.scalars(skips)]
    newest = [outcome for _, outcome in sorted(outcomes, key=lambda each: each[0], reverse=True)[: settings.window]]
    skipped = max(0, newest.count(None) - settings.skips_free)
    return newest.count(True), newest.count(True) + newest.count(False) + skipped
