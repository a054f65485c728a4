"""Judgments: stored in terms of a and b, never dropped, never twice, simulated where a script judged."""

from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from access.models import Person
from access.people import get_or_create_scripted
from core.errors import Conflict, InvalidInput, NotFound
from feedback.assignment.leases import next_assignment
from feedback.drafts import load_draft, save_draft
from feedback.judgments import (
    last_judgment,
    record_feedback,
    submit_judgment,
    undo_last,
)
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Assignment, Completion, Correction, Judgment, RuleJudgment, Task
from feedback.rules.store import active_rules, ensure_rules
from tests.factories import make_completion, make_pairwise_task, make_person


@pytest.fixture
def ana(session: Session) -> Person:
    return make_person(session, "ana")


def assign(session: Session, person: Person, *, left_is_a: bool = True, **task: Any) -> Assignment:
    """A task for this person only, shown in this order."""
    made = make_pairwise_task(session, **{"a": "text a", "b": "text b", "priority": 9, **task})
    assignment = next_assignment(session, person.id, 60)
    assert assignment is not None
    assert assignment.task_id == made.id
    assignment.shown_order = [0, 1] if left_is_a else [1, 0]
    session.flush()
    return assignment


def submit(session: Session, assignment: Assignment, once: str | None = None, **form: Any) -> Judgment:
    return submit_judgment(
        session,
        token=assignment.lease_token,
        annotator_id=assignment.annotator_id,
        form=PairwiseForm(**{"choice": "left", **form}),
        latency_s=2.5,
        once=once,
    )


@pytest.mark.parametrize(
    ("left_is_a", "shown", "stored"),
    [(True, "left", "a"), (True, "right", "b"), (False, "left", "b"), (False, "right", "a"), (False, "tie", "tie"),
     (True, "both_bad", "both_bad")],
)  # fmt: skip
def test_the_choice_is_stored_in_terms_of_a_and_b(
    session: Session, ana: Person, left_is_a: bool, shown: str, stored: str
) -> None:
    assignment = assign(session, ana, left_is_a=left_is_a)
    judgment = submit(session, assignment, choice=shown)
    assert judgment.choice == stored
    assert judgment.strength == (1 if shown in ("left", "right") else 0)
    assert (judgment.latency_s, judgment.surplus, judgment.simulated) == (2.5, False, False)
    assert session.get_one(Task, assignment.task_id).state == "done"


@pytest.mark.parametrize("left_is_a", [True, False])
def test_rules_and_corrections_follow_the_side_that_was_shown(session: Session, ana: Person, left_is_a: bool) -> None:
    ensure_rules(session)
    first, second = active_rules(session)[:2]
    assignment = assign(session, ana, left_is_a=left_is_a)
    judgment = submit(
        session,
        assignment,
        choice="right",
        rule_verdicts=[
            {"rule_version_id": first.id, "item": 0, "verdict": "broken", "span": " text "},
            {"rule_version_id": second.id, "item": 1, "verdict": "unsure"},
        ],
        corrections={1: "better\r\ntext\0", 0: "  text a " if left_is_a else "text b"},
        note=" because ",
    )
    task = session.get_one(Task, assignment.task_id)
    left, right = (task.completions[0].id, task.completions[1].id)[:: 1 if left_is_a else -1]
    verdicts = {v.rule_version_id: v for v in session.scalars(select(RuleJudgment))}
    assert (verdicts[first.id].completion_id, verdicts[first.id].span) == (left, "text")
    assert (verdicts[second.id].completion_id, verdicts[second.id].verdict) == (right, "unsure")
    correction = session.scalars(select(Correction)).one()  # the left text was not changed
    assert (correction.completion_id, correction.text) == (right, "better\ntext")
    assert judgment.note == "because"


def test_a_second_submit_returns_the_first_or_conflicts(session: Session, ana: Person) -> None:
    assignment = assign(session, ana)
    first = submit(session, assignment, once="one")
    assert submit(session, assignment, once="one").id == first.id
    with pytest.raises(Conflict, match="other content"):
        submit(session, assignment, once="one", choice="right")
    assert first.choice == "a"
    for once in ("two", None):
        with pytest.raises(Conflict, match="already"):
            submit(session, assignment, once=once)
    assert session.scalar(select(func.count(Judgment.id))) == 1


def test_a_name_of_another_act_conflicts(session: Session, ana: Person) -> None:
    submit(session, assign(session, ana), once="one")
    with pytest.raises(InvalidInput, match="once"):
        submit(session, assign(session, make_person(session)), once="x" * 101)
    with pytest.raises(Conflict, match="once"):  # and ends the transaction
        submit(session, assign(session, ana), once="one")


def test_only_the_holder_submits_and_only_known_rules(session: Session, ana: Person) -> None:
    assignment = assign(session, ana)
    with pytest.raises(NotFound):
        submit_judgment(
            session,
            token=assignment.lease_token,
            annotator_id=make_person(session).id,
            form=PairwiseForm(choice="tie"),
            latency_s=None,
        )
    with pytest.raises(InvalidInput, match="rule versions"):
        submit(session, assignment, rule_verdicts=[{"rule_version_id": 9, "item": 0, "verdict": "broken"}])


@pytest.mark.parametrize(
    "form",
    [
        {"choice": "a"},
        {"choice": "left", "strength": 4},
        {"choice": "left", "strength": 0},
        {"choice": "tie", "strength": 2},
        {"choice": "tie", "surprise": 1},
        {"choice": "tie", "rule_verdicts": [{"rule_version_id": 1, "item": 7, "verdict": "broken"}]},
        {"choice": "tie", "rule_verdicts": [{"rule_version_id": 1, "item": 0, "verdict": "broken"}] * 2},
        {"choice": "tie", "rule_verdicts": [{"rule_version_id": 2**40, "item": 0, "verdict": "broken"}]},
        {"choice": "tie", "corrections": {"middle": "x"}},
    ],
)
def test_forms_that_contradict_themselves_are_refused(form: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PairwiseForm.model_validate(form)


def test_undo_supersedes_and_keeps_the_first(session: Session, ana: Person) -> None:
    assignment = assign(session, ana)
    first = submit(session, assignment, choice="left", strength=3)
    changed = PairwiseForm(choice="right", strength=1, corrections={0: "a better text"})
    second = undo_last(session, ana.id, changed, supersedes_id=first.id, once="again")
    assert (second.supersedes_id, second.choice, second.assignment_id) == (first.id, "b", assignment.id)
    assert (first.choice, first.strength) == ("a", 3)
    assert session.scalars(select(Correction.judgment_id)).all() == [second.id]
    assert undo_last(session, ana.id, changed, supersedes_id=first.id, once="again").id == second.id
    with pytest.raises(Conflict, match="since"):
        undo_last(session, ana.id, changed, supersedes_id=first.id)
    newest = last_judgment(session, ana.id)
    assert newest is not None
    assert newest.id == second.id


def test_undo_needs_something_to_undo(session: Session, ana: Person) -> None:
    record_feedback(session, completion_id=make_completion(session).id, annotator_id=ana.id, thumbs=1)
    with pytest.raises(NotFound, match="nothing to undo"):
        undo_last(session, ana.id, PairwiseForm(choice="tie"))


def test_feedback_is_one_judgment_for_each_thing_said(session: Session, ana: Person) -> None:
    completion = make_completion(session, text="It is blue.")
    said = {"thumbs": -1, "rating": 2, "correction": "It is brown.\r\n", "note": "wrong colour", "once": "req-1"}
    judgments = record_feedback(session, completion_id=completion.id, annotator_id=ana.id, **said)
    assert [(j.kind, j.thumbs, j.rating, j.note) for j in judgments] == [
        ("thumbs", -1, None, "wrong colour"),
        ("rating", None, 2, None),
        ("correction", None, None, None),
    ]
    assert session.scalars(select(Correction)).one().text == "It is brown."
    again = record_feedback(session, completion_id=completion.id, annotator_id=ana.id, **said)
    assert [j.id for j in again] == [j.id for j in judgments]
    assert session.scalar(select(func.count(Judgment.id))) == 3


def test_a_changed_mind_supersedes_what_the_same_person_said_in_the_same_way(session: Session, ana: Person) -> None:
    completion = make_completion(session, text="It is blue.")

    def say(annotator_id: int | None = ana.id, **said: Any) -> Judgment:
        return record_feedback(session, completion_id=completion.id, annotator_id=annotator_id, **said)[0]

    first, nobody = say(thumbs=1), say(None, thumbs=1)
    rated, second = say(rating=4), say(thumbs=-1)
    assert (first.supersedes_id, nobody.supersedes_id, rated.supersedes_id) == (None, None, None)
    assert second.supersedes_id == first.id
    assert say(thumbs=1).supersedes_id == second.id
    assert say(None, thumbs=-1).supersedes_id is None
    assert say(thumbs=1, simulated=True).supersedes_id is None  # a script does not change a person's mind


def test_feedback_that_cannot_be_used_is_refused(session: Session, ana: Person) -> None:
    completion = make_completion(session, text="It is blue.")

    def say(completion_id: str = completion.id, **said: Any) -> None:
        record_feedback(session, completion_id=completion_id, annotator_id=ana.id, **said)

    with pytest.raises(NotFound):
        say("chatcmpl-none", thumbs=1)
    for said in ({}, {"note": "x"}, {"thumbs": 0}, {"rating": 6}, {"correction": " "}, {"correction": "It is blue."}):
        with pytest.raises(InvalidInput):
            say(**said)
    say(thumbs=1, note="x", once="one")
    say(thumbs=1, note="x", once="one")
    for other in (
        {"thumbs": -1},
        {"thumbs": 1},
        {"rating": 1},
        {"thumbs": 1, "rating": 1},
        {"correction": "It is red."},
    ):
        with pytest.raises(Conflict, match="other content"):
            say(**{"note": "x"} | other | ({"note": "y"} if other == {"thumbs": 1} else {}), once="one")
    with pytest.raises(Conflict, match="other content"):
        say(make_completion(session).id, thumbs=1, note="x", once="one")
    say(correction="It is red.", once="two")
    with pytest.raises(Conflict, match="other content"):
        say(correction="It is green.", once="two")
    assert session.scalar(select(func.count(Judgment.id))) == 2


def test_names_of_acts_are_each_persons_own(session: Session, ana: Person) -> None:
    completion = make_completion(session, text="It is blue.")
    said = {
        who: record_feedback(session, completion_id=completion.id, annotator_id=who, thumbs=thumbs, once="1")[0].id
        for who, thumbs in ((ana.id, 1), (make_person(session).id, -1), (None, 1))
    }
    assert len(set(said.values())) == 3
    for who, thumbs in zip(said, (1, -1, 1), strict=True):
        (again,) = record_feedback(session, completion_id=completion.id, annotator_id=who, thumbs=thumbs, once="1")
        assert again.id == said[who]


def test_a_scripts_judgments_are_simulated_on_every_path(session: Session) -> None:
    script = get_or_create_scripted(session, "loop")
    completion = make_completion(session)
    assignment = assign(session, script)
    judged = [
        submit(session, assignment),
        undo_last(session, script.id, PairwiseForm(choice="tie")),
        *record_feedback(
            session,
            completion_id=completion.id,
            annotator_id=script.id,
            thumbs=1,
            rating=1,
            correction="x",
            simulated=False,
        ),
    ]
    assert len(judged) == 5
    assert all(j.simulated for j in judged)


def test_a_persons_judgment_is_simulated_only_when_said_so(session: Session, ana: Person) -> None:
    completion: Completion = make_completion(session)
    said = [
        record_feedback(session, completion_id=completion.id, annotator_id=person_id, thumbs=1, simulated=simulated)[0]
        for person_id, simulated in [(ana.id, None), (None, None), (ana.id, True)]
    ]
    assert [j.simulated for j in said] == [False, False, True]


def test_drafts_are_kept_until_the_submit(session: Session, ana: Person) -> None:
    assignment = assign(session, ana)
    token = assignment.lease_token
    assert load_draft(session, token, ana.id) == {}
    save_draft(session, token, ana.id, {"note": ["one"]})
    save_draft(session, token, ana.id, {"note": ["two\r\n\0\ud800"], "scale": ["3"], "odd": {"x": [None, object()]}})
    assert load_draft(session, token, ana.id) == {"note": ["two\n?"], "scale": ["3"], "odd": {"x": [None, None]}}
    with pytest.raises(NotFound):
        load_draft(session, token, make_person(session).id)
    with pytest.raises(InvalidInput, match="at most"):
        save_draft(session, token, ana.id, {"note": ["x" * 300_000]})
    submit(session, assignment)
    assert load_draft(session, token, ana.id) == {}
    with pytest.raises(Conflict):
        save_draft(session, token, ana.id, {})
