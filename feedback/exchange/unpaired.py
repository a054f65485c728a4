"""Completions with a label, good or bad: what trainers of unpaired preferences read (TRL's `prompt, completion, label`).

A thumb, a rating (4 and 5 good, 1 and 2 bad) and a rule's verdict are votes. A rule that more people found broken than kept
makes a completion bad, whatever else was said; beyond that the majority of votes decides, and a tie says nothing.
The judgments that count are those that preferences are made from (`feedback.preferences`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from feedback.models import Completion, Judgment, RuleJudgment, TaskItem
from feedback.preferences import standing_acts

GOOD_RATING, BAD_RATING = 4, 2
AT_A_TIME = 500


def unpaired_rows(session: Session, *, include_simulated: bool) -> Iterator[dict[str, Any]]:
    """A row for each completion that was found good or bad, by completion id."""
    acts = {j.id: j for j in standing_acts(session, include_simulated=include_simulated, counts=Counter())}
    votes: dict[str, list[tuple[int, Judgment]]] = defaultdict(list)
    rated = {j.task_id for j in acts.values() if j.kind == "rating" and j.task_id is not None}
    items = select(TaskItem.task_id, TaskItem.completion_id)
    of_task = {row.task_id: row.completion_id for row in session.execute(items) if row.task_id in rated}
    for judgment in acts.values():
        completion_id = judgment.completion_id or of_task.get(judgment.task_id)
        vote = judgment.thumbs or _of_rating(judgment.rating)
        if completion_id and vote:
            votes[completion_id].append((vote, judgment))
    verdicts: dict[str, Counter[int]] = defaultdict(Counter)
    for verdict in session.scalars(
        select(RuleJudgment).where(RuleJudgment.verdict != "unsure").order_by(RuleJudgment.id)
    ):
        if (act := acts.get(verdict.judgment_id)) is not None:
            vote = 1 if verdict.verdict == "kept" else -1
            votes[verdict.completion_id].append((vote, act))
            verdicts[verdict.completion_id][verdict.rule_version_id] += vote
    voted = sorted(votes)
    for start in range(0, len(voted), AT_A_TIME):
        ids = voted[start : start + AT_A_TIME]
        found = select(Completion).options(joinedload(Completion.prompt)).where(Completion.id.in_(ids))
        for completion in session.scalars(found.order_by(Completion.id)):
            said = votes[completion.id]
            net = sum(vote for vote, _ in said)
            broken = any(count < 0 for count in verdicts[completion.id].values())
            if net or broken:
                yield {
                    "prompt": completion.prompt.messages,
                    "completion": [{"role": "assistant", "content": completion.text}],
                    "label": net > 0 and not broken,
                    "votes": len(said),
                    "simulated": any(judgment.simulated for _, judgment in said),
                }


def _of_rating(rating: int | None) -> int:
    return 0 if rating is None else 1 if rating >= GOOD_RATING else -1 if rating <= BAD_RATING else 0
