"""What is stored, as rows of our own form: tasks with all their judgments. The way back is `loading`.

Cancelled tasks are left out. Simulated judgments are left out unless asked for, and marked where they are taken. What was
judged before and then superseded is told too, in order, so that the last word of each person is the one that counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, contains_eager, joinedload, selectinload

from access.models import Person
from access.tenants import tenant_keys
from core.db import Database
from feedback.exchange.rows import JudgmentRow, MessageRow, Reply, TaskRow
from feedback.judgments import read_said
from feedback.kinds.frame import Said
from feedback.models import (
    Assignment,
    Completion,
    Gold,
    Judgment,
    RuleJudgment,
    RuleVersion,
    Task,
    TaskItem,
)

TASKS_AT_A_TIME = 200
SIDES = {"a": "left", "b": "right"}


def stored_rows(db: Database, *, include_simulated: bool = False) -> Iterator[TaskRow]:
    """All tasks that are not cancelled, in the order of their ids; each few in a transaction of their own, so that a long
    export holds none."""
    after = 0
    while True:
        with db.read() as session:
            query = _tasks().where(Task.id > after, Task.state != "cancelled").order_by(Task.id).limit(TASKS_AT_A_TIME)
            tasks = session.scalars(query).all()
            rows = rows_of(session, tasks, include_simulated=include_simulated)
        if not tasks:
            return
        yield from rows
        after = tasks[-1].id


def rows_of(session: Session, tasks: Sequence[Task], *, include_simulated: bool) -> list[TaskRow]:
    """These tasks as rows, with what was said about them."""
    ids = [task.id for task in tasks]
    gold = {row.task_id: row for row in session.scalars(select(Gold).where(Gold.task_id.in_(ids)))}
    about = dict(
        session.execute(
            select(Task.id, Task.source).where(Task.id.in_([t.about_id for t in tasks if t.about_id]))
        ).all()
    )
    query = (
        select(Judgment, Person.login, Assignment.shown_order)
        .join(Person, Person.id == Judgment.annotator_id)
        .outerjoin(Assignment, Assignment.id == Judgment.assignment_id)
        .where(Judgment.task_id.in_(ids))
        .order_by(Judgment.id)
    )
    if not include_simulated:
        query = query.where(~Judgment.simulated)
    found = session.execute(query).all()
    said = read_said(session, [row.Judgment for row in found])
    teller = _Teller(session, [judgment_id for row in found if (judgment_id := row.Judgment.id)])
    by_id = {task.id: task for task in tasks}
    judgments: dict[int, list[JudgmentRow]] = {number: [] for number in ids}
    for row, words in zip(found, said, strict=True):
        judgment: Judgment = row.Judgment
        values, replies = teller.tell(by_id[judgment.task_id or 0], words)
        judgments[judgment.task_id or 0].append(
            JudgmentRow.model_construct(
                annotator=row.login, judgment=values, shown_order=row.shown_order, replies=replies,
                simulated=judgment.simulated, latency_s=judgment.latency_s, created_at=judgment.created_at,
            )
        )  # fmt: skip
    return [_row(task, gold.get(task.id), about.get(task.about_id or 0), judgments[task.id], teller) for task in tasks]


def _tasks() -> Any:
    items = selectinload(Task.items).joinedload(TaskItem.completion)
    return select(Task).options(joinedload(Task.prompt), items)


def _row(task: Task, gold: Gold | None, about: str | None, judgments: list[JudgmentRow], teller: "_Teller") -> TaskRow:
    values: dict[str, Any] = {
        "kind": task.kind,
        "messages": _turns(task.prompt.messages if task.prompt else []),
        "completions": [completion.text for completion in task.completions],
        "rule": None if task.rule_version_id is None else teller.rule(task.rule_version_id),
        "gold": gold.expected if gold else None,
        "explanation": gold.explanation if gold else "",
        "category": task.category,
        "harmful": task.prompt.harmful if task.prompt else None,
        "pool": task.pool,
        "priority": task.priority,
        "required_n": 1 if gold else task.required_n,
        "why": task.why,
        "source": task.source,
        "tenant": teller.tenant(task.prompt.tenant_id if task.prompt else None),
        "about": about,
        "judgments": judgments,
    }
    # Not validated: what is stored was checked when it came, and must come out whatever today's limits are.
    return TaskRow.model_construct(**values)


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[MessageRow]:
    return [MessageRow.model_construct(**{name: turn[name] for name in ("role", "content")}) for turn in messages]


class _Teller:
    """Says judgments in the words of their kinds' forms, with names that mean the same in another database."""

    def __init__(self, session: Session, judgment_ids: Sequence[int]) -> None:
        self.session = session
        self.rules: dict[int, str] = {}
        self.tenants: dict[int, str] = {}
        probed = (
            select(Completion)
            .join(RuleJudgment, RuleJudgment.completion_id == Completion.id)
            .join(Judgment, Judgment.id == RuleJudgment.judgment_id)
            .join(Completion.prompt)
            .options(contains_eager(Completion.prompt))
            .where(Judgment.id.in_(judgment_ids), Judgment.kind == "probe")
        )
        self.replies = {reply.id: reply for reply in session.scalars(probed).unique()}

    def tenant(self, tenant_id: int | None) -> str | None:
        """A tenant by its key."""
        if tenant_id is None:
            return None
        if tenant_id not in self.tenants:
            self.tenants |= tenant_keys(self.session, [tenant_id])
        return self.tenants[tenant_id]

    def rule(self, version_id: int) -> str:
        """A rule version by its name."""
        if version_id not in self.rules:
            version = self.session.get_one(RuleVersion, version_id, options=[joinedload(RuleVersion.rule)])
            self.rules[version_id] = f"{version.rule.slug}@{version.version}"
        return self.rules[version_id]

    def tell(self, task: Task, said: Said) -> tuple[dict[str, Any], dict[str, Reply]]:
        """The form's values of what was said, items in the order of positions, and the replies that it names."""
        values: dict[str, Any] = {"kind": task.kind} | ({"note": said.note} if said.note else {})
        if task.kind == "probe":
            values["turns"] = [{"completion_id": f.completion_id, **_verdict(f)} for f in said.findings]
            return values, {f.completion_id: self._reply(f.completion_id) for f in said.findings}
        if task.kind == "rule_check":
            return values | _verdict(said.findings[0]), {}
        place = {item.completion_id: item.position for item in task.items}
        verdicts = [
            {"rule": self.rule(f.rule_version_id), "item": place[f.completion_id], **_verdict(f)} for f in said.findings
        ]
        edits = {place[completion_id]: text for completion_id, text in said.edits}
        values |= ({"rule_verdicts": verdicts} if verdicts else {}) | ({"corrections": edits} if edits else {})
        if task.kind == "pairwise":
            return values | {"choice": SIDES.get(said.choice or "", said.choice), "strength": said.strength}, {}
        if task.kind == "ranking":
            return values | (said.answer or {}) | {"all_wrong": said.choice == "all_wrong"}, {}
        if task.kind == "rating":
            return values | (said.answer or {}) | {"rating": said.rating}, {}
        return values | {"fine": said.choice == "fine"}, {}

    def _reply(self, completion_id: str) -> Reply:
        reply = self.replies[completion_id]
        return Reply.model_construct(messages=_turns(reply.prompt.messages), text=reply.text)


def _verdict(finding: Any) -> dict[str, Any]:
    told = {"verdict": finding.verdict, "confidence": finding.confidence, "span": finding.span}
    return {name: value for name, value in told.items() if value is not None}


def as_json(row: TaskRow) -> dict[str, Any]:
    """A row as it is written: what is not said is left out."""
    return row.model_dump(mode="json", exclude_none=True, warnings=False)
