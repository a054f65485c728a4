"""What versions of a system prompt do to replies, side by side: preferences, thumbs, rules broken, length, time.

Compared are replies whose version was drawn by shares: who gets which is chance, so what differs is the version's doing. Replies that
were given again, prompts that the guard refused, and versions that callers named are left out. Rows of one user, or of conversations
that begin alike, are drawn together and make one cluster (`feedback.quality.clustered`). Rules are told twice, for these are two things:
what the guard's model found, in every reply that it looked at; and what people said, of the replies that they were asked about,
among which are those that the guard stopped.
"""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, Text, and_, case, cast, func, literal_column, or_, select
from sqlalchemy.orm import Session, aliased

from core.language import N_
from feedback.models import Completion, Judgment, Task, TaskItem
from feedback.quality.acts import Window, counts
from feedback.quality.clustered import Sums, is_so, quantiles, sums_of
from feedback.quality.estimate import Estimate
from feedback.quality.violations import verdicts_asked_for
from feedback.system_prompts.models import SystemPromptShare
from serving.models import GuardReport

NO_PROMPT: Any = literal_column("0")
WHOLE = ("stop", "length")
NO_PAIRS = N_("nobody has preferred either yet")
NO_THUMBS = N_("nobody gave a thumb")
NOT_LOOKED = N_("the guard's model was asked about none")
NOT_JUDGED = N_("nobody was asked whether one breaks a rule")
NO_REPLIES = N_("none came to its end")


@dataclass(frozen=True)
class Scope:
    """Which replies: drawn by the shares of the house or a tenant, since when, or by one row of them."""

    tenant_id: int | None = None
    since: dt.datetime | None = None
    share_id: int | None = None
    simulated: bool = False


@dataclass(frozen=True)
class Effect:
    """What is known of one version, by its id; 0 is no system prompt.

    Attributes:
        units: users and beginnings of conversations that got it.
        preferred: how often it is preferred to the incumbent, of the judgments that prefer either.
        guard: replies in which the guard's model found a rule broken.
        judged: replies, each with each rule that people were asked about, that break it.
        tokens: of a reply that came to its end; p50_s, p95_s: seconds that it took.
    """

    arm: int
    units: int = 0
    replies: int = 0
    ties: int = 0
    both_bad: int = 0
    figures: dict[str, Estimate] = field(default_factory=dict)


def effects(session: Session, scope: Scope, incumbent: int) -> list[Effect]:
    """All versions that replies had, the incumbent first."""
    everything = sums_of(session, _replies(scope, literal_column("1")))
    preferred, undecided = _preferred(session, scope, incumbent)
    window = Window(simulated=scope.simulated)
    thumbs = (
        _replies(scope, is_so(Judgment.thumbs == 1))
        .join(Judgment, Judgment.completion_id == Completion.id)
        .where(Judgment.kind == "thumbs", counts(Judgment, window))
    )
    looked_at = cast(GuardReport.verdicts, Text).like("%rule_version_id%")
    guard = (
        _replies(scope, is_so(GuardReport.rule_version_id.is_not(None)))
        .join(GuardReport, GuardReport.completion_id == Completion.id)
        .where(looked_at)
    )
    asked = verdicts_asked_for(window, _arm().label("arm"), _unit().label("unit"))
    asked = asked.where(Judgment.kind == "rule_check", Completion.source.in_(("served", "withheld")), _drawn(scope))
    each = asked.subquery()
    judged = select(each.c.arm, each.c.unit, each.c.broken.label("s"))
    whole = Completion.finish_reason.in_(WHOLE)
    times = _replies(scope, Completion.latency_s).where(whole)
    length = _replies(scope, Completion.completion_tokens).where(whole)
    rates = {
        "preferred": (preferred, NO_PAIRS), "thumbs": (sums_of(session, thumbs), NO_THUMBS),
        "guard": (sums_of(session, guard), NOT_LOOKED), "judged": (sums_of(session, judged), NOT_JUDGED),
    }  # fmt: skip
    tokens = sums_of(session, length)
    quantile = {name: quantiles(session, times, q, NO_REPLIES) for name, q in (("p50_s", 0.5), ("p95_s", 0.95))}
    none = Sums()
    found = []
    for arm in sorted({*everything, incumbent}, key=lambda arm: (arm != incumbent, -arm)):
        all_ = everything.get(arm, none)
        figures = {name: sums.get(arm, none).rate(why) for name, (sums, why) in rates.items()}
        figures["tokens"] = tokens.get(arm, none).average(NO_REPLIES)
        figures |= {name: by.get(arm, none.average(NO_REPLIES)) for name, by in quantile.items()}
        found.append(Effect(arm, all_.k, int(all_.n), *undecided.get(arm, (0, 0)), figures))
    return found


def _arm() -> Any:
    return func.coalesce(Completion.system_prompt_version_id, NO_PROMPT)


def _unit() -> Any:
    return func.coalesce(Completion.system_prompt_unit, Completion.id)  # what was erased stands alone


def _drawn(scope: Scope, completion: Any = Completion) -> Any:
    """The condition that a completion's version was drawn by these shares, in this time."""
    if scope.share_id is not None:
        return completion.system_prompt_share_id == scope.share_id
    share = SystemPromptShare
    whose = share.tenant_id.is_(None) if scope.tenant_id is None else share.tenant_id == scope.tenant_id
    of_shares = completion.system_prompt_share_id.in_(select(share.id).where(whose))
    of_shares &= completion.system_prompt_share_id.is_not(None)
    return of_shares if scope.since is None else of_shares & (completion.created_at >= scope.since)


def _replies(scope: Scope, s: Any) -> Select[Any]:
    """Replies that an engine wrote, with their version, who is drawn together, and a number."""
    written = or_(Completion.prompt_tokens.is_(None), Completion.prompt_tokens > 0)
    query = select(_arm().label("arm"), _unit().label("unit"), s.label("s")).select_from(Completion)
    return query.where(Completion.source == "served", written, _drawn(scope))


def _preferred(session: Session, scope: Scope, incumbent: int) -> tuple[dict[int, Sums], dict[int, tuple[int, int]]]:
    """Of each version beside the incumbent: whether it is preferred, and how many judgments prefer neither."""
    one, other = aliased(Completion), aliased(Completion)
    first, second = aliased(TaskItem), aliased(TaskItem)
    arms = [func.coalesce(c.system_prompt_version_id, NO_PROMPT) for c in (one, other)]
    beside = case((arms[0] == incumbent, arms[1]), else_=arms[0])
    won = case((arms[0] == incumbent, "b"), else_="a")
    query = (
        select(
            beside.label("arm"),
            func.coalesce(one.system_prompt_unit, one.id).label("unit"),
            Judgment.choice,
            is_so(Judgment.choice == won).label("won"),
        )
        .select_from(Task)
        .join(first, and_(first.task_id == Task.id, first.position == 0))
        .join(second, and_(second.task_id == Task.id, second.position == 1))
        .join(one, one.id == first.completion_id)
        .join(other, other.id == second.completion_id)
        .join(Judgment, Judgment.task_id == Task.id)
        .where(
            Task.kind == "pairwise", Task.pool == "canary", counts(Judgment, Window(simulated=scope.simulated)),
            one.system_prompt_share_id == other.system_prompt_share_id, one.policy_version_id == other.policy_version_id,
            arms[0] != arms[1], or_(arms[0] == incumbent, arms[1] == incumbent), _drawn(scope, one),
        )
    )  # fmt: skip
    each = query.subquery()
    decided = select(each.c.arm, each.c.unit, each.c.won.label("s")).where(each.c.choice.in_(("a", "b")))
    ties, both_bad = (func.sum(case((each.c.choice == word, 1), else_=0)) for word in ("tie", "both_bad"))
    undecided = session.execute(select(each.c.arm, ties, both_bad).group_by(each.c.arm))
    return sums_of(session, decided), {arm: (int(a), int(b)) for arm, a, b in undecided}
