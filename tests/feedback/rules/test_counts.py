"""How often a rule was found broken: which judgments count, and what the rate rests on."""

import pytest
from sqlalchemy.orm import Session

from feedback.models import Judgment, RuleJudgment, RuleVersion
from feedback.rules.counts import VerdictCounts, counts_by_rule, counts_by_version
from feedback.rules.store import create_rule, edit_rule
from feedback.rules.words import Change, RuleWords
from tests.factories import make_completion, make_person


@pytest.fixture
def versions(session: Session) -> list[RuleVersion]:
    """Two versions of a rule, and one of another."""
    change = Change(author_id=make_person(session, "ana", "lead").id, login="ana", note="n")
    first = create_rule(session, RuleWords(title="one", text="t", refusal_text="r"), change)
    second = edit_rule(session, "one", RuleWords(title="one", text="u", refusal_text="r"), base=1, change=change)
    return [first, second, create_rule(session, RuleWords(title="two", text="t", refusal_text="r"), change)]


def judge(session: Session, version: RuleVersion, verdict: str, kind: str = "rule_check", **more: object) -> Judgment:
    completion = make_completion(session)
    judgment = Judgment(kind=kind, completion_id=completion.id, **more)
    session.add(judgment)
    session.flush()
    session.add(
        RuleJudgment(
            judgment_id=judgment.id, rule_version_id=version.id, completion_id=completion.id, verdict=verdict
        )
    )  # fmt: skip
    session.flush()
    return judgment


def test_counts_and_rate(session: Session, versions: list[RuleVersion]) -> None:
    first, second, other = versions
    for verdict in ("broken", "kept", "kept", "kept", "unsure"):
        judge(session, first, verdict)
    judge(session, second, "broken")
    judge(session, second, "broken", kind="pairwise")
    judge(session, second, "kept", kind="pairwise")  # programs may say so; a rate of those who volunteer it is none
    assert counts_by_version(session, [first.id, second.id, other.id]) == {
        first.id: VerdictCounts(broken=1, kept=3, unsure=1),
        second.id: VerdictCounts(marked=1, broken=1),
    }
    assert counts_by_rule(session, [first.rule_id, other.rule_id]) == {first.rule_id: VerdictCounts(1, 2, 3, 1)}
    rate = counts_by_rule(session, [first.rule_id])[first.rule_id].broken_rate
    assert (rate["rate"], rate["n"], round(rate["low"], 3), round(rate["high"], 3)) == (0.4, 5, 0.118, 0.769)
    assert VerdictCounts(marked=7, unsure=2).broken_rate["rate"] is None


def test_what_does_not_count(session: Session, versions: list[RuleVersion]) -> None:
    version = versions[0]
    judge(session, version, "broken", simulated=True)
    judge(session, version, "broken", surplus=True)
    judge(session, version, "kept", supersedes_id=judge(session, version, "broken").id)
    assert counts_by_rule(session, [version.rule_id]) == {version.rule_id: VerdictCounts(kept=1)}
