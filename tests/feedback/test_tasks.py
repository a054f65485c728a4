"""Tasks: made once, of the right parts, in a pool."""

from itertools import pairwise

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import InvalidInput, NotFound
from feedback.models import Task
from feedback.tasks import create_pairwise_task, shuffled
from tests.factories import make_completion, make_pairwise_task, make_prompt


def test_a_source_makes_one_task_even_when_it_is_done(session: Session) -> None:
    prompt = make_prompt(session)
    a, b = make_completion(session, prompt), make_completion(session, prompt)

    def create() -> Task:
        return create_pairwise_task(
            session, prompt_id=prompt.id, completion_a_id=a.id, completion_b_id=b.id, source="cycle:1", required_n=3
        )

    task = create()
    assert (task.taken, task.done, task.pool) == (0, 0, "uniform")
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


def test_a_pool_has_a_name(session: Session) -> None:
    with pytest.raises(InvalidInput, match="one of canary, flagged"):
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
