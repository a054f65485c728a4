"""The tables of the quality pages: what each figure is of, in words, and the rows behind it. It changes nothing."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from access.models import Person
from console.figures import Column, Kind, Plot, Table
from core.db import utcnow
from core.settings import QualitySettings
from feedback.models import KINDS, Assignment, Gold, GoldResult, Prompt, Rule, Task
from feedback.quality import agreement, annotators, consensus, flips, queue, violations
from feedback.quality.acts import Window, left_out
from feedback.quality.estimate import Estimate, missing, share
from feedback.quality.kept import Kept, kept
from policy.models import PolicyVersion

DAYS = (7, 28, 90, 365)
PAGE = 50
EXPORTED = 5000
EXCERPT = 200

KIND_WORDS = {
    "pairwise": _l("pairs"), "ranking": _l("rankings"), "rating": _l("ratings"), "rule_check": _l("rule checks"),
    "correction": _l("corrections"), "probe": _l("probes"),
}  # fmt: skip
POOL_WORDS = {
    "adjudication": _l("to be settled"), "canary": _l("canary"), "flagged": _l("flagged by users"),
    "informative": _l("informative"), "uniform": _l("even sample"), "gold": _l("known answers"),
    "repeat": _l("shown again"),
}  # fmt: skip
SOURCE_WORDS = {
    "overlap": _l("two people on the same pair"),
    "repeats": _l("one person twice on the same pair"),
    "gold": _l("known answers"),
}
STANDING_WORDS = {
    "good": ("badge-ok", _l("good")), "warned": ("badge-unsure", _l("warned")), "paused": ("badge-bad", _l("paused")),
}  # fmt: skip
NO_FLAGS = _l("Nothing was flagged. What annotators flag while they judge stands here, with their reason.")
NO_GOLD = _l("No task has a known answer yet. They are made through the API or an import, and measure annotators.")


@dataclass(frozen=True)
class Filters:
    """What the reader asked for; the same words stand in the addresses of pages and of files."""

    days: int = 28
    simulated: bool = False
    rule: str = ""
    sort: str = ""
    before: int | None = None
    limit: int = PAGE

    @property
    def since(self) -> dt.datetime:
        """The beginning of the first day, in UTC."""
        first = utcnow().date() - dt.timedelta(days=self.days - 1)
        return dt.datetime.combine(first, dt.time(), dt.UTC)

    def query(self, **other: Any) -> dict[str, Any]:
        """The arguments of an address, without what is as usual."""
        found = {"days": self.days, "simulated": int(self.simulated), "rule": self.rule, "sort": self.sort} | other
        usual = {"days": 28, "simulated": 0, "rule": "", "sort": ""}
        return {name: value for name, value in found.items() if value is not None and value != usual.get(name)}


@dataclass(frozen=True)
class Reader:
    """What tables are made with: the database, what was asked for, and the settings."""

    session: Session
    filters: Filters
    settings: QualitySettings

    @property
    def window(self) -> Window:
        """Which judgments count."""
        return Window(self.filters.since, self.filters.simulated, self.settings.newest_tasks)

    def kept(self, name: str, compute: Callable[[], Any]) -> Kept[Any]:
        """A figure that depends on the window alone, kept for a while where it is dear."""
        return kept(self.session, (name, self.window), compute)

    def table(self, name: str, title: str, columns: list[Column], rows: list[dict[str, Any]], **more: Any) -> Table:
        """A table of this reader's filters."""
        return Table(name, title, columns, rows, filters=self.filters.query(), **more)


# Progress and throughput ----------------------------------------------------------------------------------------------


def progress(reader: Reader) -> Table:
    """How far the tasks are."""
    found = kept(reader.session, "progress", lambda: queue.progress(reader.session))
    columns = [
        Column("kind", _("Kind")), Column("done", _("Tasks done"), "number"), Column("live", _("Open"), "number"),
        Column("cancelled", _("Cancelled"), "number"), Column("places_done", _("Judgments"), "number"),
        Column("places", _("Wanted"), "number"),
        Column("share", _("Share"), "share"),
    ]  # fmt: skip
    rows = [
        vars(p) | {"kind": _kind(p.kind), "share": p.places_done / p.places if p.places else None} for p in found.value
    ]
    return reader.table(
        "progress", _("Progress"), columns, rows, as_of=found.at,
        note=_("All tasks there are, whenever they were made; known answers and repeats apart."),
        empty=_("There are no tasks yet. A cycle's collect stage makes some, or an import."),
    )  # fmt: skip


def throughput(reader: Reader) -> Table:
    """Judgments by day."""
    days, simulated = reader.filters.days, reader.filters.simulated
    found = reader.kept("throughput", lambda: queue.throughput(reader.session, days, simulated=simulated))
    there = [kind for kind in KINDS if any(day.by_kind.get(kind) for day in found.value)]
    columns = [
        Column("day", _("Day (UTC)"), "day"), Column("total", _("All"), "number"),
        *(Column(kind, _kind(kind), "number") for kind in there), Column("people", _("People"), "number"),
    ]  # fmt: skip
    rows = [
        {"day": day.day, "total": day.total, "people": day.people} | {k: day.by_kind.get(k, 0) for k in there}
        for day in found.value
    ]
    total = sum(day.total for day in found.value)
    lines = ("total", *there[:3]) if len(there) > 1 else ("total",)
    return reader.table(
        "throughput", _("Judgments per day"), columns, rows, as_of=found.at,
        plot=Plot(lines, _("judgments"), low=0) if total else None,
        note=_("%(total)s judgments of tasks; a changed mind is no further one.", total=f"{total:,}"),
        empty=_nothing(reader, total, _("nobody judged a task in this time")),
    )  # fmt: skip


# Agreement ------------------------------------------------------------------------------------------------------------


def agreements(reader: Reader) -> Table:
    """Alpha by kind and by rule."""
    found = _agreement(reader)
    columns = [
        Column("kind", _("Kind")), Column("measure", _("What is compared")), Column("rule", _("Rule"), "user"),
        Column("level", _("Scale")), Column("alpha", _("Krippendorff's alpha"), "figure"),
    ]  # fmt: skip
    rows = [
        {
            "kind": _kind(a.measure.kind), "measure": _(a.measure.name), "rule": a.rule, "alpha": a.alpha,
            "level": _("nominal") if a.measure.level == "nominal" else _("ordinal"),
        }
        for a in found.value
        if a.week is None
    ]  # fmt: skip
    return reader.table(
        "agreement", _("Agreement between people"), columns, rows, as_of=found.at, note=_compared(reader)
    )


def agreement_weeks(reader: Reader) -> Table:
    """Alpha by week."""
    found = _agreement(reader)
    columns = [
        Column("week", _("Week from (UTC)"), "day"),
        Column("pairwise", _("Choice in pairs"), "figure"),
        Column("rating", _("Ratings over all"), "figure"),
        Column("rule_check", _("Rule verdicts"), "figure"),
    ]
    by_week: dict[dt.date, dict[str, Any]] = {}
    for a in found.value:
        if a.week is not None:
            by_week.setdefault(a.week, {"week": a.week})[a.measure.kind] = a.alpha
    rows = [by_week[week] for week in sorted(by_week)]
    return reader.table(
        "agreement-weeks", _("Agreement over time"), columns, rows, as_of=found.at,
        plot=Plot(("pairwise", "rating", "rule_check"), _("alpha"), high=1), note=_compared(reader),
        empty=_nothing(reader, rows, _("no task was judged by two people in this time")),
    )  # fmt: skip


def flip_rates(reader: Reader) -> Table:
    """The flip rate by source."""
    found = _flips(reader)
    columns = [Column("source", _("Source")), Column("epsilon", _("Flip rate ε"), "share")]
    rows = [{"source": str(SOURCE_WORDS[source]), "epsilon": e} for source, e in found.value.items()]
    return reader.table(
        "flip-rate", _("How often a preference is reported the wrong way round"), columns, rows, as_of=found.at,
        note=_("Of all time. Training reads the first that is defined, of people's judgments; each snapshot keeps its own."),
    )  # fmt: skip


def settled(reader: Reader) -> Table:
    """What rule checks say together, the least certain first."""
    found = reader.kept("rules", lambda: consensus.rule_consensus(reader.session, reader.window))
    columns = [
        Column("task_id", _("Task"), "number"), Column("rule", _("Rule"), "user"), Column("says", _("Together")),
        Column("probability", _("Probability"), "share"), Column("n", _("Verdicts"), "number"),
    ]  # fmt: skip
    verdicts = {"broken": _("broken"), "kept": _("kept")}
    rows = [vars(s) | {"says": verdicts[s.says]} for s in found.value.settled[: reader.filters.limit]]
    why = found.value.undefined
    return reader.table(
        "consensus", _("Rule checks, the least certain first"), columns, rows, as_of=found.at,
        note=_("Dawid-Skene over rule checks with two verdicts or more."),
        empty=_("Undefined, because %(reason)s.", reason=_(why.text, **why.facts)) if why else "",
    )  # fmt: skip


# Rules ----------------------------------------------------------------------------------------------------------------


def _violations(reader: Reader) -> tuple[Kept[list[violations.Violations]], dict[int, str]]:
    found = reader.kept("violations", lambda: violations.violations(reader.session, reader.window))
    ids = {v.policy_version_id for v in found.value}
    versions = select(PolicyVersion.id, PolicyVersion.name).where(PolicyVersion.id.in_(ids)).order_by(PolicyVersion.id)
    return found, {row.id: row.name for row in reader.session.execute(versions)}


def violations_by_version(reader: Reader) -> Table:
    """Rates of one rule, or of any, by policy version."""
    found, versions = _violations(reader)
    rule = reader.filters.rule or None
    none = missing(violations.NOTHING)
    rates = {(v.policy_version_id, v.probed): v.rate for v in found.value if v.rule == rule}
    columns = [
        Column("version", _("Version")), Column("checked", _("Rule checks"), "share"),
        Column("probed", _("Probes"), "share"),
    ]  # fmt: skip
    rows = [
        {"version": name, "checked": rates.get((i, False), none), "probed": rates.get((i, True), none)}
        for i, name in versions.items()
    ]
    return reader.table(
        "violations-by-version",
        _("Rule %(rule)s broken, by policy version", rule=rule) if rule else _("Rules broken, by policy version"),
        columns, rows, as_of=found.at, plot=Plot(("checked", "probed"), _("share broken"), low=0),
        note=_("Share of completions judged on a rule, with 95 % Wilson intervals; n counts completions, once per rule."),
        empty=_nothing(reader, rows, _(violations.NOTHING)),
    )  # fmt: skip


def violations_by_rule(reader: Reader) -> Table:
    """Rates of each rule by policy version."""
    found, versions = _violations(reader)
    columns = [
        Column("rule", _("Rule"), "user"), Column("version", _("Version")), Column("asked", _("Asked in")),
        Column("rate", _("Broken"), "share"),
    ]  # fmt: skip
    rows = [
        {
            "rule": v.rule, "version": versions.get(v.policy_version_id), "rate": v.rate,
            "asked": _("probes") if v.probed else _("rule checks"),
        }
        for v in found.value
        if v.rule is not None
    ]  # fmt: skip
    return reader.table(
        "violations", _("Each rule by policy version"), columns, rows, as_of=found.at,
        empty=_nothing(reader, rows, _(violations.NOTHING)),
    )  # fmt: skip


def rules(session: Session) -> list[str]:
    """All rules by name, for the filter."""
    return list(session.scalars(select(Rule.slug).order_by(Rule.slug)))


# The queue ------------------------------------------------------------------------------------------------------------


def health(reader: Reader) -> Kept[queue.Health]:
    """What waits, and for whom."""
    return kept(reader.session, "health", lambda: queue.health(reader.session))


def waiting(reader: Reader) -> Table:
    """Open tasks by pool and kind."""
    found = health(reader)
    now = utcnow()
    columns = [
        Column("pool", _("Waits as")), Column("kind", _("Kind")), Column("tasks", _("Open tasks"), "number"),
        Column("places", _("Judgments wanted"), "number"), Column("oldest", _("Oldest"), "instant"),
        Column("age_s", _("Waits for"), "seconds"),
    ]  # fmt: skip
    rows = [
        {
            "pool": str(POOL_WORDS[w.pool]), "kind": _kind(w.kind), "tasks": w.tasks, "oldest": w.oldest,
            "places": None if w.pool == "gold" else w.places,  # everybody may get those
            "age_s": (now - w.oldest).total_seconds() if w.oldest else None,
        }
        for w in found.value.waiting
    ]  # fmt: skip
    held = found.value
    return reader.table(
        "queue", _("What waits"), columns, rows, as_of=found.at,
        note=_(
            "%(leases)s places are held by annotators now, %(lapsed)s of them beyond their time.",
            leases=f"{held.leases:,}", lapsed=f"{held.lapsed:,}",
        ),
        empty=_("No task is open. A cycle's collect stage makes some, or an import."),
    )  # fmt: skip


# Annotators -----------------------------------------------------------------------------------------------------------


def tracks(reader: Reader) -> Table:
    """Everybody who judged, with their standing as it is now."""

    def compute() -> list[annotators.Track]:
        rules_, pairs = (
            consensus.rule_consensus(reader.session, reader.window),
            consensus.pair_consensus(reader.session, reader.window),
        )
        return annotators.tracks(reader.session, reader.window, reader.settings, rules=rules_, pairs=pairs)

    found = reader.kept("tracks", compute)
    standing = annotators.standing_of(reader.session, [t.person_id for t in found.value])
    order = annotators.SORTS.get(reader.filters.sort)
    ordered = sorted(found.value, key=order) if order else found.value
    columns = [
        Column("login", _("Annotator"), "user"), Column("standing", _("Standing"), "standing"),
        Column("why", _("Why"), "user", shown=False), Column("judgments", _("Judgments"), "number"),
        Column("gold", _("Known answers right"), "share"), Column("left", _("Left side preferred"), "share"),
        Column("swap", _("Same when swapped"), "share"), Column("fast", _("Too fast"), "share"),
        Column("seconds", _("Median time"), "seconds"), Column("on_rules", _("Reliable on rules"), "share"),
        Column("on_pairs", _("Reliable on pairs"), "share"), Column("skips", _("Skipped"), "number"),
        Column("flags", _("Flagged"), "number"),
    ]  # fmt: skip
    rows = [standing[t.person_id] | vars(t) for t in ordered if t.person_id in standing]
    return reader.table(
        "annotators", _("Annotators"), columns, rows, as_of=found.at,
        note=_(
            "Time, sides and repeats: of everybody's newest %(n)s judgments in this time. At most %(most)s people, by login.",
            n=f"{reader.settings.newest_judgments:,}", most=annotators.MOST_PEOPLE,
        ),
        empty=_nothing(reader, rows, _("nobody judged a task in this time")),
    )  # fmt: skip


# Known answers and flags ----------------------------------------------------------------------------------------------


def golds(reader: Reader) -> Table:
    """Tasks with known answers, and how many give them."""
    query = select(Task.id, Task.kind, Task.created_at, Gold.expected, Gold.explanation, Prompt.messages)
    query = query.join(Gold, Gold.task_id == Task.id).outerjoin(Prompt, Prompt.id == Task.prompt_id)
    if reader.filters.before:
        query = query.where(Gold.task_id < reader.filters.before)
    tasks = reader.session.execute(query.order_by(Gold.task_id.desc()).limit(reader.filters.limit + 1)).all()
    page = tasks[: reader.filters.limit]
    passed = func.sum(case((GoldResult.passed, 1), else_=0))
    results = select(GoldResult.task_id, passed, func.count()).where(GoldResult.task_id.in_([row.id for row in page]))
    rates = {row[0]: (int(row[1]), row[2]) for row in reader.session.execute(results.group_by(GoldResult.task_id))}
    columns = [
        Column("task_id", _("Task"), "number"), Column("kind", _("Kind")), Column("prompt", _("Prompt"), "user"),
        Column("expected", _("Known answer")), Column("explanation", _("Explanation"), "user"),
        Column("passed", _("Answered so"), "share"), Column("created_at", _("Made"), "instant"),
    ]  # fmt: skip
    rows = [
        {
            "task_id": row.id, "kind": _kind(row.kind), "prompt": _excerpt(row.messages), "created_at": row.created_at,
            "expected": _expected(row.expected), "explanation": row.explanation,
            "passed": share(*rates.get(row.id, (0, 0)), "nobody has answered it yet"),
        }
        for row in page
    ]  # fmt: skip
    return reader.table(
        "gold", _("Tasks with known answers"), columns, rows, empty=str(NO_GOLD),
        older=page[-1].id if len(tasks) > len(page) else None,
        note=_("One that hardly anybody answers as known may itself be wrong. Results of all time, scripts included."),
    )  # fmt: skip


def flags(reader: Reader) -> Table:
    """What annotators flagged, newest first."""
    query = (
        select(
            Assignment.id, Assignment.created_at, Assignment.task_id, Assignment.skip_reason, Person.login, Task.kind,
            Prompt.messages,
        )
        .join(Person, Person.id == Assignment.annotator_id)
        .join(Task, Task.id == Assignment.task_id)
        .outerjoin(Prompt, Prompt.id == Task.prompt_id)
        .where(*_flagged(reader))
    )  # fmt: skip
    if reader.filters.before:
        query = query.where(Assignment.id < reader.filters.before)
    found = reader.session.execute(query.order_by(Assignment.id.desc()).limit(reader.filters.limit + 1)).all()
    page = found[: reader.filters.limit]
    columns = [
        Column("at", _("Handed out"), "instant"), Column("login", _("By"), "user"),
        Column("task_id", _("Task"), "number"), Column("kind", _("Kind")), Column("reason", _("Reason"), "user"),
        Column("prompt", _("Prompt"), "user"),
    ]  # fmt: skip
    rows = [
        {
            "at": row.created_at, "login": row.login, "task_id": row.task_id, "kind": _kind(row.kind),
            "reason": row.skip_reason.removeprefix("flagged:").strip(), "prompt": _excerpt(row.messages),
        }
        for row in page
    ]  # fmt: skip
    return reader.table(
        "flags", _("Flagged while judging"), columns, rows, empty=str(NO_FLAGS),
        older=page[-1].id if len(found) > len(page) else None,
    )  # fmt: skip


def count_flags(reader: Reader) -> int:
    """How many tasks were flagged in the window."""
    query = select(func.count()).select_from(Assignment).where(*_flagged(reader))
    return int(reader.kept("flags", lambda: reader.session.scalar(query) or 0).value)


def _flagged(reader: Reader) -> tuple[Any, ...]:
    return (
        Assignment.state == "skipped",
        Assignment.skip_reason.startswith("flagged:"),
        Assignment.created_at >= reader.filters.since,
    )


# The overview's cards -------------------------------------------------------------------------------------------------


def agreement_on_pairs(reader: Reader) -> Estimate:
    """Alpha of the choice in pairs, for the overview."""
    found = _agreement(reader).value
    return next(a.alpha for a in found if a.measure.kind == "pairwise")


def flip_rate(reader: Reader) -> Estimate:
    """The first flip rate that is defined, which is what training reads unless simulated judgments were asked for."""
    rates = _flips(reader).value
    return next((e for e in rates.values() if e.value is not None), rates["overlap"])


def _agreement(reader: Reader) -> Kept[list[agreement.Agreement]]:
    return reader.kept("agreement", lambda: agreement.agreement(reader.session, reader.window))


def _flips(reader: Reader) -> Kept[dict[str, Estimate]]:
    window = Window(simulated=reader.filters.simulated)
    return kept(reader.session, ("flips", window), lambda: flips.flip_rates(reader.session, window))


def count_people(reader: Reader) -> int:
    """How many people judged tasks."""
    return len(reader.kept("people", lambda: annotators.judging(reader.session, reader.window)).value)


def count_left_out(reader: Reader) -> int:
    """Simulated judgments that the figures leave out."""
    return int(reader.kept("left out", lambda: left_out(reader.session, reader.window)).value)


TABLES: dict[str, Callable[[Reader], Table]] = {
    "progress": progress, "throughput": throughput, "agreement": agreements, "agreement-weeks": agreement_weeks,
    "flip-rate": flip_rates, "consensus": settled, "violations-by-version": violations_by_version,
    "violations": violations_by_rule, "queue": waiting, "annotators": tracks, "gold": golds, "flags": flags,
}  # fmt: skip
"""All tables by the name that stands in the address of their files."""


def for_export(reader: Reader) -> Reader:
    """The same, with as many rows as a file may have."""
    return replace(reader, filters=replace(reader.filters, limit=EXPORTED))


def _kind(kind: str) -> str:
    return str(KIND_WORDS.get(kind, kind))


def _excerpt(messages: list[dict[str, str]] | None) -> str | None:
    text = (messages or [{}])[-1].get("content", "")
    return f"{text[:EXCERPT]}…" if len(text) > EXCERPT else text or None


def _expected(expected: dict[str, Any]) -> str:
    values = (v if isinstance(v, list) else [v] for v in expected.values())
    return "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in zip(expected, values, strict=True))


def _compared(reader: Reader) -> str:
    return str(
        _(
            "Of the newest %(n)s tasks of a kind that two people or more judged; bootstrap intervals over tasks.",
            n=f"{reader.settings.newest_tasks:,}",
        )
    )


def _nothing(reader: Reader, found: object, reason: str) -> str:
    """Why a table is empty, and what was left out; nothing where something was found."""
    if found:
        return ""
    text = str(_("Undefined, because %(reason)s.", reason=reason))
    n = count_left_out(reader)
    if not n:
        return text
    more = ngettext("%(num)d simulated judgment is left out.", "%(num)d simulated judgments are left out.", n)
    return f"{text} {more}"


SORT_WORDS: dict[str, Any] = {
    "": _l("login"), "judgments": _l("most judgments"), "gold": _l("known answers, worst first"),
    "left": _l("farthest from even sides"), "swap": _l("least the same when swapped"), "fast": _l("too fast most often"),
    "seconds": _l("shortest time"),
}  # fmt: skip
KIND_OF_CELL: tuple[Kind, ...] = ("number", "share", "figure", "seconds")
"""Columns that are set to the right."""
