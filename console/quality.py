"""The tables of the quality pages: what each figure is of, in words, and the rows behind it. It changes nothing."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from console import quality_lists, words
from console.figures import EXPORTED, Column, Plot, Table
from console.quality_reader import POOL_WORDS, REASON_WORDS, SOURCE_WORDS, Reader, count_left_out, kind_word, nothing
from core.db import utcnow
from core.language import gettext as _
from feedback.models import KINDS, Rule
from feedback.quality import agreement, annotators, consensus, flips, queue, versions, violations
from feedback.quality.acts import Window
from feedback.quality.estimate import Estimate, missing
from feedback.quality.kept import Kept, kept
from feedback.sampled import sampled
from policy.models import PolicyVersion

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
        vars(p) | {"kind": kind_word(p.kind), "share": p.places_done / p.places if p.places else None}
        for p in found.value
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
        *(Column(kind, kind_word(kind), "number") for kind in there), Column("people", _("People"), "number"),
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
        note=_("%(total)s judgments of tasks; a changed mind is no further one.", total=words.number(total)),
        empty=nothing(reader, total, _("nobody judged a task in this time")),
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
            "kind": kind_word(a.measure.kind), "measure": _(a.measure.name), "rule": a.rule, "alpha": a.alpha,
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
        empty=nothing(reader, rows, _("no task was judged by two people in this time")),
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
        cut=len(found.value.settled) > reader.filters.limit,
        note=_("Dawid-Skene over rule checks with two verdicts or more."),
        empty=_("Undefined, because %(reason)s.", reason=_(why.text, **why.facts)) if why else "",
    )  # fmt: skip


# Rules ----------------------------------------------------------------------------------------------------------------


def _violations(reader: Reader) -> tuple[Kept[list[violations.Violations]], dict[int, str]]:
    found = reader.kept("violations", lambda: violations.violations(reader.session, reader.window))
    return found, _names(reader, {v.policy_version_id for v in found.value})


def _names(reader: Reader, ids: set[int]) -> dict[int, str]:
    """The names of policy versions, oldest first."""
    named = select(PolicyVersion.id, PolicyVersion.name).where(PolicyVersion.id.in_(ids)).order_by(PolicyVersion.id)
    return {row.id: row.name for row in reader.session.execute(named)}


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
        empty=nothing(reader, rows, _(violations.NOTHING)),
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
        empty=nothing(reader, rows, _(violations.NOTHING)),
    )  # fmt: skip


def compared(reader: Reader) -> Table:
    """Policy versions side by side, as people see them."""
    found = reader.kept("compared", lambda: versions.compared(reader.session, reader.window))
    names = _names(reader, {i for each in found.value for i in (each.newer_id, each.older_id)})
    columns = [
        Column("version", _("Version")), Column("beside", _("Beside")), Column("preferred", _("Preferred"), "share"),
        Column("ties", _("The same"), "number"), Column("both_bad", _("Both bad"), "number"),
        Column("waiting", _("Tasks that wait"), "number"),
    ]  # fmt: skip
    rows = [vars(each) | {"version": names[each.newer_id], "beside": names[each.older_id]} for each in found.value]
    return reader.table(
        "compared", _("Versions side by side, judged blind"), columns, rows, as_of=found.at,
        note=_("Share of the judgments that prefer either, with 95 % Wilson intervals; those of one prompt are not independent."),
        empty=_("No versions were compared yet. A version's page has a button for it."),
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
            "pool": str(POOL_WORDS[w.pool]), "kind": kind_word(w.kind), "tasks": w.tasks, "oldest": w.oldest,
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
            leases=words.number(held.leases), lapsed=words.number(held.lapsed),
        ),
        empty=_("No task is open. A cycle's collect stage makes some, or an import."),
    )  # fmt: skip


def sampled_replies(reader: Reader) -> Table:
    """Tasks that were made of served replies, by the reason."""
    found = reader.kept("sampled", lambda: sampled(reader.session, reader.filters.days))
    columns = [
        Column("reason", _("Why")), Column("asked", _("Tasks made"), "number"),
        Column("left_out", _("Left out by the budget"), "number"),
    ]  # fmt: skip
    rows = [{"reason": str(REASON_WORDS[reason]), "asked": n, "left_out": left} for reason, n, left in found.value]
    return reader.table(
        "sampled", _("Replies given to annotators"), columns, rows, as_of=found.at,
        note=_("By days in UTC. The budget is DUNNOCK_SAMPLING__TASKS_PER_DAY, for each reason."),
        empty=_("No served reply became a task in this time. DUNNOCK_SAMPLING__RATE has a share of them rated."),
    )  # fmt: skip


def needs(reader: Reader) -> Table:
    """What waits for a reviewer or a lead, and how much was done: the numbers of the overview's cards."""
    found = health(reader)
    numbers = {
        _("to be settled"): found.value.adjudications, _("paused"): found.value.paused, _("warned"): found.value.warned,
        _("flagged"): quality_lists.count_flags(reader), _("people who judged"): count_people(reader),
        _("simulated judgments left out"): count_left_out(reader),
    }  # fmt: skip
    columns = [Column("what", _("What")), Column("n", _("How many"), "number")]
    rows = [{"what": what, "n": n} for what, n in numbers.items()]
    return reader.table("needs", _("What needs you?"), columns, rows, as_of=found.at)


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


TABLES: dict[str, Callable[[Reader], Table]] = {
    "progress": progress, "throughput": throughput, "agreement": agreements, "agreement-weeks": agreement_weeks,
    "flip-rate": flip_rates, "consensus": settled, "violations-by-version": violations_by_version,
    "violations": violations_by_rule, "compared": compared, "queue": waiting, "sampled": sampled_replies, "needs": needs, "annotators": quality_lists.tracks, "gold": quality_lists.golds,
    "flags": quality_lists.flags,
}  # fmt: skip
"""All tables by the name that stands in the address of their files."""


def for_export(reader: Reader) -> Reader:
    """The same, with as many rows as a file may have."""
    return replace(reader, filters=replace(reader.filters, limit=EXPORTED))


def _compared(reader: Reader) -> str:
    return str(
        _(
            "Of the newest %(n)s tasks of a kind that two people or more judged; bootstrap intervals over tasks.",
            n=words.number(reader.settings.newest_tasks),
        )
    )
