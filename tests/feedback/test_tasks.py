"""Tasks: made once, of the right parts, in a pool."""

from collections import Counter
from itertools import pairwise

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import InvalidInput, NotFound
from feedback.models import Task
from feedback.tasks import create_task, set_informative, shuffled
from tests.factories import make_completion, make_pairwise_task, make_prompt


def test_a_source_makes_one_task_even_when_it_is_done(session: Session) -> None:
    prompt = make_prompt(session)
    a, b = make_completion(session, prompt), make_completion(session, prompt)

    def create() -> Task:
        return create_task(session, "pairwise", prompt.id, [a.id, b.id], source="cycle:1", required_n=3)

    task = create()
    assert (task.taken, task.done, task.pool) == (0, 0, "uniform")
    assert create().id == task.id
    task.state = "done"
    session.flush()
    assert create().id == task.id


def test_a_pair_is_two_completions_of_the_prompt(session: Session) -> None:
    prompt, other = make_prompt(session), make_prompt(session)
    a, foreign = make_completion(session, prompt), make_completion(session, other)
    b = make_completion(session, prompt)

    def create(*ids: str, kind: str = "pairwise", prompt_id: int = prompt.id, **more: int) -> None:
        create_task(session, kind, prompt_id, ids, source="s", **more)

    with pytest.raises(InvalidInput, match="different ones"):
        create(a.id, a.id)
    with pytest.raises(InvalidInput, match="belongs to prompt"):
        create(a.id, foreign.id)
    with pytest.raises(NotFound, match="no completion"):
        create(a.id, "chatcmpl-none")
    with pytest.raises(NotFound, match="no prompt"):
        create(a.id, b.id, prompt_id=999)
    with pytest.raises(InvalidInput, match="required_n"):
        create(a.id, b.id, required_n=0)
    with pytest.raises(InvalidInput, match="1 completions; a pairwise task has 2"):
        create(a.id)
    with pytest.raises(InvalidInput, match="a ranking task has 3 to 6"):
        create(a.id, b.id, kind="ranking")
    with pytest.raises(InvalidInput, match="needs a rule"):
        create(a.id, kind="rule_check")
    with pytest.raises(InvalidInput, match="is about no rule"):
        create(a.id, b.id, rule_version_id=1)
    with pytest.raises(InvalidInput, match="kind is 'quiz'"):
        create(a.id, b.id, kind="quiz")


def test_a_pool_has_a_name(session: Session) -> None:
    with pytest.raises(InvalidInput, match="one of adjudication, canary"):
        make_pairwise_task(session, pool="golden")
    assert make_pairwise_task(session, pool="informative", rank=2.5).rank == 2.5


def test_a_pool_without_ranks_is_in_an_order_like_chance_that_stays() -> None:
    ranks = [shuffled(f"cycle:1:prompt:{n}") for n in range(1000)]
    assert ranks == [shuffled(f"cycle:1:prompt:{n}") for n in range(1000)]
    assert all(0 <= rank < 1 for rank in ranks)
    assert 400 < sum(first < second for first, second in pairwise(ranks)) < 600
    assert 450 < sum(rank < 0.5 for rank in ranks) < 550


def test_the_database_refuses_more_places_than_are_wanted(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    for values in ({"taken": 3}, {"taken": -1}, {"done": 1}, {"taken": 2, "done": 3}):
        with pytest.raises(IntegrityError, match="places"), session.begin_nested():
            session.execute(update(Task).where(Task.id == task.id).values(**values))


def test_small_margins_come_first_and_an_even_share_stays(session: Session) -> None:
    tasks = [make_pairwise_task(session) for _ in range(200)]
    begun, others = tasks[0], tasks[1:]
    begun.taken = 1
    found = set_informative(session, {task.id: n / 10 for n, task in enumerate(tasks)}, 0.25)
    assert begun.pool == "uniform"
    assert found == Counter(task.pool for task in others)
    assert 30 <= found["uniform"] <= 70  # a quarter of 199, give or take three standard deviations
    chosen = [task for task in others if task.pool == "informative"]
    assert sorted(chosen, key=lambda task: -task.rank) == chosen
    assert chosen[0].why.startswith("rewards differ by")
    assert set_informative(session, {task.id: 9.0 for task in chosen}, 0.0) == Counter()  # once is enough
