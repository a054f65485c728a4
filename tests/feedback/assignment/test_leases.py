"""Leases: claimed without overlap, renewed, skipped, flagged, and handed out in the right order."""

import datetime as dt
import threading
from collections import Counter

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import AuditLog
from core.db import Database, utcnow
from core.errors import Conflict, NotFound
from core.settings import AssignmentSettings
from feedback.assignment.annotators import opt_out
from feedback.assignment.leases import claim_task, find_assignment, flag, next_assignment, release_expired, renew, skip
from feedback.judgments import submit_judgment
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Assignment, Judgment, Task
from feedback.prompts import add_prompt
from tests.factories import make_pairwise_task, make_person, make_prompt

LEASE_S = 60
LEFT = PairwiseForm(choice="left", strength=2)


def claim(session: Session, annotator_id: int) -> Assignment:
    assignment = next_assignment(session, annotator_id, LEASE_S)
    assert assignment is not None
    return assignment


def expire(session: Session, assignment: Assignment) -> None:
    """Let the lease run out a second ago."""
    assignment.expires_at = utcnow() - dt.timedelta(seconds=1)
    session.flush()


def judge(session: Session, assignment: Assignment) -> Judgment:
    token, annotator_id = assignment.lease_token, assignment.annotator_id
    return submit_judgment(session, token=token, annotator_id=annotator_id, form=LEFT, latency_s=1)


def places(session: Session, task: Task) -> tuple[int, int, str]:
    """How many places are taken, how many of them done, and the task's state."""
    session.refresh(task)
    return task.taken, task.done, task.state


def test_the_live_lease_comes_first_then_priority_then_rank(session: Session) -> None:
    ana = make_person(session)
    low, second, first = (make_pairwise_task(session, priority=p, rank=r) for p, r in ((0, 9), (5, 0.1), (5, 0.2)))
    seen = []
    for _ in range(3):
        assignment = claim(session, ana.id)
        assert claim(session, ana.id).id == assignment.id  # asked again: the same task
        seen.append(assignment.task_id)
        judge(session, assignment)
    assert seen == [first.id, second.id, low.id]
    assert next_assignment(session, ana.id, LEASE_S) is None


def test_a_task_goes_to_as_many_people_as_it_wants(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    people = [make_person(session) for _ in range(3)]
    assert [claim(session, p.id).task_id for p in people[:2]] == [task.id, task.id]
    assert next_assignment(session, people[2].id, LEASE_S) is None


def test_what_is_begun_is_finished_first(session: Session) -> None:
    """Nearest to complete, then priority, then rank."""
    people = [make_person(session) for _ in range(3)]
    low = make_pairwise_task(session, required_n=3, rank=0.1)
    assert claim(session, people[0].id).task_id == low.id
    high = make_pairwise_task(session, required_n=3, priority=9)
    assert claim(session, people[1].id).task_id == low.id
    judge(session, claim(session, people[1].id))
    assert claim(session, people[1].id).task_id == high.id
    assert claim(session, people[2].id).task_id == low.id
    assert places(session, low) == (3, 1, "live")


def test_one_person_alone_gets_all_tasks_that_want_three(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when more than a window of tasks are begun, all by the one who asks, and when only others' begun ones are left."""
    monkeypatch.setattr("feedback.assignment.claim.WINDOW", 2)
    tasks = {make_pairwise_task(session, required_n=3).id for _ in range(7)}
    ana, ben = make_person(session), make_person(session)
    for person in (ana, ben):
        seen = set()
        while (assignment := next_assignment(session, person.id, LEASE_S)) is not None:
            seen.add(assignment.task_id)
            judge(session, assignment)
        assert seen == tasks


def test_a_window_full_of_own_work_hides_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedback.assignment.claim.WINDOW", 2)
    ana, ben = make_person(session), make_person(session)
    own = [make_pairwise_task(session, required_n=3, rank=0.5) for _ in range(4)]
    for _ in own:
        judge(session, claim(session, ana.id))
    last = make_pairwise_task(session, required_n=3, rank=0.1)
    assert claim_task(session, last.id, ben.id, LEASE_S) is not None
    assert claim(session, ana.id).task_id == last.id


def test_pools_are_drawn_by_their_shares(session: Session) -> None:
    shares = AssignmentSettings(informative=3, uniform=1, flagged=0)
    wanted = {"informative": 200, "uniform": 200, "flagged": 3}
    for pool, count in wanted.items():
        for _ in range(count):
            make_pairwise_task(session, pool=pool)
    ana = make_person(session)
    seen: Counter[str] = Counter()
    for _ in range(200):
        assignment = next_assignment(session, ana.id, LEASE_S, shares=shares)
        assert assignment is not None
        seen[assignment.task.pool] += 1
        judge(session, assignment)
    assert 120 <= seen["informative"] <= 180  # 150 expected; the chance to leave this is below 1e-5
    assert seen["flagged"] == 0
    make_pairwise_task(session, pool="canary", priority=-5)
    calm = shares.model_copy(update={"gold": 0, "repeat": 0})
    assert next_assignment(session, ana.id, LEASE_S, shares=calm).task.pool == "canary"


def test_an_empty_pools_share_falls_to_the_others(session: Session) -> None:
    ana = make_person(session)
    for pool in ("flagged", "uniform"):
        make_pairwise_task(session, pool=pool)
    shares = AssignmentSettings(informative=1, uniform=0, flagged=0)
    seen = set()
    while (assignment := next_assignment(session, ana.id, LEASE_S, shares=shares)) is not None:
        seen.add(assignment.task.pool)
        judge(session, assignment)
    assert seen == {"flagged", "uniform"}


def test_the_next_task_can_be_fetched_beside_the_one_at_hand(session: Session) -> None:
    for _ in range(3):
        make_pairwise_task(session)
    ana = make_person(session)
    first = claim(session, ana.id)
    second = next_assignment(session, ana.id, LEASE_S, beside=[first.lease_token])
    assert second is not None
    assert second.task_id != first.task_id
    assert next_assignment(session, ana.id, LEASE_S, beside=[first.lease_token]) is second
    assert claim(session, ana.id) is first


def test_work_on_a_cancelled_task_is_kept_as_surplus(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    ana = make_person(session)
    assignment = claim(session, ana.id)
    task.state = "cancelled"
    session.flush()
    assert judge(session, assignment).surplus
    assert places(session, task) == (0, 0, "cancelled")
    assert next_assignment(session, ana.id, LEASE_S) is None


def test_both_orders_are_shown(session: Session) -> None:
    ana = make_person(session)
    for _ in range(40):
        make_pairwise_task(session)
    orders = set()
    for _ in range(40):
        assignment = claim(session, ana.id)
        orders.add(tuple(assignment.shown_order))
        skip(session, assignment.lease_token, ana.id, "")
    assert orders == {(0, 1), (1, 0)}


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
    judgment = submit_judgment(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    assert judgment.surplus
    assert late.state == "surplus"
    assert task.state == "live"
    kept = submit_judgment(session, token=taken.lease_token, annotator_id=ben.id, form=LEFT, latency_s=1)
    assert not kept.surplus
    assert places(session, task) == (1, 1, "done")


def test_a_late_submit_counts_while_there_is_room(session: Session) -> None:
    task = make_pairwise_task(session)
    ana = make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    judgment = submit_judgment(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    assert not judgment.surplus
    assert places(session, task) == (1, 1, "done")


def test_a_late_submit_takes_another_free_place(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    ana, ben = make_person(session), make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    assert release_expired(session, utcnow()) == 1
    assert claim(session, ben.id).task_id == task.id
    assert not submit_judgment(session, token=late.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1).surplus
    assert places(session, task) == (2, 1, "live")


def test_own_expired_work_comes_back_with_its_order(session: Session) -> None:
    make_pairwise_task(session, priority=9)
    ana = make_person(session)
    assignment = claim(session, ana.id)
    order = assignment.shown_order
    expire(session, assignment)
    make_pairwise_task(session, priority=99)
    again = claim(session, ana.id)
    assert (again.id, again.shown_order) == (assignment.id, order)
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
        submit_judgment(session, token=assignment.lease_token, annotator_id=ana.id, form=LEFT, latency_s=1)
    with pytest.raises(Conflict, match="skipped"):
        renew(session, assignment.lease_token, ana.id, LEASE_S)


def test_skipping_late_leaves_the_others_lease_alone(session: Session) -> None:
    task = make_pairwise_task(session)
    ana, ben = make_person(session), make_person(session)
    late = claim(session, ana.id)
    expire(session, late)
    claim(session, ben.id)
    skip(session, late.lease_token, ana.id, "")
    assert places(session, task) == (1, 0, "live")


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


@pytest.mark.parametrize("unwanted", [False, True])
def test_who_judged_waits_for_no_further_task(postgres_database: Database, unwanted: bool) -> None:
    """An import that learns what upsets holds one task of this person and waits for the one that they have just judged."""
    db = postgres_database
    with db.session() as session:
        ana = make_person(session)
        prompts = [make_prompt(session), make_prompt(session, category="cats")]
        tasks = [make_pairwise_task(session, prompt).id for prompt in prompts]
        assignments = [claim_task(session, task_id, ana.id, LEASE_S) for task_id in tasks]
        expire(session, assignments[1])
        at_hand = [assignment.id for assignment in assignments]
        if unwanted:
            opt_out(session, ana.id, ["cats"])

    def learn(session: Session, n: int) -> None:
        add_prompt(session, prompts[n].messages, "import", harmful=True)

    with db.session() as importing:
        learn(importing, 1)
        with db.session() as judging:
            judge(judging, judging.get_one(Assignment, at_hand[0]))
            rest = threading.Thread(target=learn, args=(importing, 0))
            rest.start()
            rest.join(0.3)
            assert rest.is_alive()  # it waits for the judge
            assert next_assignment(judging, ana.id, LEASE_S) is None
        rest.join(10)
    with db.session() as session:
        assert [session.get_one(Task, task_id).risky for task_id in tasks] == [True, True]
        found = next_assignment(session, ana.id, LEASE_S)  # nothing is lost: now it is there, or given back
        assert (found is None) == unwanted
        assert session.get_one(Assignment, at_hand[1]).state == ("skipped" if unwanted else "live")


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
                submit_judgment(
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
        assert all(t.taken == t.done == t.required_n for t in session.scalars(select(Task)))
        assert not session.scalars(select(Judgment).where(Judgment.surplus)).all()
        pairs = [(a.task_id, a.annotator_id) for a in session.scalars(select(Assignment))]
        assert len(pairs) == len(set(pairs)) == sum(wanted)
