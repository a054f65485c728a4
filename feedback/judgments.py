"""Judgments: what annotators and users say, stored append-only. In: forms as shown. Out: rows in terms of a and b.

Nothing that was submitted is dropped: a late judgment that finds its task full is kept as surplus, and a changed
mind is a new judgment that names the one it supersedes. A scripted person's judgment is always `simulated`.
"""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.models import Person
from core.errors import Conflict, InvalidInput, NotFound
from feedback.drafts import drop_draft, load_draft, save_draft
from feedback.forms import PairwiseForm, RuleVerdict, plain_text
from feedback.leases import find_assignment, finish, lock_annotator
from feedback.models import Assignment, Completion, Correction, Judgment, RuleJudgment, RuleVersion, Task

__all__ = [
    "PairwiseForm",
    "RuleVerdict",
    "last_judgment",
    "load_draft",
    "record_feedback",
    "save_draft",
    "submit_pairwise",
    "undo_last",
]

MAX_ONCE_LENGTH = 100  # the column has 120; record_feedback adds ":correction"


def submit_pairwise(
    session: Session,
    *,
    token: str,
    annotator_id: int,
    form: PairwiseForm,
    latency_s: float | None,
    once: str | None = None,
) -> Judgment:
    """Store the judgment of an assignment and count it towards its task.

    Args:
        token: the assignment's lease token; a lease that ran out is no reason to refuse.
        latency_s: seconds from showing the task to submitting.
        once: a name of this act; a second submit with the same one returns the first judgment.

    Raises:
        NotFound: the token is not the annotator's.
        Conflict: the assignment was judged before (under another `once`) or skipped.
        InvalidInput: a rule version does not exist.
    """
    person = lock_annotator(session, annotator_id)
    assignment = find_assignment(session, token, annotator_id, lock=True)
    if assignment.state in ("done", "surplus"):
        return _first_judgment(session, assignment, once)
    if assignment.state == "skipped":
        raise Conflict(f"this task is {assignment.state}; open /annotate for your next one")
    counted = finish(session, assignment)
    judgment = _pairwise(assignment, person, form)
    judgment.latency_s, judgment.once, judgment.surplus = latency_s, _checked_once(once), not counted
    _add(session, judgment)
    _add_details(session, judgment, assignment, form)
    drop_draft(session, assignment)
    return judgment


def last_judgment(session: Session, annotator_id: int) -> Judgment | None:
    """The annotator's newest pairwise judgment, which is the one that undo takes back."""
    return session.scalar(
        select(Judgment)
        .where(Judgment.annotator_id == annotator_id, Judgment.kind == "pairwise", Judgment.assignment_id.is_not(None))
        .order_by(Judgment.id.desc())
        .limit(1)
    )


def undo_last(
    session: Session,
    annotator_id: int,
    form: PairwiseForm,
    *,
    supersedes_id: int | None = None,
    latency_s: float | None = None,
    once: str | None = None,
) -> Judgment:
    """Judge the last task again: a new judgment supersedes the newest one, which stays as it is.

    Args:
        supersedes_id: the judgment that the annotator saw and means; none means whichever is newest.

    Raises:
        NotFound: the annotator has judged nothing.
        Conflict: `supersedes_id` is not the newest judgment any more.
    """
    person = lock_annotator(session, annotator_id)
    if once is not None and (done := _judgment_once(session, once, annotator_id)) is not None:
        return done
    last = last_judgment(session, annotator_id)
    if last is None:
        raise NotFound("you have not judged anything yet, so there is nothing to undo")
    if supersedes_id is not None and last.id != supersedes_id:
        raise Conflict("you have judged something since; only the last judgment can be changed")
    assignment = session.get_one(Assignment, last.assignment_id)
    judgment = _pairwise(assignment, person, form)
    judgment.latency_s, judgment.once = latency_s, _checked_once(once)
    judgment.supersedes_id, judgment.surplus = last.id, last.surplus
    _add(session, judgment)
    _add_details(session, judgment, assignment, form)
    return judgment


def record_feedback(  # noqa: PLR0913 (each is one thing that can be said)
    session: Session,
    *,
    completion_id: str,
    annotator_id: int | None,
    thumbs: int | None = None,
    rating: int | None = None,
    correction: str | None = None,
    note: str | None = None,
    once: str | None = None,
    simulated: bool | None = None,
) -> list[Judgment]:
    """Store what somebody says of one completion: thumbs (-1, 1), a rating (1 … 5), a corrected text, in any mix.

    Args:
        annotator_id: who says it; None where the API is open.
        note: goes with the first judgment that is made.
        once: a name of this act; a second call with it returns the first judgments.
        simulated: True for a program's judgment. A scripted person's are simulated whatever is said here.

    What the same person said before in the same way (thumbs, rating, correction) is superseded.

    Returns:
        One judgment for each of thumbs, rating and correction that was given, in this order.

    Raises:
        NotFound: unknown completion or person.
        InvalidInput: nothing was said, a value is out of range, or the correction changes nothing.
        Conflict: `once` was used for another completion or by somebody else.
    """
    person = None if annotator_id is None else lock_annotator(session, annotator_id)
    completion = session.get(Completion, completion_id)
    if completion is None:
        raise NotFound(f"there is no completion {completion_id!r}", param="completion_id")
    once = _checked_once(once)
    if once is not None and (found := _feedback_once(session, once, completion_id, annotator_id)):
        return found
    said = _checked_feedback(completion, thumbs, rating, correction)
    judgments: list[Judgment] = []
    for kind, value in said.items():
        judgment = Judgment(kind=kind, completion_id=completion_id, annotator_id=annotator_id)
        judgment.simulated = bool(simulated) or (person is not None and person.scripted)
        judgment.supersedes_id = _said_before(session, judgment)
        judgment.once = None if once is None else f"{once}:{kind}"
        judgment.note = plain_text(note) if note and not judgments else None
        if kind != "correction":
            setattr(judgment, kind, value)
        _add(session, judgment)
        if kind == "correction":
            session.add(Correction(judgment_id=judgment.id, completion_id=completion_id, text=str(value)))
        judgments.append(judgment)
    session.flush()
    return judgments


def _pairwise(assignment: Assignment, person: Person, form: PairwiseForm) -> Judgment:
    choice: str = form.choice
    if choice in ("left", "right"):
        choice = "a" if (choice == "left") == assignment.left_is_a else "b"
    return Judgment(
        kind="pairwise",
        task_id=assignment.task_id,
        assignment_id=assignment.id,
        annotator_id=person.id,
        choice=choice,
        strength=form.strength,
        note=plain_text(form.note).strip() or None if form.note else None,
        simulated=person.scripted,
    )


def _add(session: Session, judgment: Judgment) -> None:
    try:
        with session.begin_nested():
            session.add(judgment)
            session.flush()
    except IntegrityError as error:
        raise Conflict("this name (`once`) belongs to another judgment; use a new one for a new act") from error


def _add_details(session: Session, judgment: Judgment, assignment: Assignment, form: PairwiseForm) -> None:
    task = session.get_one(Task, assignment.task_id)
    a, b = task.completion_a_id, task.completion_b_id
    shown = {"left": a, "right": b} if assignment.left_is_a else {"left": b, "right": a}
    _check_rule_versions(session, (v.rule_version_id for v in form.rule_verdicts))
    for verdict in form.rule_verdicts:
        session.add(
            RuleJudgment(
                judgment_id=judgment.id,
                rule_version_id=verdict.rule_version_id,
                completion_id=shown[verdict.side],
                verdict=verdict.verdict,
                span=plain_text(verdict.span).strip() or None if verdict.span else None,
            )
        )
    for side, text in form.corrections.items():
        completion = session.get_one(Completion, shown[side])
        edited = plain_text(str(text)).strip()
        if edited and edited != plain_text(completion.text).strip():
            session.add(Correction(judgment_id=judgment.id, completion_id=completion.id, text=edited))
    session.flush()


def _check_rule_versions(session: Session, ids: Iterable[int]) -> None:
    wanted = set(ids)
    known = set(session.scalars(select(RuleVersion.id).where(RuleVersion.id.in_(wanted)))) if wanted else set()
    if wanted - known:
        raise InvalidInput(f"there are no rule versions {sorted(wanted - known)}", param="rule_verdicts")


def _first_judgment(session: Session, assignment: Assignment, once: str | None) -> Judgment:
    first = session.scalars(
        select(Judgment).where(Judgment.assignment_id == assignment.id).order_by(Judgment.id).limit(1)
    ).one()
    if once is None or first.once != once:
        raise Conflict("you have judged this task already; undo (z) opens it again")
    return first


def _judgment_once(session: Session, once: str, annotator_id: int) -> Judgment | None:
    found = session.scalar(select(Judgment).where(Judgment.once == once))
    return found if found is not None and found.annotator_id == annotator_id else None


def _feedback_once(session: Session, once: str, completion_id: str, annotator_id: int | None) -> list[Judgment]:
    names = [f"{once}:{kind}" for kind in ("thumbs", "rating", "correction")]
    found = list(session.scalars(select(Judgment).where(Judgment.once.in_(names)).order_by(Judgment.id)))
    if any((j.completion_id, j.annotator_id) != (completion_id, annotator_id) for j in found):
        raise Conflict("this name (`once`) belongs to other feedback; use a new one for a new act", param="once")
    return found


def _said_before(session: Session, judgment: Judgment) -> int | None:
    """Id of what the same person last said in this way of the same completion; None where nobody is named."""
    if judgment.annotator_id is None:
        return None
    return session.scalar(
        select(Judgment.id)
        .where(
            Judgment.completion_id == judgment.completion_id,
            Judgment.annotator_id == judgment.annotator_id,
            Judgment.kind == judgment.kind,
            Judgment.simulated == judgment.simulated,
        )
        .order_by(Judgment.id.desc())
        .limit(1)
    )


def _checked_once(once: str | None) -> str | None:
    if once is not None and not (1 <= len(once) <= MAX_ONCE_LENGTH and once.isprintable()):
        raise InvalidInput(f"`once` has 1 to {MAX_ONCE_LENGTH} printable characters", param="once")
    return once


def _checked_feedback(
    completion: Completion, thumbs: int | None, rating: int | None, correction: str | None
) -> dict[str, int | str]:
    said: dict[str, int | str] = {}
    if thumbs is not None:
        if thumbs not in (-1, 1):
            raise InvalidInput(f"thumbs is {thumbs!r}; it is 1 (up) or -1 (down)", param="thumbs")
        said["thumbs"] = thumbs
    if rating is not None:
        if rating not in range(1, 6):
            raise InvalidInput(f"rating is {rating!r}; it is a whole number from 1 to 5", param="rating")
        said["rating"] = rating
    if correction is not None:
        edited = plain_text(correction).strip()
        if not edited or edited == plain_text(completion.text).strip():
            raise InvalidInput("the correction is empty or equals the completion", param="correction")
        said["correction"] = edited
    if not said:
        raise InvalidInput("say something: thumbs, rating or correction")
    return said
