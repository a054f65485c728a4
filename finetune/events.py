"""What webhooks are told of rounds and versions, in the transactions that end and promote them."""

from sqlalchemy.orm import Session

from feedback.webhooks.events import tell
from finetune.models import Cycle
from policy.models import PolicyVersion, Promotion


def tell_finished(session: Session, cycle: Cycle) -> None:
    """A cycle has come to an end."""
    tell(session, "cycle.finished", {"cycle_id": cycle.id, "state": cycle.state, "outcome": cycle.outcome})


def tell_promoted(session: Session, promotion: Promotion) -> None:
    """Another version is active."""
    version = session.get_one(PolicyVersion, promotion.policy_version_id)
    former = session.get(PolicyVersion, promotion.former_id) if promotion.former_id else None
    told = {
        "policy_version": version.name, "former": former.name if former else None, "kind": promotion.kind,
        "actor": promotion.actor, "reason": promotion.reason,
    }  # fmt: skip
    tell(session, "policy.promoted", told)
