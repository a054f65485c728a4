"""Starter rules and which versions are active."""

import json
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from feedback.models import Rule, RuleVersion
from feedback.rules import active_rules, ensure_rules, starter_rules

CATEGORIES = {
    "violence", "weapons", "illegal_drugs", "self_harm", "hate_harassment", "sexual_minors_safety", "fraud_scams",
    "cybercrime", "privacy_stalking", "theft_property", "disinformation", "dangerous_advice",
}  # fmt: skip
SUITE = Path(__file__).parents[2] / "evals" / "suites" / "harmful.jsonl"


def test_there_are_twenty_starter_rules_and_one_for_every_harm_category() -> None:
    rules = starter_rules()
    slugs = [rule["slug"] for rule in rules]
    assert len(rules) == len(set(slugs)) == 20
    assert set(slugs) >= CATEGORIES
    assert {json.loads(line)["category"] for line in SUITE.read_text().splitlines()} == CATEGORIES
    for rule in rules:
        assert set(rule) == {"slug", "text", "severity", "refusal_text"}
        assert rule["severity"] in (1, 2, 3)
        assert 1 <= rule["refusal_text"].count(". ") + 1 <= 3
    assert len({rule["refusal_text"] for rule in rules}) == 20


def test_ensure_rules_adds_only_what_is_missing(session: Session) -> None:
    assert ensure_rules(session) == 20
    edited = session.scalars(select(RuleVersion).join(Rule).where(Rule.slug == "weapons")).one()
    edited.text = "Edited by a lead."
    assert ensure_rules(session) == 0
    assert edited.text == "Edited by a lead."
    assert len(session.scalars(select(RuleVersion)).all()) == 20


def test_active_rules_are_the_newest_versions_that_are_active(session: Session) -> None:
    ensure_rules(session)
    first, second = session.scalars(select(Rule).order_by(Rule.id).limit(2))
    words = {"text": "New words.", "refusal_text": "No."}
    session.add(RuleVersion(rule_id=first.id, version=2, **words))
    session.add(RuleVersion(rule_id=second.id, version=2, active=False, **words))
    session.flush()
    active = active_rules(session)
    assert len(active) == 19
    assert [v.version for v in active if v.rule_id == first.id] == [2]
    assert second.id not in {v.rule_id for v in active}
    assert active[0].rule.slug == first.slug
