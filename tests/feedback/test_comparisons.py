"""Two replies of the chat, side by side, become one pairwise judgment of who was given them."""

import pytest
from sqlalchemy.orm import Session

from access.models import Person
from core.errors import Conflict, InvalidInput, NotFound
from feedback.comparisons import record_comparison
from feedback.models import Assignment, Completion, Judgment, Task
from feedback.preferences import gather
from tests.factories import make_completion, make_person, make_prompt


@pytest.fixture
def lead(session: Session) -> Person:
    return make_person(session, "lead", role="lead")


def served(session: Session, lead: Person, n: int = 2, **more: object) -> list[Completion]:
    prompt, details = make_prompt(session), {"person_id": lead.id, "consent": "training", **more}
    return [make_completion(session, prompt, source="served", details=details) for _ in range(n)]


def compare(session: Session, lead: Person, left: Completion, right: Completion, **more: object) -> int:
    said = {"choice": "right", "blind": True, **more}
    return record_comparison(session, left_id=left.id, right_id=right.id, person_id=lead.id, **said).id


@pytest.mark.parametrize(
    ("choice", "stored"), [("left", "a"), ("right", "b"), ("tie", "tie"), ("both_bad", "both_bad")]
)
def test_a_choice_is_a_judgment_in_terms_of_what_stood_where(
    session: Session, lead: Person, choice: str, stored: str
) -> None:
    left, right = served(session, lead)
    judgment = session.get_one(Judgment, compare(session, lead, left, right, choice=choice))
    task = session.get_one(Task, judgment.task_id)
    assert (judgment.kind, judgment.choice, judgment.annotator_id) == ("pairwise", stored, lead.id)
    assert [item.completion_id for item in task.items] == [left.id, right.id]
    assert (task.state, task.pool) == ("done", "canary")
    assert session.get_one(Assignment, judgment.assignment_id).shown_order == [0, 1]


def test_it_is_a_preference_that_is_trained_on(session: Session, lead: Person) -> None:
    left, right = served(session, lead)
    compare(session, lead, left, right, blind=False)
    (pair,) = gather(session, include_simulated=False, max_imported_pairs=0).preferences
    assert (pair.chosen, pair.rejected) == (right.text, left.text)
    assert session.query(Task.pool).scalar() == "uniform"  # who knew the names is not counted as blind


def test_the_same_two_are_compared_once(session: Session, lead: Person) -> None:
    left, right = served(session, lead)
    compare(session, lead, left, right)
    with pytest.raises(Conflict):
        compare(session, lead, right, left)


def test_what_cannot_be_compared(session: Session, lead: Person) -> None:
    (left, _), (other,) = served(session, lead), served(session, lead, 1)
    for wrong in (other, left):
        with pytest.raises(InvalidInput):
            compare(session, lead, left, wrong)
    for theirs in (served(session, make_person(session), 1)[0], make_completion(session)):
        with pytest.raises(NotFound):
            compare(session, lead, left, theirs)
    with pytest.raises(InvalidInput):
        compare(session, lead, *served(session, lead, consent="service"))
    assert session.query(Judgment).count() == 0
