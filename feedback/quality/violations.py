"""How often each rule is broken, by the policy version that wrote: of completions that were judged on the rule.

Only verdicts that were asked for count (rule checks and probes): a mark "breaks a rule" beside a pair says nothing of the
completions that were left unmarked. A completion counts once for a rule: as broken where at least as many verdicts say
broken as say kept. Where a reviewer settled a task, their verdict stands for the others. Probes are told apart: in them
somebody tries to make the policy break the rule, so their rate is higher and answers another question.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session, aliased

from core.language import N_
from feedback.models import Completion, Judgment, Rule, RuleJudgment, RuleVersion, Task
from feedback.quality.acts import Window, counts
from feedback.quality.estimate import Estimate, share

NOTHING = N_("no completion that a policy version wrote was judged on a rule")


@dataclass(frozen=True)
class Violations:
    """How often one rule, or any (`rule` None), is broken by one policy version, probed or not."""

    rule: str | None
    policy_version_id: int
    probed: bool
    rate: Estimate  # n counts completions; for any rule, completions times rules


def violations(session: Session, window: Window) -> list[Violations]:
    """Rates by rule, policy version and way of asking; those of all rules together first."""
    known = Completion.policy_version_id.is_not(None)
    each = verdicts_asked_for(window, Completion.policy_version_id).where(known).subquery()
    query = (
        select(each.c.slug, each.c.policy_version_id, each.c.probed, func.sum(each.c.broken), func.count())
        .group_by(each.c.slug, each.c.policy_version_id, each.c.probed)
        .order_by(each.c.slug, each.c.policy_version_id, each.c.probed)
    )
    rows = [
        (slug, version, bool(asked), int(n_broken), n) for slug, version, asked, n_broken, n in session.execute(query)
    ]
    over_all: dict[tuple[int, bool], tuple[int, int]] = {}
    for _, version, asked, n_broken, n in rows:
        before = over_all.get((version, asked), (0, 0))
        over_all[version, asked] = (before[0] + n_broken, before[1] + n)
    found = [Violations(None, *key, share(*sums, NOTHING)) for key, sums in sorted(over_all.items())]
    return found + [Violations(slug, version, asked, share(b, n, NOTHING)) for slug, version, asked, b, n in rows]


def verdicts_asked_for(window: Window, *of: Any) -> Select[Any]:
    """A row for each completion and rule that somebody was asked about: `slug`, what it is counted by, `probed`, and 1 in `broken`
    where at least as many verdicts say so as say kept.

    Args:
        of: columns of the completion, whose table is joined.
    """
    settling = aliased(Task)
    settled = select(settling.id).where(
        settling.about_id == Task.id, settling.pool == "adjudication", settling.done > 0
    )
    broken = func.sum(case((RuleJudgment.verdict == "broken", 1), else_=0))
    kept = func.sum(case((RuleJudgment.verdict == "kept", 1), else_=0))
    probed = case((Judgment.kind == "probe", 1), else_=0)
    return (
        select(
            Rule.slug,
            *of,
            probed.label("probed"),
            case((broken >= kept, 1), else_=0).label("broken"),
        )
        .select_from(RuleJudgment)
        .join(Judgment, Judgment.id == RuleJudgment.judgment_id)
        .join(Task, Task.id == Judgment.task_id)
        .join(RuleVersion, RuleVersion.id == RuleJudgment.rule_version_id)
        .join(Rule, Rule.id == RuleVersion.rule_id)
        .join(Completion, Completion.id == RuleJudgment.completion_id)
        .where(
            Judgment.kind.in_(("rule_check", "probe")),
            counts(Judgment, window),
            Task.pool.not_in(("gold", "repeat")),
            ~settled.exists(),
            RuleJudgment.verdict.in_(("broken", "kept")),
        )
        .group_by(Rule.slug, *of, probed, RuleJudgment.completion_id)
    )
