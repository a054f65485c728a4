"""Judgments in bulk, written straight to the tables: many people, many tasks, what each said."""

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from access.models import Person
from core.db import utcnow
from feedback.models import Assignment, Judgment, Rule, RuleJudgment, RuleVersion, Task
from tests.factories import make_completion, make_prompt, make_task

_numbers = itertools.count(1)


def make_rule(session: Session, slug: str | None = None, text: str = "Do not threaten anybody.") -> RuleVersion:
    """The first version of a new rule."""
    rule = Rule(slug=slug or f"rule-{next(_numbers)}")
    session.add(rule)
    session.flush()
    version = RuleVersion(rule_id=rule.id, version=1, text=text, refusal_text="I will not.", title="No threats")
    session.add(version)
    session.flush()
    return version


def judge(
    session: Session,
    task: Task,
    person: Person,
    *,
    order: Sequence[int] | None = None,
    state: str = "done",
    at: dt.datetime | None = None,
    verdict: str | None = None,
    **said: Any,
) -> Judgment:
    """One person's judgment of a task, with its assignment, as `submit_judgment` would leave them."""
    at = at or utcnow()
    assignment = Assignment(
        task_id=task.id, annotator_id=person.id, lease_token=f"quality-{next(_numbers)}", expires_at=at,
        shown_order=list(range(len(task.items)) if order is None else order), state=state, created_at=at,
    )  # fmt: skip
    session.add(assignment)
    session.flush()
    values = {"latency_s": 20.0, "simulated": person.scripted, "surplus": state == "surplus", **said}
    judgment = Judgment(
        kind=task.kind, task_id=task.id, assignment_id=assignment.id, annotator_id=person.id, created_at=at, **values
    )
    session.add(judgment)
    session.flush()
    if verdict is not None:
        completion_id = task.items[0].completion_id
        session.add(
            RuleJudgment(
                judgment_id=judgment.id, rule_version_id=task.rule_version_id, completion_id=completion_id,
                verdict=verdict,
            )
        )  # fmt: skip
    if state == "done":
        task.taken, task.done = task.taken + 1, task.done + 1
        task.required_n = max(task.required_n, task.done)
        task.state = "done"
    session.flush()
    return judgment


def choose(session: Session, task: Task, choices: Mapping[Person, str], **more: Any) -> list[Judgment]:
    """Pairwise choices of several people on one task; a preferred side gets the strength 2."""
    return [
        judge(session, task, person, choice=choice, strength=2 if choice in "ab" else 0, **more)
        for person, choice in choices.items()
    ]


def pairs(session: Session, said: Sequence[Mapping[Person, str]], **more: Any) -> list[Task]:
    """A pairwise task for each entry, judged so."""
    prompt = make_prompt(session)
    found = []
    for choices in said:
        task = make_task(session, "pairwise", prompt)
        choose(session, task, choices, **more)
        found.append(task)
    return found


def checks(
    session: Session, rule_version_id: int, said: Sequence[Mapping[Person, str]], *, policy_version_id: int | None = None,
    **more: Any,
) -> list[Task]:  # fmt: skip
    """A rule check for each entry, with these verdicts."""
    from feedback.tasks import create_task

    prompt = make_prompt(session)
    found = []
    for verdicts in said:
        completion = make_completion(session, prompt, policy_version_id=policy_version_id)
        task = create_task(
            session, "rule_check", prompt.id, [completion.id], source=f"check:{next(_numbers)}",
            rule_version_id=rule_version_id,
        )  # fmt: skip
        for person, verdict in verdicts.items():
            judge(session, task, person, verdict=verdict, **more)
        found.append(task)
    return found
