"""Two replies that somebody was given side by side in the chat, and which of them is better: one pairwise judgment.

In: the ids of both, as they stood from left to right. Out: a task that only this person was asked, and its judgment. Versions
that stayed hidden until the choice count like the pairs of the pool `canary`, those that were named do not.
"""

from typing import Literal

from sqlalchemy.orm import Session

from access.people import lock_person
from core.errors import Conflict, InvalidInput, NotFound
from core.language import gettext
from feedback.assignment.leases import claim_task
from feedback.consent import may_be_learnt
from feedback.judgments import Stored, store_judgment
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Completion
from feedback.tasks import create_task

Choice = Literal["left", "right", "tie", "both_bad"]
LEASE_S = 60.0
WHY = "compared in the chat"


def record_comparison(
    session: Session, *, left_id: str, right_id: str, person_id: int, choice: Choice, blind: bool
) -> Stored:
    """Store which of two replies to the same prompt somebody prefers.

    Args:
        blind: whether they did not know which version wrote which.

    Raises:
        NotFound: one of them is unknown or was not given to this person; the answer does not tell which.
        InvalidInput: they answer different prompts, are the same, or may not be learnt from.
        Conflict: this person compared them before.
    """
    who = lock_person(session, person_id)
    left, right = (_given(session, completion_id, person_id) for completion_id in (left_id, right_id))
    if left.prompt_id != right.prompt_id:
        raise InvalidInput(gettext("these two replies answer different prompts and cannot be compared"))
    if not (may_be_learnt(left) and may_be_learnt(right)):
        raise InvalidInput(gettext("these replies are not kept for training, so no preference is kept of them"))
    task = create_task(
        session, "pairwise", left.prompt_id, [left.id, right.id], source="compared:" + ":".join(sorted((left.id, right.id))),
        pool="canary" if blind else "uniform", why=WHY,
    )  # fmt: skip
    assignment = claim_task(session, task.id, person_id, LEASE_S)
    if assignment is None:
        raise Conflict(gettext("you have compared these two already"))
    assignment.shown_order = [0, 1]  # as they stood in the chat
    session.flush()
    return store_judgment(
        session, token=assignment.lease_token, who=who, form=PairwiseForm(choice=choice), latency_s=None
    )


def _given(session: Session, completion_id: str, person_id: int) -> Completion:
    found = session.get(Completion, completion_id)
    if found is None or found.source != "served" or found.person_id != person_id or not found.text:
        raise NotFound(gettext("you were given no reply %(completion_id)r", completion_id=completion_id))
    return found
