"""Which reward models a stage scores with: the newest registered ones, with the rules that hold now."""

import logging

from sqlalchemy.orm import Session

from core.db import Database
from core.settings import RewardSettings, Settings
from feedback.rules.store import active_rules
from policy.base import base_model_path
from reward.models import newest_model
from reward.scoring import is_current
from reward.service import RewardService, RuleWeight

log = logging.getLogger("dunnock.rewards")

MIDDLING = 2
"""The severity whose rules weigh `DUNNOCK_REWARD__RULE_WEIGHT`, of 1 … 3."""


def open_rewards(db: Database, settings: Settings) -> RewardService | None:
    """The scoring service of the newest models; None where there is no preference reward model of this release yet.

    A rule reward model that does not clear its bar is not asked: what it says of rules would be noise taken off a score.

    Raises:
        ArtifactError: a model is damaged, or does not fit the base.
    """
    with db.read() as session:
        preference, rules = newest_model(session, "preference"), newest_model(session, "rules")
        weights = rule_weights(session, settings.reward)
    if preference is None:
        return None
    if not is_current(settings.artifact_dir / preference.path):
        log.warning("reward model %d was trained by an older release; none is used until a new one is", preference.id)
        return None
    if rules is not None and (not rules.clears_bar or not weights):
        rules = None
    base = base_model_path(settings)
    return RewardService.open(settings.artifact_dir, base, preference, rules, weights, device=settings.device)


def rule_weights(session: Session, settings: RewardSettings) -> list[RuleWeight]:
    """The active rules and what breaking each takes off a score, by its severity."""
    return [
        RuleWeight(version.rule.slug, version.text, settings.rule_weight * version.severity / MIDDLING)
        for version in active_rules(session)
    ]
