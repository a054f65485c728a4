"""Which of the pairs that wait should teach most: those whose completions the newest reward models can hardly tell apart,
whether they were collected or imported.

The rest stays a uniform sample of everything, which is what evaluations may lean on. Which tasks those are is known without a
score, so they get none, and a task that was ranked is not ranked again. A first round has no reward model, and all its tasks
are uniform.
"""

from collections import Counter

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from feedback.models import Completion, Task, TaskItem
from feedback.tasks import set_informative, stays_uniform
from finetune.context import StageContext
from finetune.rewards import open_rewards

MOST = 1000
"""Pairs that are scored, the newest ones: scoring takes a while, and more than these wait for weeks anyway."""


def rank_waiting(context: StageContext) -> Counter[str]:
    """Score the pairs that wait untouched and are not of the even sample, and rank them.

    Returns:
        How many of the pairs that waited are in which pool now.
    """
    shares = context.settings.assignment
    both = shares.uniform + shares.informative
    uniform_share = shares.uniform / both if both else 1.0
    with context.db.read() as session:
        waiting = session.execute(
            select(Task.id, Task.source)
            .where(Task.state == "live", Task.kind == "pairwise", Task.pool == "uniform", Task.taken == 0)
            .order_by(Task.id.desc())
        ).all()
        chosen = [task_id for task_id, source in waiting if not stays_uniform(source, uniform_share)][:MOST]
        whole = selectinload(Task.items).joinedload(TaskItem.completion).joinedload(Completion.prompt)
        tasks = session.scalars(select(Task).options(whole).where(Task.id.in_(chosen)).order_by(Task.id.desc())).all()
    service = open_rewards(context.db, context.settings) if tasks else None
    if service is None:
        return Counter(uniform=len(waiting))
    texts = [(completion.prompt.messages, completion.text) for task in tasks for completion in task.completions]
    scores = iter(service.score(texts))
    margins = {task.id: abs(next(scores) - next(scores)) for task in tasks}
    with context.db.session() as session:
        ranked = set_informative(session, margins, uniform_share)["informative"]
    return Counter(informative=ranked, uniform=len(waiting) - ranked)
