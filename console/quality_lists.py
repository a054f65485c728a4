"""The lists of the quality pages: annotators with their tracks, tasks with known answers, and what was flagged."""

from typing import Any

from sqlalchemy import case, func, select

from access.models import Person
from console import words
from console.figures import Column, Table
from console.quality_reader import Reader, kind_word, nothing
from core.language import N_
from core.language import gettext as _
from core.language import lazy_gettext as _l
from feedback.models import Assignment, Gold, GoldResult, Prompt, Task
from feedback.quality import annotators, consensus
from feedback.quality.estimate import share

EXCERPT = 200

NO_FLAGS = _l("Nothing was flagged. What annotators flag while they judge stands here, with their reason.")
NO_GOLD = _l("No task has a known answer yet. They are made through the API or an import, and measure annotators.")

NOT_ANSWERED = N_("nobody has answered it yet")

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
            n=words.number(reader.settings.newest_judgments), most=annotators.MOST_PEOPLE,
        ),
        empty=nothing(reader, rows, _("nobody judged a task in this time")),
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
            "task_id": row.id, "kind": kind_word(row.kind), "prompt": _excerpt(row.messages), "created_at": row.created_at,
            "expected": _expected(row.expected), "explanation": row.explanation,
            "passed": share(*rates.get(row.id, (0, 0)), NOT_ANSWERED),
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
            "at": row.created_at, "login": row.login, "task_id": row.task_id, "kind": kind_word(row.kind),
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


def _excerpt(messages: list[dict[str, str]] | None) -> str | None:
    text = (messages or [{}])[-1].get("content", "")
    return f"{text[:EXCERPT]}…" if len(text) > EXCERPT else text or None


def _expected(expected: dict[str, Any]) -> str:
    values = (v if isinstance(v, list) else [v] for v in expected.values())
    return "; ".join(f"{k}: {', '.join(map(str, v))}" for k, v in zip(expected, values, strict=True))
