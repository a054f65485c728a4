"""What the guard does about a rule, and from which P(broken) on; leads change both while it serves.

They are no words of the rule: a new version of those begins its verdicts, and what is learnt from them, anew. Rows are only added,
each with who, why and when, and are in the audit log. `serving.guarding` reads what holds.
"""

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from access.audit import record
from core.errors import Conflict, InvalidInput
from core.language import gettext
from core.settings.serving import Action
from feedback.models import RuleThreshold
from feedback.rules.store import find_rule
from feedback.rules.words import Change

ACTIONS: tuple[Action, ...] = ("block", "record", "off")
HISTORY = 25


def thresholds(session: Session) -> dict[int, tuple[float | None, Action]]:
    """By rule, the threshold and the action that hold; a rule that nobody has set is not there."""
    newest = select(func.max(RuleThreshold.id)).group_by(RuleThreshold.rule_id)
    row = select(RuleThreshold.rule_id, RuleThreshold.threshold, RuleThreshold.action)
    found = session.execute(row.where(RuleThreshold.id.in_(newest)))
    return {row.rule_id: (row.threshold, row.action) for row in found}


def guard_words(threshold: float | None, action: str) -> str:
    """What holds, as a line for the rule's page."""
    if action == "off":
        return gettext("it does not ask about this rule.")
    limit = (
        gettext("its model's own threshold") if threshold is None else gettext("P(broken) %(p)s", p=f"{threshold:g}")
    )
    if action == "record":
        return gettext("it only records what breaks this, from %(limit)s on.", limit=limit)
    return gettext("it cuts what breaks this, from %(limit)s on.", limit=limit)


def history(session: Session, rule_id: int) -> list[RuleThreshold]:
    """What held for a rule, the newest first, with who set it; the newest 25."""
    query = select(RuleThreshold).options(joinedload(RuleThreshold.author)).where(RuleThreshold.rule_id == rule_id)
    return list(session.scalars(query.order_by(RuleThreshold.number.desc()).limit(HISTORY)))


def set_threshold(
    session: Session, slug: str, threshold: float | None, action: str, *, base: int, change: Change
) -> RuleThreshold:
    """Another threshold or action, from the next call on.

    Args:
        threshold: P(broken), above 0 and up to 1; None: the setting's, else the one of the guard's model.
        base: number of the row that it takes the place of; 0 where there was none.

    Raises:
        NotFound: there is no such rule.
        InvalidInput: the threshold or the action is none, there is no note, or nothing is changed.
        Conflict: `base` is not what holds any more.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise InvalidInput(
            gettext("a threshold is above 0 and at most 1; leave it empty for the model's own"), param="threshold"
        )
    if action not in ACTIONS:
        raise InvalidInput(
            gettext("there is no action %(action)r; it is one of %(choices)s", action=action[:20], choices=", ".join(ACTIONS)),
            param="action",
        )  # fmt: skip
    if not change.note:
        raise InvalidInput(gettext("say in a few words what is changed, and why"), param="note")
    rule = find_rule(session, slug).rule
    before = next(iter(history(session, rule.id)), None)
    held = (before.threshold, before.action) if before else (None, "block")
    if (before.number if before else 0) != base:
        raise _too_late(before.author.login if before else "")
    if held == (threshold, action):
        raise InvalidInput(gettext("nothing is changed yet"), code="nothing_changed")
    row = RuleThreshold(
        rule_id=rule.id, number=base + 1, threshold=threshold, action=action, author_id=change.author_id,
        note=change.note,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise _too_late(gettext("somebody")) from error
    record(
        session, change.login, "rule.threshold", f"rule:{slug}", {"threshold": held[0], "action": held[1]},
        {"threshold": threshold, "action": action, "note": change.note},
    )  # fmt: skip
    return row


def _too_late(who: str) -> Conflict:
    return Conflict(
        gettext("%(who)s changed this after you had opened it; nothing was saved. Look at what is new, then try again", who=who),
        code="edit_conflict",
    )  # fmt: skip
