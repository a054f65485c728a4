"""Judgments: what annotators and users say, stored append-only. In: forms as shown. Out: rows in terms of positions.

Nothing that was submitted is dropped: a late judgment that finds its task full is kept as surplus, and a changed
mind is a new judgment that names the one it supersedes. A scripted person's judgment is always `simulated`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, exists, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from access.people import LockedPerson, lock_person
from core.db import table_of
from core.errors import Conflict, Forbidden, InvalidInput, NotFound
from core.language import N_, gettext
from core.messages import plain_text
from core.settings import GoldSettings
from feedback.assignment.gold import measure
from feedback.assignment.leases import finish, may_see
from feedback.assignment.shown import asked_in, find_shown, load_shown
from feedback.blind import Blind
from feedback.consent import may_be_learnt
from feedback.drafts import drop_draft
from feedback.kinds import form_of
from feedback.kinds.frame import Finding, JudgmentForm, Said, Shown, quoted
from feedback.models import Assignment, Completion, Correction, Judgment, RuleJudgment, RuleVersion, Task
from feedback.sampled import within_budget
from feedback.tasks import copy_task, create_task, is_made
from feedback.webhooks.events import judgment_added

REUSED = "idempotency_key_reused"
OTHERWISE = N_("this idempotency key was used with other content, which is kept; use a new key for a new act")
ONCE_TAKEN = N_("this name (`once`) belongs to another judgment; use a new one for a new act")
JUDGMENT = table_of(Judgment)
LATER = JUDGMENT.alias()
INSERT = insert(JUDGMENT).returning(JUDGMENT.c.id)
STANDS = ~JUDGMENT.c.surplus & ~exists().where(LATER.c.supersedes_id == JUDGMENT.c.id)
STANDING = select(Judgment).where(JUDGMENT.c.task_id == bindparam("of_task"), STANDS).order_by(JUDGMENT.c.id)
STANDING_ROWS = (
    select(*(JUDGMENT.c[name] for name in ("choice", "strength", "rating", "answer", "note")))
    .where(JUDGMENT.c.task_id == bindparam("of_task"), STANDS)
    .order_by(JUDGMENT.c.id)
)
MAX_ONCE_LENGTH = 100
FEEDBACK = ("thumbs", "rating", "correction")
OF_TENANTS_TOO = ("reviewer", "lead", "admin")
"""Roles that speak of tenants' completions outside of tasks; in tasks everybody meets them."""


@dataclass(frozen=True)
class Stored:
    """A judgment that is in the database."""

    id: int
    surplus: bool


def submit_judgment(
    session: Session, *, token: str, annotator_id: int, form: JudgmentForm, latency_s: float | None, **more: Any
) -> Judgment:
    """As `store_judgment`, for a person by id, as a row."""
    who = lock_person(session, annotator_id)
    stored = store_judgment(session, token=token, who=who, form=form, latency_s=latency_s, **more)
    return session.get_one(Judgment, stored.id)


def store_judgment(
    session: Session,
    *,
    token: str,
    who: LockedPerson,
    form: JudgmentForm,
    latency_s: float | None,
    once: str | None = None,
    gold: GoldSettings | None = None,
    adjudicate: bool = False,
) -> Stored:
    """Store the judgment of an assignment and count it towards its task.

    Args:
        token: the assignment's lease token; a lease that ran out is no reason to refuse.
        latency_s: seconds from showing the task to submitting.
        once: a name of this act; a second submit with the same one that says the same returns the first judgment.
        gold: what follows from a wrong answer to a task whose answer is known; the defaults when left out.
        adjudicate: ask a reviewer to settle the task when this judgment is its last and contradicts another.

    Raises:
        NotFound: the token is not the annotator's, or a completion that a probe names does not exist.
        Conflict: the assignment was judged before (under another `once`, or otherwise) or skipped.
        InvalidInput: the form is of another kind of task, or speaks of what was not shown.
    """
    shown = find_shown(session, token, who.id, lock=True)
    if shown.state in ("done", "surplus"):
        return _first_judgment(session, shown, form, once)
    if shown.state == "skipped":
        raise Conflict(gettext("this task is skipped; open /annotate for your next one"))
    _check_may_see(who, shown)
    said = _said(session, form, shown)
    finished = finish(session, shown)
    values = {
        **said.columns(), "kind": shown.kind, "task_id": shown.task_id, "assignment_id": shown.assignment_id,
        "annotator_id": who.id, "simulated": who.scripted, "surplus": not finished.counted, "latency_s": latency_s,
        "once": _checked_once(once),
    }  # fmt: skip
    try:
        judgment_id: int = session.connection().execute(INSERT, values).scalar_one()
    except IntegrityError as error:  # the caller's transaction ends with it
        raise Conflict(gettext(ONCE_TAKEN)) from error
    _add_details(session, judgment_id, said)
    judgment_added(session, judgment_id)
    if shown.has_draft:
        drop_draft(session, shown.assignment_id)
    if shown.pool == "gold":
        measure(session, shown, judgment_id, said, form_of(shown.kind), gold or GoldSettings())
    elif adjudicate and finished.last and shown.required_n > 1:
        _ask_reviewer(session, shown)
    return Stored(judgment_id, not finished.counted)


def last_judgment(session: Session, annotator_id: int) -> Judgment | None:
    """The annotator's newest judgment of a task, which is the one that undo takes back."""
    return session.scalar(
        select(Judgment)
        .where(Judgment.annotator_id == annotator_id, Judgment.assignment_id.is_not(None))
        .order_by(Judgment.id.desc())  # clocks go back, ids do not
        .limit(1)
    )


def undo_last(
    session: Session,
    annotator_id: int,
    form: JudgmentForm,
    *,
    supersedes_id: int | None = None,
    latency_s: float | None = None,
    once: str | None = None,
    adjudicate: bool = False,
) -> Judgment:
    """Judge the last task again: a new judgment supersedes the newest one, which stays as it is.

    Of a task with a known answer the first judgment is what counts for the annotator.

    Args:
        supersedes_id: the judgment that the annotator saw and means; none means whichever is newest.
        adjudicate: as in `store_judgment`.

    Raises:
        NotFound: the annotator has judged nothing.
        Forbidden: it settled a disagreement, and the annotator is no reviewer any more.
        Conflict: `supersedes_id` is not the newest judgment any more.
        InvalidInput: see `submit_judgment`.
    """
    who = lock_person(session, annotator_id)
    if once is not None and (done := _judgment_once(session, once, annotator_id)) is not None:
        return done
    last = last_judgment(session, annotator_id)
    if last is None:
        raise NotFound(gettext("you have not judged anything yet, so there is nothing to undo"))
    if supersedes_id is not None and last.id != supersedes_id:
        raise Conflict(gettext("you have judged something since; only the last judgment can be changed"))
    shown = load_shown(session, session.get_one(Assignment, last.assignment_id))
    _check_may_see(who, shown)
    said = _said(session, form, shown)
    judgment = Judgment(
        **said.columns(), kind=shown.kind, task_id=shown.task_id, assignment_id=shown.assignment_id, annotator_id=who.id,
        simulated=who.scripted, surplus=last.surplus, latency_s=latency_s, once=_checked_once(once), supersedes_id=last.id,
    )  # fmt: skip
    _add(session, judgment)
    _add_details(session, judgment.id, said)
    if adjudicate and shown.required_n > 1 and session.get_one(Task, shown.task_id).state == "done":
        _ask_reviewer(session, shown)
    return judgment


def read_said(session: Session, judgments: Sequence[Judgment]) -> list[Said]:
    """What these judgments say, each with its findings and edits; two statements however many they are."""
    ids = [judgment.id for judgment in judgments]
    findings: dict[int, list[Finding]] = {number: [] for number in ids}
    for row in session.scalars(select(RuleJudgment).where(RuleJudgment.judgment_id.in_(ids)).order_by(RuleJudgment.id)):
        finding = Finding(row.rule_version_id, row.completion_id, row.verdict, row.confidence, row.span)
        findings[row.judgment_id].append(finding)
    edits: dict[int, list[tuple[str, str]]] = {number: [] for number in ids}
    for edit in session.scalars(select(Correction).where(Correction.judgment_id.in_(ids)).order_by(Correction.id)):
        edits[edit.judgment_id].append((edit.completion_id, edit.text))
    return [
        Said(j.choice, j.strength, j.rating, j.answer, j.note, tuple(findings[j.id]), tuple(edits[j.id]))
        for j in judgments
    ]


def standing_judgments(session: Session, task_id: int) -> list[Judgment]:
    """The judgments of a task that count: not superseded, not surplus; oldest first."""
    return list(session.scalars(STANDING, {"of_task": task_id}))


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
    tenant_id: int | None = None,
    most_flagged: int = 0,
) -> list[Judgment]:
    """Store what somebody says of one completion: thumbs (-1, 1), a rating (1 … 5), a corrected text, in any mix.

    Args:
        annotator_id: who says it; None where the API is open.
        note: goes with the first judgment that is made.
        once: the person's name of this act; a second call with it that says the same returns the first judgments.
        simulated: True for a program's judgment. A scripted person's are simulated whatever is said here.
        tenant_id: whose key it is said by; None for the house. Tenants speak of their own completions only; of tenants'
            completions, reviewers, leads and admins of the house do too.
        most_flagged: what was disliked becomes a task while there are fewer of these today; 0: always.

    What the same person said before in the same way (thumbs, rating, correction) is superseded.

    Returns:
        One judgment for each of thumbs, rating and correction that was given, in this order.

    Raises:
        NotFound: unknown completion or person, or a completion of others; the answer does not tell which.
        InvalidInput: nothing was said, a value is out of range, or the correction changes nothing.
        Conflict: the same person (or nobody) said something else under this `once`.
    """
    person = None if annotator_id is None else lock_person(session, annotator_id)
    completion = session.get(Completion, completion_id)
    if completion is None or not _may_speak_of(completion, tenant_id, person):
        raise NotFound(
            gettext("there is no completion %(completion_id)r", completion_id=completion_id), param="completion_id"
        )
    said = _checked_feedback(completion, thumbs, rating, correction)
    note = plain_text(note) if note else None
    once = _own_once(_checked_once(once), annotator_id)
    if once is not None and (found := _feedback_once(session, once, completion_id, said, note)):
        return found
    judgments: list[Judgment] = []
    for kind, value in said.items():
        judgment = Judgment(kind=kind, completion_id=completion_id, annotator_id=annotator_id)
        judgment.simulated = bool(simulated) or (person is not None and person.scripted)
        judgment.supersedes_id = _said_before(session, judgment)
        judgment.once = once and f"{once}:{kind}"
        judgment.note = note if not judgments else None
        if kind != "correction":
            setattr(judgment, kind, value)
        _add(session, judgment)
        if kind == "correction":
            session.add(Correction(judgment_id=judgment.id, completion_id=completion_id, text=str(value)))
        judgments.append(judgment)
    session.flush()
    if thumbs == -1 and not judgments[0].simulated:
        _ask_about(session, completion, most_flagged)
    return judgments


def _ask_about(session: Session, completion: Completion, most: int) -> None:
    """Ask annotators about a reply that a user did not like; once, however many say so."""
    source = f"flagged:{completion.id}"
    if may_be_learnt(completion) and not is_made(session, source) and within_budget(session, "flagged", most):
        create_task(
            session, "rating", completion.prompt_id, [completion.id], source=source, pool="flagged",
            why="a user did not like this reply",
        )  # fmt: skip


def _may_speak_of(completion: Completion, tenant_id: int | None, person: LockedPerson | None) -> bool:
    if tenant_id is not None or completion.tenant_id is None:
        return completion.tenant_id == tenant_id
    return person is not None and person.role in OF_TENANTS_TOO


def _check_may_see(who: LockedPerson, shown: Shown) -> None:
    if not may_see(who.role, shown.pool):
        raise Forbidden(gettext("disagreements are settled by reviewers, and you are none any more"))


def _said(session: Session, form: JudgmentForm, shown: Shown) -> Said:
    """What a form says of what was shown, checked against the database."""
    if shown.kind != form.KIND:
        raise InvalidInput(
            gettext("this task is of the kind %(kind)s, the judgment is %(other)s", kind=shown.kind, other=form.KIND),
            param="kind",
        )
    said = form.said(shown)
    _check_rule_versions(session, (finding.rule_version_id for finding in said.findings))
    return _checked_turns(session, shown, said) if shown.kind == "probe" else said


def _add(session: Session, judgment: Judgment) -> None:
    session.add(judgment)
    try:
        session.flush()
    except IntegrityError as error:  # the caller's transaction ends with it
        raise Conflict(gettext(ONCE_TAKEN)) from error
    judgment_added(session, judgment.id)


def _add_details(session: Session, judgment_id: int, said: Said) -> None:
    if not (said.findings or said.edits):
        return
    for finding in said.findings:
        session.add(RuleJudgment(judgment_id=judgment_id, **vars(finding)))
    for completion_id, text in said.edits:
        session.add(Correction(judgment_id=judgment_id, completion_id=completion_id, text=text))
    session.flush()


def _checked_turns(session: Session, shown: Shown, said: Said) -> Said:
    """A probe's replies are those that the policy gave this annotator after the task was handed out; quotes stand in them."""
    ids = [finding.completion_id for finding in said.findings]
    known = select(Completion.id, Completion.text).where(Completion.id.in_(ids), *asked_in(shown))
    texts = {row.id: Blind.of(row.text) for row in session.execute(known)}
    if missing := set(ids) - set(texts):
        raise NotFound(
            gettext("no reply of this probe is %(missing)r; the chat API names them", missing=sorted(missing)[0]),
            param="turns",
        )
    findings = (replace(each, span=quoted(each.span, texts[each.completion_id])) for each in said.findings)
    return replace(said, findings=tuple(findings))


def _ask_reviewer(session: Session, shown: Shown) -> None:
    """Make a task for a reviewer out of one whose judgments contradict each other; they are asked once."""
    if shown.pool == "adjudication":
        return
    form = form_of(shown.kind)
    if form.NEEDS_RULE:
        acts = read_said(session, standing_judgments(session, shown.task_id))
    else:  # findings and edits contradict nothing here
        session.flush()
        rows = session.connection().execute(STANDING_ROWS, {"of_task": shown.task_id})
        acts = [Said(*row) for row in rows]
    if form.disagree(acts):
        source, why = f"adjudication:{shown.task_id}", f"{len(acts)} people disagree"
        copy_task(session, shown.task_id, source=source, pool="adjudication", why=why)


def _check_rule_versions(session: Session, ids: Iterable[int]) -> None:
    wanted = set(ids)
    known = set(session.scalars(select(RuleVersion.id).where(RuleVersion.id.in_(wanted)))) if wanted else set()
    if wanted - known:
        raise InvalidInput(
            gettext("there are no rule versions %(ids)s", ids=sorted(wanted - known)), param="rule_verdicts"
        )


def _first_judgment(session: Session, shown: Shown, form: JudgmentForm, once: str | None) -> Stored:
    first = session.scalars(
        select(Judgment).where(Judgment.assignment_id == shown.assignment_id).order_by(Judgment.id).limit(1)
    ).one()
    if once is None or first.once != once:
        raise Conflict(gettext("you have judged this task already; undo (z) opens it again"))
    if not _says(session, first, _said(session, form, shown)):
        raise Conflict(gettext(OTHERWISE), code=REUSED, param="idempotency_key")
    return Stored(first.id, first.surplus)


def _says(session: Session, judgment: Judgment, said: Said) -> bool:
    """Whether this is what a judgment says, as far as the database tells it."""
    (stored,) = read_said(session, [judgment])
    return replace(stored, answer=None) == replace(said, answer=None) and (
        json.dumps(stored.answer, sort_keys=True) == json.dumps(said.answer, sort_keys=True)
    )


def _judgment_once(session: Session, once: str, annotator_id: int) -> Judgment | None:
    found = session.scalar(select(Judgment).where(Judgment.once == once))
    return found if found is not None and found.annotator_id == annotator_id else None


def _own_once(once: str | None, annotator_id: int | None) -> str | None:
    """A name that somebody gave an act, as theirs alone: others may use the same words."""
    return once and f"feedback:{annotator_id or 'open'}:{hashlib.sha256(once.encode()).hexdigest()[:32]}"


def _feedback_once(
    session: Session, once: str, completion_id: str, said: dict[str, int | str], note: str | None
) -> list[Judgment]:
    """What was said under a name before; nothing where there is none of it."""
    names = [f"{once}:{kind}" for kind in FEEDBACK]
    found = list(session.scalars(select(Judgment).where(Judgment.once.in_(names)).order_by(Judgment.id)))
    told: dict[str, int | str | None] = {judgment.kind: judgment.thumbs or judgment.rating for judgment in found}
    for each in read_said(session, found):
        if each.edits:
            told["correction"] = each.edits[0][1]
    if found and (told != said or found[0].note != note or found[0].completion_id != completion_id):
        raise Conflict(gettext(OTHERWISE), code=REUSED, param="idempotency_key")
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
        raise InvalidInput(gettext("`once` has 1 to %(most)s printable characters", most=MAX_ONCE_LENGTH), param="once")
    return once


def _checked_feedback(
    completion: Completion, thumbs: int | None, rating: int | None, correction: str | None
) -> dict[str, int | str]:
    said: dict[str, int | str] = {}
    if thumbs is not None:
        if thumbs not in (-1, 1):
            raise InvalidInput(
                gettext("thumbs is %(thumbs)r; it is 1 (up) or -1 (down)", thumbs=thumbs), param="thumbs"
            )
        said["thumbs"] = thumbs
    if rating is not None:
        if rating not in range(1, 6):
            raise InvalidInput(
                gettext("rating is %(rating)r; it is a whole number from 1 to 5", rating=rating), param="rating"
            )
        said["rating"] = rating
    if correction is not None:
        edited = plain_text(correction).strip()
        if not edited or edited == plain_text(completion.text).strip():
            raise InvalidInput(gettext("the correction is empty or equals the completion"), param="correction")
        said["correction"] = edited
    if not said:
        raise InvalidInput(gettext("say something: thumbs, rating or correction"))
    return said
