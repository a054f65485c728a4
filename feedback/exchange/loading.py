"""Writing rows of tasks and judgments into the database. In: rows with their lines. Out: tasks, judgments, a report.

Judgments that come with a task belong to people of their own, who cannot sign in ("ext:ana"; scripted ones "ext-script:…"),
and each is marked by a row of `imported_judgment`. They take places of the task as any judgment does. Each row goes in as a
whole or not at all; equal rows add nothing, so an import that was broken off is repeated. No webhook tells of an import.
"""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from access.models import Person
from access.names import IMPORTED, MAX_LOGIN
from access.tenants import tenant_id_of
from core.db import Database, utcnow
from core.errors import DunnockError, ImportRowError, InvalidInput
from core.messages import conversation_hash
from core.settings import GoldSettings
from feedback.assignment.gold import measure
from feedback.assignment.leases import claim_task, finish
from feedback.assignment.shown import load_shown
from feedback.blind import Blind
from feedback.exchange.reading import Read
from feedback.exchange.rows import JudgmentRow, Reply, TaskRow, TaskSpec
from feedback.kinds import form_of
from feedback.kinds.frame import Said, validated
from feedback.models import (
    Assignment,
    Completion,
    Correction,
    ImportedJudgment,
    Judgment,
    Rule,
    RuleJudgment,
    RuleVersion,
    Task,
)
from feedback.prompts import add_completion, add_prompt
from feedback.tasks import create_gold, create_task

ROWS_PER_TRANSACTION = 200
PERSON, SCRIPT = IMPORTED


@dataclass
class LoadReport:
    """What an import did; `errors` are (line, reason)."""

    tasks: int = 0
    tasks_there: int = 0
    judgments: int = 0
    judgments_there: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether any row was of use."""
        return bool(self.tasks or self.tasks_there)


def load(db: Database, rows: Iterable[Read], source: str, *, dry_run: bool = False) -> LoadReport:
    """Write rows, some hundred in a transaction; a dry run does the same and keeps nothing."""
    report, seen = LoadReport(), set[str]()
    stream = iter(rows)
    while batch := list(islice(stream, ROWS_PER_TRANSACTION)):
        with db.session() as session:
            outer = session.begin_nested()
            for read in batch:
                _load_one(session, read, source, report, seen if dry_run else set())
            if dry_run:
                outer.rollback()
    return report


def _load_one(session: Session, read: Read, source: str, report: LoadReport, seen: set[str]) -> None:
    report.errors += [(read.line, problem) for problem in read.problems]
    if isinstance(read.row, ImportRowError):
        report.errors.append((read.line, read.row.reason))
        return
    key = read.row.key(read.row.source)
    try:
        with session.begin_nested():
            task, new = load_task(session, read.row, about=read.row.about)
            added = _load_judgments(session, task, read.row, source, new=new)
    except (DunnockError, DataError) as error:
        said = error.message if isinstance(error, DunnockError) else f"cannot be stored: {error.orig}"
        report.errors.append((read.line, said))
        return
    new = new and key not in seen
    seen.add(key)
    report.tasks += new
    report.tasks_there += not new
    report.kinds[task.kind] += new
    report.judgments += sum(added)
    report.judgments_there += len(added) - sum(added)


# Tasks ----------------------------------------------------------------------------------------------------------------


def load_task(session: Session, row: TaskSpec, *, about: str | None = None) -> tuple[Task, bool]:
    """The task of a row, made if it is not there; whether it is new.

    Raises:
        InvalidInput: no judgment can be the known answer, there is no such rule or tenant, or the task that it is about is
            not there.
    """
    found = _find(session, row, row.source)
    if found is not None:
        return found, False
    key, rule_version_id = row.key(row.source), rule_version(session, row.rule)
    prompt = None
    if row.messages:
        messages = [turn.model_dump() for turn in row.messages]
        tenant_id = tenant_id_of(session, row.tenant)
        prompt = add_prompt(
            session, messages, "import", category=row.category, harmful=row.harmful, tenant_id=tenant_id
        )
    ids = [
        add_completion(session, prompt, text, "import", once=f"{key}:{n}").id
        for n, text in enumerate(row.completions)
        if prompt is not None
    ]
    prompt_id = prompt.id if prompt else None
    if row.gold is not None:
        _check_gold(row, row.gold)
        task = create_gold(
            session, row.kind, prompt_id, ids, row.gold, source=key, explanation=row.explanation,
            rule_version_id=rule_version_id,
        )  # fmt: skip
        return task, True
    settled = None if about is None else _find(session, row, about)
    if about is not None and settled is None:
        raise InvalidInput(f"the task that it is about, {about!r}, is not there; import that first", param="about")
    task = create_task(
        session, row.kind, prompt_id, ids, source=key, rule_version_id=rule_version_id, required_n=row.required_n,
        priority=row.priority, pool=row.pool, why=row.why, about_id=settled.id if settled else None,
    )  # fmt: skip
    return task, True


def _check_gold(row: TaskSpec, gold: dict[str, Any]) -> None:
    """Kinds look at known answers as at sets of words or numbers; what is neither ends here."""
    values = [value for some in gold.values() for value in (some if isinstance(some, list) else [some])]
    if not all(isinstance(value, str | int) for value in values):
        raise InvalidInput(f"this cannot be the known answer: {gold}", param="gold")
    form_of(row.kind).check_expected(gold, len(row.completions))


def _find(session: Session, row: TaskSpec, source: str | None) -> Task | None:
    """The task of this content: imported under this name, or, as after an export from here, made under it."""
    live = select(Task).where(Task.state != "cancelled")
    found = session.scalar(live.where(Task.source == row.key(source)))
    if found is not None or source is None:
        return found
    made = session.scalar(live.where(Task.source == source[:120]))
    return made if made is not None and _same(session, made, row) else None


def _same(session: Session, task: Task, row: TaskSpec) -> bool:
    digest = conversation_hash([turn.model_dump() for turn in row.messages]) if row.messages else None
    rule = session.get(RuleVersion, task.rule_version_id) if task.rule_version_id else None
    named = {None} if rule is None else {rule.rule.slug, f"{rule.rule.slug}@{rule.version}"}
    return (
        task.kind == row.kind
        and (task.prompt.messages_sha256 if task.prompt else None) == digest
        and (task.prompt.tenant_id if task.prompt else None) == tenant_id_of(session, row.tenant)
        and [completion.text for completion in task.completions] == row.completions
        and row.rule in named
    )


def rule_version(session: Session, name: str | None) -> int | None:
    """The id of the rule version that "slug" (the newest) or "slug@version" names.

    Raises:
        InvalidInput: there is none.
    """
    if name is None:
        return None
    slug, _, number = name.partition("@")
    query = select(RuleVersion.id).join(Rule, Rule.id == RuleVersion.rule_id).where(Rule.slug == slug)
    if number:
        query = query.where(RuleVersion.version == (int(number) if number.isdecimal() and len(number) < 9 else -1))
    found = session.scalar(query.order_by(RuleVersion.version.desc()).limit(1))
    if found is None:
        raise InvalidInput(f"there is no rule {name!r} here; add it first, or name another", param="rule")
    return found


# Judgments ------------------------------------------------------------------------------------------------------------


def _load_judgments(session: Session, task: Task, row: TaskRow, source: str, *, new: bool) -> list[bool]:
    """Store what was said of a task; for each, whether it was not there already."""
    key, texts, judged = row.key(row.source), [Blind(text) for text in row.completions], set[str]()
    added = []
    for said in row.judgments:
        # Of a task that was not there nobody said anything yet, so that nothing needs to be looked for.
        fresh = new and login_of(said) not in judged
        judged.add(login_of(said))
        added.append(_load_judgment(session, task, said, texts, key, source, fresh=fresh))
    return added


def _load_judgment(
    session: Session, task: Task, row: JudgmentRow, texts: list[Blind], key: str, source: str, *, fresh: bool
) -> bool:
    said_json = json.dumps([key, row.annotator, row.judgment, str(row.created_at)], sort_keys=True)
    once = f"import:{hashlib.sha256(said_json.encode()).hexdigest()[:40]}"
    if not fresh and (_stored(session, once) or _told(session, task, row)):
        return False
    person = _person(session, row)
    form = validated(form_of(task.kind), _resolved(session, task, row, key))
    order = _order(row, len(texts))
    assignment, former = _assignment(session, task, person, row, len(texts), fresh=fresh)
    shown = load_shown(session, assignment)
    # With the names in it that are hidden here: judgments from elsewhere quote the texts as they are.
    plain = replace(shown.contents, items=[replace(item, blind=texts[item.position]) for item in shown.items])
    said = form.said(replace(shown, read=lambda: plain))
    surplus = former.surplus if former else not finish(session, shown).counted
    assignment.shown_order = order
    judgment = Judgment(
        kind=task.kind, task_id=task.id, assignment_id=assignment.id, annotator_id=person.id, simulated=row.simulated,
        latency_s=row.latency_s, once=once, surplus=surplus, supersedes_id=former.id if former else None,
        created_at=row.created_at or utcnow(), **said.columns(),
    )  # fmt: skip
    session.add(judgment)
    session.flush()
    _add_details(session, judgment, said, source)
    if task.pool == "gold" and former is None:
        measure(session, shown, judgment.id, said, form_of(task.kind), GoldSettings())
    return True


def _stored(session: Session, once: str) -> bool:
    return session.scalar(select(Judgment.id).where(Judgment.once == once)) is not None


def _told(session: Session, task: Task, row: JudgmentRow) -> bool:
    """Whether this is a judgment that was made here and comes back from an export: same person, same moment."""
    if row.created_at is None:
        return False
    query = select(Judgment.id).join(Person, Person.id == Judgment.annotator_id)
    query = query.where(Judgment.task_id == task.id, Judgment.created_at == row.created_at)
    return session.scalar(query.where(Person.login.in_((row.annotator, login_of(row)))).limit(1)) is not None


def login_of(row: JudgmentRow) -> str:
    """The login of somebody elsewhere, which nobody here can have."""
    if row.annotator.startswith((PERSON, SCRIPT)):
        return row.annotator
    return f"{SCRIPT if row.simulated else PERSON}{row.annotator}"[:MAX_LOGIN]


def _person(session: Session, row: JudgmentRow) -> Person:
    login = login_of(row)
    person = session.scalar(select(Person).where(Person.login == login))
    if person is None:
        person = Person(login=login, password_hash=None, role="annotator", scripted=row.simulated, active=False)
        session.add(person)
        session.flush()
    if person.scripted != row.simulated:
        other = "a program" if person.scripted else "a person"
        raise InvalidInput(f"{login!r} is {other} here; one name cannot be both", param="annotator")
    return person


def _assignment(
    session: Session, task: Task, person: Person, row: JudgmentRow, n: int, *, fresh: bool
) -> tuple[Assignment, Judgment | None]:
    """The person's assignment of a task with `n` items, in the order of the row, and what they said of it before."""
    query = select(Assignment).where(Assignment.task_id == task.id, Assignment.annotator_id == person.id)
    own = None if fresh else session.scalar(query)
    if own is not None:
        last = select(Judgment).where(Judgment.assignment_id == own.id).order_by(Judgment.id.desc()).limit(1)
        own.shown_order = list(range(n))
        return own, session.scalars(last).one()
    own = claim_task(session, task.id, person.id, 60)
    at = row.created_at or utcnow()
    if own is None:  # all places are taken: what was said is kept as surplus
        own = Assignment(
            task_id=task.id, task=task, annotator_id=person.id, lease_token=secrets.token_urlsafe(24), expires_at=at,
            shown_order=[], state="expired",
        )  # fmt: skip
        session.add(own)
    own.shown_order, own.created_at = list(range(n)), at
    session.flush()
    return own, None


def _order(row: JudgmentRow, n: int) -> list[int]:
    order = row.shown_order if row.shown_order is not None else list(range(n))
    if sorted(order) != list(range(n)):
        raise InvalidInput(f"shown_order is {order}; it names the {n} positions, each once", param="shown_order")
    return order


def _resolved(session: Session, task: Task, row: JudgmentRow, key: str) -> dict[str, Any]:
    """A judgment's values with the ids of this database for the names of rules and replies."""
    values = {"kind": task.kind} | row.judgment
    verdicts = values.get("rule_verdicts")
    if isinstance(verdicts, list):
        values["rule_verdicts"] = [
            {name: value for name, value in v.items() if name != "rule"}
            | {"rule_version_id": rule_version(session, str(v.get("rule")))}
            if isinstance(v, Mapping)
            else v
            for v in verdicts
        ]
    turns = values.get("turns")
    if task.kind == "probe" and isinstance(turns, list):
        ids = {name: _reply(session, reply, f"{key}:{name}") for name, reply in row.replies.items()}
        values["turns"] = [_known(turn, ids) for turn in turns]
    return values


def _known(turn: Any, ids: Mapping[str, str]) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    name = str(turn.get("completion_id"))
    if name not in ids:
        raise InvalidInput(f"`replies` does not tell what the reply {name!r} is", param="replies")
    return {**turn, "completion_id": ids[name]}


def _reply(session: Session, reply: Reply, once: str) -> str:
    prompt = add_prompt(session, [turn.model_dump() for turn in reply.messages], "import")
    digest = hashlib.sha256(once.encode()).hexdigest()[:40]
    completion: Completion = add_completion(session, prompt, reply.text, "import", once=f"import:reply:{digest}")
    return completion.id


def _add_details(session: Session, judgment: Judgment, said: Said, source: str) -> None:
    session.add_all(_details(judgment, said))
    session.add(ImportedJudgment(judgment_id=judgment.id, source=source))
    session.flush()


def _details(judgment: Judgment, said: Said) -> Iterator[RuleJudgment | Correction]:
    for finding in said.findings:
        yield RuleJudgment(judgment_id=judgment.id, **vars(finding))
    for completion_id, text in said.edits:
        yield Correction(judgment_id=judgment.id, completion_id=completion_id, text=text)
