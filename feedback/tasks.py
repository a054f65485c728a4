"""Tasks: what people are asked to judge. In: a kind and completions. Out: a task with so many places, in a pool."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, literal_column, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.db import UtcDateTime, table_of, utcnow
from core.errors import InvalidInput, NotFound
from core.language import gettext
from feedback.consent import may_be_learnt
from feedback.kinds import form_of
from feedback.models import POOLS, Completion, Gold, Prompt, RuleVersion, Task, TaskItem

GOLD_PLACES = 1_000_000
"""Places of a task with a known answer: everybody may get it, each once."""

_TASK = table_of(Task)
_MADE = select(Task).where(Task.source == bindparam("source"), _TASK.c.state != literal_column("'cancelled'"))
_COPY = text(
    """INSERT INTO task (kind, source, prompt_id, rule_version_id, about_id, required_n, taken, done, pool, priority,
                          rank, category, risky, why, state, created_at)
       SELECT kind, :source, prompt_id, rule_version_id, id, 1, :taken, 0, :pool, priority,
              :rank, category, risky, :why, 'live', :now
       FROM task WHERE id = :of_task AND NOT EXISTS (
           SELECT 1 FROM task_item JOIN completion ON completion.id = task_item.completion_id
           WHERE task_item.task_id = :of_task AND completion.erased_at IS NOT NULL)
       ON CONFLICT DO NOTHING
       RETURNING id, kind, pool, why, risky, about_id, required_n"""
).bindparams(bindparam("now", type_=UtcDateTime()))
_COPY_ITEMS = text(
    """INSERT INTO task_item (task_id, position, completion_id)
       SELECT :copy, position, completion_id FROM task_item WHERE task_id = :of_task"""
)


def create_task(  # noqa: PLR0913 (each is a fact of the task)
    session: Session,
    kind: str,
    prompt_id: int | None,
    completion_ids: Sequence[str],
    *,
    source: str,
    rule_version_id: int | None = None,
    about_id: int | None = None,
    required_n: int = 1,
    priority: int = 0,
    pool: str = "uniform",
    rank: float | None = None,
    why: str = "seed prompt",
    under_prompts: bool = False,
) -> Task:
    """Ask for `required_n` judgments of completions of one prompt.

    Args:
        kind: one of `feedback.kinds.FORMS`.
        prompt_id: the conversation; None for a probe, which begins with none.
        completion_ids: as many as the kind wants; their order is that of the positions that judgments are stored by.
        source: what the task is made from; a second call with it returns the first task, even when it is done.
        rule_version_id: the rule in question, for the kinds that need one.
        about_id: the task that is settled or shown again.
        priority: within a pool, higher ones are handed out first.
        pool: where it waits, one of `POOLS`. Of what users flagged, a prompt whose harm nobody has said may upset.
        rank: within pool and priority, higher ones first; by chance when left out.
        why: why this was chosen, in a few words that the annotator may read.
        under_prompts: the completions answer this conversation, but under system prompts of their own, which are not shown.

    Raises:
        NotFound: the prompt, a completion or the rule does not exist.
        InvalidInput: completions that do not fit the kind or the prompt, no judgments wanted, an unknown pool, or a rule
            too many or missing.
    """
    found = _task_of(session, source)
    if found is not None:
        return found
    prompt = _checked(session, kind, prompt_id, completion_ids, rule_version_id, under_prompts)
    if required_n < 1:
        raise InvalidInput(f"required_n is {required_n}; a task needs at least one judgment", param="required_n")
    if pool not in POOLS:
        raise InvalidInput(f"pool is {pool!r}; it is one of {', '.join(POOLS)}", param="pool")
    task = Task(
        kind=kind,
        source=source,
        prompt_id=prompt_id,
        rule_version_id=rule_version_id,
        about_id=about_id,
        required_n=required_n,
        priority=priority,
        pool=pool,
        rank=shuffled(source) if rank is None else rank,
        category=prompt.category if prompt else None,
        risky=_may_upset(kind, prompt, pool),
        why=why,
        items=[TaskItem(position=n, completion_id=found) for n, found in enumerate(completion_ids)],
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


def copy_task(session: Session, task_id: int, *, source: str, pool: str, why: str, taken: int = 0) -> Row[Any] | None:
    """Ask once more, of one person, what a task asks: to settle it, or to see whether the same is said again.

    Args:
        source, pool, why: as of `create_task`.
        taken: how many of its places, 0 or 1, somebody has already.

    Returns:
        What `feedback.assignment.claim.FACTS` names of the copy; None when its source has a task already, or a text of it was
        erased.
    """
    session.flush()
    connection = session.connection()
    values = {"of_task": task_id, "source": source, "pool": pool, "why": why, "taken": taken}
    copy = connection.execute(_COPY, values | {"rank": shuffled(source), "now": utcnow()}).one_or_none()
    if copy is not None:
        connection.execute(_COPY_ITEMS, {"of_task": task_id, "copy": copy.id})
    return copy


def create_gold(
    session: Session,
    kind: str,
    prompt_id: int | None,
    completion_ids: Sequence[str],
    expected: dict[str, Any],
    *,
    source: str,
    explanation: str = "",
    rule_version_id: int | None = None,
) -> Task:
    """A task with a known answer, which every annotator may get once; see `create_task` and the kind's form.

    Raises:
        InvalidInput: no judgment of this kind can be the known answer.
    """
    form_of(kind).check_expected(expected, len(completion_ids))
    task = create_task(
        session, kind, prompt_id, completion_ids, source=source, rule_version_id=rule_version_id,
        required_n=GOLD_PLACES, pool="gold", why="a task like any other",
    )  # fmt: skip
    if session.get(Gold, task.id) is None:
        session.add(Gold(task_id=task.id, expected=expected, explanation=explanation))
        session.flush()
    return task


def set_informative(session: Session, margins: Mapping[int, float], uniform_share: float) -> Counter[str]:
    """Put tasks that wait in the uniform pool among the informative ones, those of the smallest margin first.

    Args:
        margins: by task id, how far apart the rewards of its completions lie, 0 or more.
        uniform_share: so many stay, whatever their margin: an even sample that nobody chose.

    Returns:
        How many of them are in which pool now. Tasks that somebody works on already stay where they are.
    """
    found: Counter[str] = Counter()
    waiting = select(Task).where(Task.id.in_(margins), Task.pool == "uniform", Task.state == "live", Task.taken == 0)
    for task in session.scalars(waiting.with_for_update()):
        if not stays_uniform(task.source, uniform_share):
            task.pool, task.rank = "informative", -margins[task.id]
            task.why = f"rewards differ by {margins[task.id]:.2g} only"
        found[task.pool] += 1
    session.flush()
    return found


def stays_uniform(source: str, uniform_share: float) -> bool:
    """Whether a task of this source is of the even sample, whatever its margin: always the same for the same share."""
    return shuffled(f"{source}:pool") < uniform_share


def shuffled(source: str) -> float:
    """A number from 0 to 1 that looks like chance and is the same for the same source: the order of a pool without ranks."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6], "big") / 2**48


def is_made(session: Session, source: str) -> bool:
    """Whether there is or was a task of this source, which `create_task` would return."""
    return _task_of(session, source) is not None


def _may_upset(kind: str, prompt: Prompt | None, pool: str) -> bool:
    if kind == "probe":  # anything may be said in it
        return True
    return prompt is not None and (pool == "flagged" if prompt.harmful is None else prompt.harmful)


def _task_of(session: Session, source: str) -> Task | None:
    return session.scalar(_MADE, {"source": source})


def _checked(
    session: Session,
    kind: str,
    prompt_id: int | None,
    completion_ids: Sequence[str],
    rule_version_id: int | None,
    under_prompts: bool,
) -> Prompt | None:
    form = form_of(kind)
    prompt = None if prompt_id is None else session.get(Prompt, prompt_id)
    if prompt is None and (prompt_id is not None or form.ITEMS.stop > 1):
        raise NotFound(f"there is no prompt {prompt_id}")
    if len(completion_ids) not in form.ITEMS:
        wanted = f"{form.ITEMS.start} to {form.ITEMS.stop - 1}" if len(form.ITEMS) > 1 else str(form.ITEMS.start)
        raise InvalidInput(f"{len(completion_ids)} completions; a {kind} task has {wanted}", param="completion_ids")
    if len(set(completion_ids)) < len(completion_ids):
        raise InvalidInput("a completion is named twice; a task needs different ones", param="completion_ids")
    for completion_id in completion_ids:
        completion = session.get(Completion, completion_id)
        if completion is None:
            raise NotFound(f"there is no completion {completion_id}")
        if not may_be_learnt(completion):
            raise InvalidInput(
                gettext(
                    "completion %(completion_id)s is erased, or not kept for training", completion_id=completion_id
                ),
                param="completion_ids",
            )
        if not under_prompts and completion.prompt_id != prompt_id:
            raise InvalidInput(f"completion {completion_id} belongs to prompt {completion.prompt_id}, not {prompt_id}")
    if (rule_version_id is not None) != form.NEEDS_RULE:
        raise InvalidInput(
            f"a {kind} task {'needs a' if form.NEEDS_RULE else 'is about no'} rule", param="rule_version_id"
        )
    if rule_version_id is not None and session.get(RuleVersion, rule_version_id) is None:
        raise NotFound(f"there is no rule version {rule_version_id}")
    return prompt
