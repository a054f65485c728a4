"""Tasks: what people are asked to judge. In: a prompt and completions. Out: a task with so many places, in a pool."""

import hashlib

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import InvalidInput, NotFound
from feedback.models import POOLS, Completion, Prompt, Task


def create_pairwise_task(  # noqa: PLR0913 (each is a fact of the task)
    session: Session,
    *,
    prompt_id: int,
    completion_a_id: str,
    completion_b_id: str,
    source: str,
    required_n: int = 1,
    priority: int = 0,
    pool: str = "uniform",
    rank: float | None = None,
    why: str = "seed prompt",
) -> Task:
    """Ask for `required_n` judgments of two completions of one prompt.

    Args:
        source: what the task is made from; a second call with it returns the first task, even when it is done.
        priority: within a pool, higher ones are handed out first.
        pool: where it waits, one of `POOLS`.
        rank: within pool and priority, higher ones first; by chance when left out.
        why: why these two were chosen, in a few words that the annotator may read.

    Raises:
        NotFound: the prompt or a completion does not exist.
        InvalidInput: one completion twice, one of another prompt, no judgments wanted, or an unknown pool.
    """
    found = _task_of(session, source)
    if found is not None:
        return found
    _check_pair(session, prompt_id, completion_a_id, completion_b_id)
    if required_n < 1:
        raise InvalidInput(f"required_n is {required_n}; a task needs at least one judgment", param="required_n")
    if pool not in POOLS:
        raise InvalidInput(f"pool is {pool!r}; it is one of {', '.join(POOLS)}", param="pool")
    task = Task(
        kind="pairwise",
        source=source,
        prompt_id=prompt_id,
        completion_a_id=completion_a_id,
        completion_b_id=completion_b_id,
        required_n=required_n,
        priority=priority,
        pool=pool,
        rank=shuffled(source) if rank is None else rank,
        why=why,
    )
    try:
        with session.begin_nested():
            session.add(task)
            session.flush()
    except IntegrityError:
        found = _task_of(session, source)  # somebody made it at the same moment
        if found is None:
            raise
        return found
    return task


def shuffled(source: str) -> float:
    """A number from 0 to 1 that looks like chance and is the same for the same source: the order of a pool without ranks."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6], "big") / 2**48


def _task_of(session: Session, source: str) -> Task | None:
    return session.scalar(select(Task).where(Task.source == source, Task.state != "cancelled").order_by(Task.id))


def _check_pair(session: Session, prompt_id: int, a_id: str, b_id: str) -> None:
    if session.get(Prompt, prompt_id) is None:
        raise NotFound(f"there is no prompt {prompt_id}")
    if a_id == b_id:
        raise InvalidInput(f"both completions are {a_id}; a pair needs two different ones")
    for completion_id in (a_id, b_id):
        completion = session.get(Completion, completion_id)
        if completion is None:
            raise NotFound(f"there is no completion {completion_id}")
        if completion.prompt_id != prompt_id:
            raise InvalidInput(f"completion {completion_id} belongs to prompt {completion.prompt_id}, not {prompt_id}")
