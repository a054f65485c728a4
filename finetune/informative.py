"""Which of the new tasks should teach most: those whose completions the newest reward models can hardly tell apart.

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


def rank_new_tasks(context: StageContext) -> Counter[str]:
    """Score the pairs of this cycle's open tasks and rank them; returns how many went into which pool."""
    with context.db.read() as session:
        tasks = session.scalars(
            select(Task)
            .options(selectinload(Task.items).joinedload(TaskItem.completion).joinedload(Completion.prompt))
            .where(Task.source.like(f"cycle:{context.cycle_id}:%"), Task.state == "live", Task.kind == "pairwise")
            .where(Task.pool == "uniform", Task.taken == 0)
            .order_by(Task.id)
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
