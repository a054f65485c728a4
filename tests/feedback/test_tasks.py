"""Tasks: made once, claimed without overlap, leased, renewed, skipped, flagged."""

import datetime as dt
import threading
from collections import Counter

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import AuditLog
from core.db import Database, utcnow
from core.errors import Conflict, InvalidInput, NotFound
from feedback.judgments import PairwiseForm, submit_pairwise
from feedback.models import Assignment, Judgment, Task, TaskSlot
from feedback.tasks import claim_task, create_pairwise_task, find_assignment, flag, next_assignment, renew, skip
from tests.factories import make_completion, make_pairwise_task, make_person, make_prompt

LEASE_S = 60
LEFT = PairwiseForm(choice="left", strength=2)


def claim(session: Session, annotator_id: int) -> Assignment:
    assignment = next_assignment(session, annotator_id, LEASE_S)
    assert assignment is not None
    return assignment


def expire(session: Session, assignment: Assignment) -> None:
    """Let the lease run out a second ago."""
    past = utcnow() - dt.timedelta(seconds=1)
    assignment.expires_at = past
    slot = session.scalars(select(TaskSlot).where(TaskSlot.lease_token == assignment.lease_token)).one()
    slot.expires_at = past
    session.flush()


def slot_states(session: Session, task: Task) -> list[str]:
    session.expire_all()
    return list(session.scalars(select(TaskSlot.state).where(TaskSlot.task_id == task.id).order_by(TaskSlot.number)))


def test_a_source_makes_one_task_even_when_it_is_done(session: Session) -> None:
    prompt = make_prompt(session)
    a, b = make_completion(session, prompt), make_completion(session, prompt)

    def create() -> Task:
        return create_pairwise_task(
            session, prompt_id=prompt.id, completion_a_id=a.id, completion_b_id=b.id, source="cycle:1", required_n=3
        )

    task = create()
    assert slot_states(session, task) == ["open"] * 3
    assert create().id == task.id
    task.state = "done"
    session.flush()
    assert create().id == task.id


def test_a_pair_is_two_completions_of_the_prompt(session: Session) -> None:
    prompt, other = make_prompt(session), make_prompt(session)
    a, foreign = make_completion(session, prompt), make_completion(session, other)
    common = {"source": "s", "prompt_id": prompt.id, "completion_a_id": a.id}
    with pytest.raises(InvalidInput, match="two different"):
        create_pairwise_task(session, **common, completion_b_id=a.id)
    with pytest.raises(InvalidInput, match="belongs to prompt"):
        create_pairwise_task(session, **common, completion_b_id=foreign.id)
    with pytest.raises(NotFound, match="no completion"):
        create_pairwise_task(session, **common, completion_b_id="chatcmpl-none")
    with pytest.raises(NotFound, match="no prompt"):
        create_pairwise_task(session, **{**common, "prompt_id": 999}, completion_b_id=foreign.id)
    b = make_completion(session, prompt)
    with pytest.raises(InvalidInput, match="required_n"):
        create_pairwise_task(session, **common, completion_b_id=b.id, required_n=0)


def test_the_live_lease_comes_first_then_priority_then_age(session: Session) -> None:
    ana = make_person(session)
    low, first, second = (make_pairwise_task(session, priority=p) for p in (0, 5, 5))
    seen = []
    for _ in range(3):
        assignment = claim(session, ana.id)
        assert claim(session, ana.id).id == assignment.id  # asked again: the same task
        seen.append(assignment.task_id)
        submit_pairwise(session, token=assignment.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    assert seen == [first.id, second.id, low.id]
    assert next_assignment(session, ana.id, LEASE_S) is None


def test_a_task_goes_to_as_many_people_as_it_wants(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    people = [make_person(session) for _ in range(3)]
    assert [claim(session, p.id).task_id for p in people[:2]] == [task.id, task.id]
    assert next_assignment(session, people[2].id, LEASE_S) is None


def test_both_orders_are_shown(session: Session) -> None:
    ana = make_person(session)
    for _ in range(40):
        make_pairwise_task(session)
    orders = set()
    for _ in range(40):
        assignment = claim(session, ana.id)
        orders.add(assignment.left_is_a)
        skip(session, assignment.lease_token, ana.id, "")
    assert orders == {True, False}


def test_an_expired_lease_is_claimed_again_and_the_late_submit_is_surplus(session: Session) -> None:
    task = make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    late = claim(session, ana.id)
    assert next_assignment(session, ben.id, LEASE_S) is None
    expire(session, late)
    taken = claim(session, ben.id)
    assert taken.task_id == task.id
    with pytest.raises(Conflict, match="others took"):
        renew(session, late.lease_token, ana.id, LEASE_S)
    judgment = submit_pairwise(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    assert judgment.surplus
    assert late.state == "surplus"
    assert task.state == "live"
    kept = submit_pairwise(session, token=taken.lease_token, annotator_id=ben.id, form=LEFT, latency_s=1)
    assert not kept.surplus
    assert (slot_states(session, task), task.state) == (["done"], "done")


def test_a_late_submit_counts_while_there_is_room(session: Session) -> None:
    task = make_pairwise_task(session)
    ana = make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    judgment = submit_pairwise(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    assert not judgment.surplus
    assert (slot_states(session, task), task.state) == (["done"], "done")


def test_a_late_submit_takes_another_free_slot(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    ana, ben = make_person(session), make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    claim(session, ben.id)  # takes ana's slot, the first that is free
    assert not submit_pairwise(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1).surplus
    assert sorted(slot_states(session, task)) == ["done", "leased"]


def test_own_expired_work_comes_back_with_its_order(session: Session) -> None:
    make_pairwise_task(session, priority=9)
    ana = make_person(session)
    assignment = claim(session, ana.id)
    order = assignment.left_is_a
    expire(session, assignment)
    make_pairwise_task(session, priority=99)
    again = claim(session, ana.id)
    assert (again.id, again.left_is_a) == (assignment.id, order)
    assert again.expires_at > utcnow()


def test_renewing_holds_the_task_longer(session: Session) -> None:
    make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    assignment = claim(session, ana.id)
    renewed = renew(session, assignment.lease_token, ana.id, 10 * LEASE_S)
    assert renewed.expires_at > utcnow() + dt.timedelta(seconds=9 * LEASE_S)
    expire(session, assignment)
    assert renew(session, assignment.lease_token, ana.id, LEASE_S).expires_at > utcnow()
    for token, person in [(assignment.lease_token, ben), ("no-such-token", ana)]:
        with pytest.raises(NotFound):
            renew(session, token, person.id, LEASE_S)


def test_a_skipped_task_goes_to_others_only(session: Session) -> None:
    task = make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    assignment = claim(session, ana.id)
    skip(session, assignment.lease_token, ana.id, "I cannot tell" + "!" * 300)
    assert skip(session, assignment.lease_token, ana.id, "again").skip_reason == "I cannot tell" + "!" * 187
    assert next_assignment(session, ana.id, LEASE_S) is None
    assert claim(session, ben.id).task_id == task.id
    with pytest.raises(Conflict, match="skipped"):
        submit_pairwise(session, token=assignment.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    with pytest.raises(Conflict, match="skipped"):
        renew(session, assignment.lease_token, ana.id, LEASE_S)


def test_skipping_late_leaves_the_others_lease_alone(session: Session) -> None:
    task = make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    claim(session, ben.id)
    skip(session, late.lease_token, ana.id, "")
    assert slot_states(session, task) == ["leased"]


def test_a_flag_is_a_skip_that_leads_can_read(session: Session) -> None:
    task = make_pairwise_task(session)
    ana = make_person(session, "ana")
    assignment = claim(session, ana.id)
    for _ in range(2):
        flag(session, assignment.lease_token, ana.id, "the reply is cut off")
    assert find_assignment(session, assignment.lease_token, ana.id).skip_reason == "flagged: the reply is cut off"
    entry = session.scalars(select(AuditLog)).one()
    assert (entry.actor, entry.action, entry.subject) == ("ana", "task.flag", f"task:{task.id}")


def test_a_given_task_is_claimed_once_and_only_with_room(session: Session) -> None:
    make_pairwise_task(session, priority=9)
    task = make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    assignment = claim_task(session, task.id, ana.id, LEASE_S)
    assert assignment is not None
    assert assignment.task_id == task.id
    assert claim_task(session, task.id, ana.id, LEASE_S) is assignment
    assert claim_task(session, task.id, ben.id, LEASE_S) is None
    skip(session, assignment.lease_token, ana.id, "")
    assert claim_task(session, task.id, ana.id, LEASE_S) is None
    assert claim_task(session, task.id, ben.id, LEASE_S) is not None


def test_unknown_people_get_nothing(session: Session) -> None:
    make_pairwise_task(session)
    with pytest.raises(NotFound, match="no person"):
        next_assignment(session, 999, LEASE_S)


THREADS = 16


def work(database: Database, annotator_id: int, start: threading.Barrier, failures: list[BaseException]) -> None:
    """Claim and submit until nothing is left; every third claim is asked for by two threads of one person."""
    try:
        start.wait()
        while True:
            with database.session() as session:
                assignment = next_assignment(session, annotator_id, LEASE_S)
                if assignment is None:
                    return
                token = assignment.lease_token
            with database.session() as session:
                submit_pairwise(
                    session, token=token, annotator_id=annotator_id, form=LEFT, latency_s=0.1, once=f"{token}:x"
                )
    except BaseException as error:
        failures.append(error)
        raise


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_sixteen_claimers_overlap_nowhere_and_lose_nothing(request: pytest.FixtureRequest, kind: str) -> None:
    database: Database = request.getfixturevalue(kind)
    wanted = [1 + n % 3 for n in range(24)]
    with database.session() as session:
        tasks = {make_pairwise_task(session, required_n=n).id: n for n in wanted}
        # Twelve people in sixteen threads: four of them have two tabs open.
        people = [make_person(session).id for _ in range(12)]
    start, failures = threading.Barrier(THREADS), list[BaseException]()
    threads = [
        threading.Thread(target=work, args=(database, people[n % len(people)], start, failures)) for n in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with database.read() as session:
        judged = Counter(session.scalars(select(Judgment.task_id)))
        assert dict(judged) == tasks  # each exactly as often as wanted
        assert set(session.scalars(select(Task.state))) == {"done"}
        assert set(session.scalars(select(TaskSlot.state))) == {"done"}
        assert not session.scalars(select(Judgment).where(Judgment.surplus)).all()
        pairs = [(a.task_id, a.annotator_id) for a in session.scalars(select(Assignment))]
        assert len(pairs) == len(set(pairs)) == sum(wanted)
