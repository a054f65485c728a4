"""What the pages about policy versions show: the list, the history, a version's lineage and its gate. It changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from console import words
from core.errors import Conflict
from core.language import N_, gettext, retold
from core.language import lazy_gettext as _l
from feedback.models import Snapshot
from finetune.cycle import UNFINISHED
from finetune.models import Cycle
from policy import versions
from policy.models import GateReport, PolicyVersion, Promotion
from policy.versions import active_version
from reward.models import RewardModel

PAGE = 25
PROMOTED_WHYS = (N_("first version"), N_("cycle %(n)s passed the gate"))

SHARES = {"harmful compliance", "benign refusals", "held-out preference", "capability"}
P_VALUE = "not less safe than the incumbent"
RISES = {"benign refusals", "capability"}
UNITS = {"KL to the base": _l("nats/token"), "reference answers": _l("nats/token"), "length": "×"}
INTERVAL_OF = {
    "harmful compliance": _l("of the rate"),
    "benign refusals": _l("of the candidate’s rate"),
    "held-out preference": _l("of the share"),
}


@dataclass(frozen=True)
class VersionRow:
    """One line of the list of versions."""

    version: PolicyVersion
    passed: bool | None  # None: no gate report
    snapshot_sha256: str | None


@dataclass(frozen=True)
class HistoryRow:
    """One promotion or rollback, with the names of what it changed."""

    promotion: Promotion
    to: str
    former: str | None

    @property
    def reason(self) -> str:
        """Why, in the reader's language as far as it is told in words of ours."""
        return retold(self.promotion.reason, PROMOTED_WHYS)


@dataclass(frozen=True)
class CheckRow:
    """One check of the gate, ready to be read."""

    name: str
    meaning: str
    value: str
    interval: str
    interval_of: str
    allowed: str
    n: str
    passed: bool


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from."""

    version: PolicyVersion
    cycle: Cycle | None
    snapshot: Snapshot | None
    reward: RewardModel | None
    report: GateReport | None
    parent: PolicyVersion | None


def list_versions(session: Session, before: int | None) -> tuple[list[VersionRow], int | None]:
    """A page of versions, newest first, and the id to go on from."""
    query = (
        select(PolicyVersion, GateReport.passed, Snapshot.content_sha256)
        .outerjoin(GateReport, GateReport.policy_version_id == PolicyVersion.id)
        .outerjoin(Snapshot, Snapshot.id == PolicyVersion.snapshot_id)
        .order_by(PolicyVersion.id.desc())
        .limit(PAGE + 1)
    )
    query = query.where(PolicyVersion.id < before) if before else query
    rows = [VersionRow(*row) for row in session.execute(query)]
    return rows[:PAGE], rows[PAGE - 1].version.id if len(rows) > PAGE else None


def list_history(session: Session, before: int | None) -> tuple[list[HistoryRow], int | None]:
    """A page of promotions and rollbacks, newest first, and the id to go on from."""
    to, former = aliased(PolicyVersion), aliased(PolicyVersion)
    query = (
        select(Promotion, to.name, former.name)
        .join(to, to.id == Promotion.policy_version_id)
        .outerjoin(former, former.id == Promotion.former_id)
        .order_by(Promotion.id.desc())
        .limit(PAGE + 1)
    )
    query = query.where(Promotion.id < before) if before else query
    rows = [HistoryRow(*row) for row in session.execute(query)]
    return rows[:PAGE], rows[PAGE - 1].promotion.id if len(rows) > PAGE else None


def current_version(session: Session) -> PolicyVersion | None:
    """The version that answers now; None where none does yet."""
    return session.scalar(select(PolicyVersion).where(PolicyVersion.state == "active"))


def lineage(session: Session, version: PolicyVersion) -> Lineage:
    """The rows that a version was made from and judged by."""
    reward = None
    if version.cycle_id is not None:
        reward = session.scalar(
            select(RewardModel).where(RewardModel.cycle_id == version.cycle_id, RewardModel.kind == "preference")
        )
    return Lineage(
        version=version,
        cycle=session.get(Cycle, version.cycle_id) if version.cycle_id is not None else None,
        snapshot=session.get(Snapshot, version.snapshot_id) if version.snapshot_id is not None else None,
        reward=reward,
        report=session.scalar(select(GateReport).where(GateReport.policy_version_id == version.id)),
        parent=session.get(PolicyVersion, version.parent_id) if version.parent_id is not None else None,
    )


def was_active(session: Session, version: PolicyVersion) -> bool:
    """Whether it is in the history, so that one may go back to it."""
    return bool(session.scalar(select(exists().where(Promotion.policy_version_id == version.id))))


def former_version(session: Session) -> PolicyVersion | None:
    """What a rollback brings back: the version before the promotion that made the active one active."""
    current = current_version(session)
    if current is None:
        return None
    try:
        return versions.former_version(session, current)
    except Conflict:
        return None


def why_not_promotable(session: Session, version: PolicyVersion) -> str | None:
    """Why a version cannot be promoted by hand, in a sentence; None where it can."""
    if version.state != "candidate":
        return gettext(
            "%(name)s: %(state)s. Only a candidate can be promoted.",
            name=version.name,
            state=words.VERSION_STATES[version.state][1],
        )
    report = session.scalar(select(GateReport).where(GateReport.policy_version_id == version.id))
    if report is None:
        return gettext(
            "%(name)s has no gate report; only a version that passed the gate can be promoted.", name=version.name
        )
    if not report.passed:
        return gettext(
            "%(name)s did not pass the gate; only a version that passed it can be promoted.", name=version.name
        )
    cycle = session.get(Cycle, version.cycle_id) if version.cycle_id is not None else None
    if cycle is not None and cycle.state in UNFINISHED:
        return gettext(
            "Cycle %(cycle)s is still running and promotes %(name)s itself; wait for it, or cancel it.",
            cycle=cycle.id,
            name=version.name,
        )
    current = active_version(session)
    if current.id != report.incumbent_id:
        return gettext(
            "%(name)s was gated against another version than %(current)s, which is active now. Run a cycle.",
            name=version.name,
            current=current.name,
        )
    return None


def refuse_unpromotable(session: Session, version: PolicyVersion) -> None:
    """Raise Conflict unless the version can be promoted by hand."""
    reason = why_not_promotable(session, version)
    if reason is not None:
        raise Conflict(gettext("%(reason)s Nothing was changed.", reason=reason))


def refuse_alone(version: PolicyVersion, current: PolicyVersion) -> None:
    """Raise Conflict where a version is to be compared with itself."""
    if version.id == current.id:
        raise Conflict(
            gettext("%(name)s is active; open another version, to compare that one with it.", name=version.name)
        )


def check_rows(checks: Any) -> list[CheckRow]:
    """The checks of a gate report as they are read; those that failed come first."""
    rows = [_check_row(c) for c in checks or [] if isinstance(c, dict)]
    return sorted(rows, key=lambda row: row.passed)


def rate_groups(evidence: dict[str, Any], key: str) -> list[str]:
    """The names of the groups ("by_category", "by_kind") that any of the compared versions has."""
    return sorted(
        {name for who in ("base", "incumbent", "candidate") for name in (evidence.get(who) or {}).get(key) or {}}
    )


def compared(report: GateReport, version: PolicyVersion) -> Sequence[tuple[str, str]]:
    """(heading, key of the evidence) of the versions that a gate report compares; base once where it is the incumbent."""
    incumbent = report.evidence.get("incumbent_version")
    columns = [(gettext("base, the incumbent") if incumbent == "base" else gettext("base"), "base")]
    if incumbent != "base":
        name = incumbent or gettext("incumbent")
        columns.append((gettext("%(version)s, the incumbent", version=name), "incumbent"))
    return [*columns, (gettext("%(version)s, the candidate", version=version.name), "candidate")]


def _check_row(check: dict[str, Any]) -> CheckRow:
    name = str(check.get("name", "unnamed"))
    low, high = words.finite(check.get("low")), words.finite(check.get("high"))
    interval = ""
    if low is not None and high is not None:
        interval = words.percent_interval(low, high) if name in SHARES else f"{words.number(low)}–{words.number(high)}"
    limit = _quantity(name, check.get("threshold"), threshold=True)
    allowed = {
        "<=": gettext("at most %(limit)s", limit=limit),
        ">=": gettext("at least %(limit)s", limit=limit),
    }.get(str(check.get("rule")), limit)
    return CheckRow(
        name=words.check_name(name),
        meaning=words.check_meaning(str(check.get("meaning", ""))),
        value=_quantity(name, check.get("value"))
        if words.finite(check.get("value")) is not None
        else gettext("no evidence"),
        interval=interval,
        interval_of=str(INTERVAL_OF.get(name, "")) if interval else "",
        allowed=allowed,
        n=words.number(check.get("n")),
        passed=check.get("passed") is True,
    )


def _quantity(name: str, value: Any, *, threshold: bool = False) -> str:
    if name in SHARES:
        return words.percent(value, signed=name in RISES and not threshold)
    if name == P_VALUE:
        return words.number(value, 2) if threshold else f"p = {words.number(value)}"
    found = words.finite(value)
    if found is not None and found == int(found) and name not in UNITS:
        return words.number(int(found))
    unit = UNITS.get(name, "")
    return f"{words.number(value, 2 if threshold else 3)}{' ' + unit if unit else ''}"
