"""Rules and their versions: what a completion must not do, in words people judge by and the guard refuses with."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, contains_eager

from feedback.models import Rule, RuleVersion

STARTER_RULES = Path(__file__).with_name("starter_rules.json")


def starter_rules() -> list[dict[str, Any]]:
    """The rules a new installation begins with: slug, text, severity (1 low … 3 high), refusal_text."""
    rules: list[dict[str, Any]] = json.loads(STARTER_RULES.read_text(encoding="utf-8"))
    return rules


def ensure_rules(session: Session) -> int:
    """Add the starter rules that are missing; rules that exist are left as people have edited them.

    Returns:
        How many were added.
    """
    known = set(session.scalars(select(Rule.slug)))
    missing = [entry for entry in starter_rules() if entry["slug"] not in known]
    for entry in missing:
        rule = Rule(slug=entry["slug"])
        session.add(rule)
        session.flush()
        words = {name: entry[name] for name in ("text", "severity", "refusal_text")}
        session.add(RuleVersion(rule_id=rule.id, version=1, **words))
    session.flush()
    return len(missing)


def active_rules(session: Session) -> list[RuleVersion]:
    """The newest version of each rule, where that version is active, with its rule loaded; oldest rule first."""
    newest = (
        select(RuleVersion.rule_id, func.max(RuleVersion.version).label("version"))
        .group_by(RuleVersion.rule_id)
        .subquery()
    )
    return list(
        session.scalars(
            select(RuleVersion)
            .join(newest, (RuleVersion.rule_id == newest.c.rule_id) & (RuleVersion.version == newest.c.version))
            .join(RuleVersion.rule)
            .options(contains_eager(RuleVersion.rule))
            .where(RuleVersion.active)
            .order_by(RuleVersion.rule_id)
        )
    )
