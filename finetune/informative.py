"""Which of the pairs that wait should teach most: those whose completions the newest reward models can hardly tell apart,
whether they were collected or imported.

The rest stays a uniform sample of everything, which is what evaluations may lean on. A first round has no reward model,
and all its tasks are uniform.
"""

from collections import Counter

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from feedback.models import Completion, Task, TaskItem
from feedback.tasks import set_informative
from finetune.context import StageContext
from finetune.rewards import open_rewards

MOST = 1000
"""Pairs that are looked at, the newest ones: scoring takes a while, and more than these wait for weeks anyway."""


def rank_waiting(context: StageContext) -> Counter[str]:
    """Score the pairs that wait untouched in the even sample and rank them; returns how many are in which pool now."""
    with context.db.read() as session:
        tasks = session.scalars(
            select(Task)
            .options(selectinload(Task.items).joinedload(TaskItem.completion).joinedload(Completion.prompt))
            .where(Task.state == "live", Task.kind == "pairwise", Task.pool == "uniform", Task.taken == 0)
            .order_by(Task.id.desc())
            .limit(MOST)
        ).all()
    service = open_rewards(context.db, context.settings) if tasks else None
    if service is None:
        return Counter(uniform=len(tasks))
    texts = [(completion.prompt.messages, completion.text) for task in tasks for completion in task.completions]
    scores = iter(service.score(texts))
    margins = {task.id: abs(next(scores) - next(scores)) for task in tasks}
    shares = context.settings.assignment
    both = shares.uniform + shares.informative
    with context.db.session() as session:
        return set_informative(session, margins, shares.uniform / both if both else 1.0)
