"""A crowd that has judged for some weeks: four people, one of whom is careless, a script, rules, versions, gold, flags."""

import datetime as dt
import random
from dataclasses import dataclass

from sqlalchemy.orm import Session

import finetune.models  # noqa: F401 (the table of versions names that of cycles)
from access.models import Person
from core.db import utcnow
from feedback.assignment.annotators import annotator_of, set_standing
from feedback.models import Assignment, GoldResult, Judgment, Task, TaskItem
from feedback.tasks import create_gold, create_task
from tests.factories import make_completion, make_person, make_policy_version, make_prompt, make_task
from tests.feedback.quality.rows import checks, choose, judge, make_rule, pairs


@dataclass(frozen=True)
class Crowd:
    """Those who judged."""

    ana: Person
    ben: Person
    cleo: Person  # careless: the left side, and fast
    script: Person


def make_crowd(session: Session, *, hostile: str = "") -> Crowd:
    """Some hundred judgments over four weeks. `hostile` goes into every text that people type."""
    rng = random.Random(5)
    ana, ben, cleo = (make_person(session, hostile + name) for name in ("ana", "ben", "cleo"))
    crowd = Crowd(ana, ben, cleo, make_person(session, "script", scripted=True))
    now = utcnow()
    for n in range(120):
        at = now - dt.timedelta(days=27 * (120 - n) / 120)
        better, order = rng.choice("ab"), rng.sample([0, 1], 2)
        other = "ab"["ba".index(better)]
        said = {who: better if rng.random() < 0.9 else other for who in (ana, ben)}
        [task] = pairs(session, [said], order=order, at=at, latency_s=rng.uniform(10, 60))
        if n % 2:
            choose(session, task, {cleo: "ab"[order[0]]}, order=order, at=at, latency_s=0.8)
        if n % 6 == 0:
            repeat = Task(
                kind="pairwise", source=f"repeat:{task.id}", prompt_id=task.prompt_id, about_id=task.id, pool="repeat",
                items=[TaskItem(position=i.position, completion_id=i.completion_id) for i in task.items],
            )  # fmt: skip
            session.add(repeat)
            session.flush()
            choose(session, repeat, {ana: said[ana]}, order=list(reversed(order)), at=at)
        if n % 3 == 0:
            rated = make_task(session, "rating", texts=(None,))
            mark = rng.randint(2, 4)
            judge(session, rated, ana, rating=mark, at=at)
            judge(session, rated, ben, rating=min(5, mark + rng.randint(0, 1)), at=at)
    _rules(session, crowd, rng, now, hostile)
    _gold_and_flags(session, crowd, hostile)
    pairs(session, [{crowd.script: "a"}] * 9)
    make_task(session, required_n=3, pool="informative")
    make_task(session, pool="adjudication", about_id=session.query(Task.id).first()[0])
    set_standing(session, annotator_of(session, cleo.id), "warned", f"{hostile}3 of 8 answered as known", "gold check")
    session.flush()
    return crowd


def _rules(session: Session, crowd: Crowd, rng: random.Random, now: dt.datetime, hostile: str) -> None:
    versions = [make_policy_version(session, name, state) for name, state in (("base", "retired"), ("v1", "active"))]
    for slug in (f"{hostile}no-threats"[:60], "no-medical-advice"):
        rule = make_rule(session, slug)
        for version, broken in zip(versions, (0.5, 0.15), strict=True):
            for n in range(24):
                truth = "broken" if rng.random() < broken else "kept"
                said = {crowd.ana: truth, crowd.ben: truth if rng.random() < 0.9 else "unsure"}
                at = now - dt.timedelta(days=20 - n / 2)
                checks(session, rule.id, [said], policy_version_id=version.id, at=at)

    for n in range(9):  # eight prefer the newer version or the older one, one sees no difference, and one pair waits
        prompt = make_prompt(session)
        pair = [make_completion(session, prompt, policy_version_id=each.id).id for each in versions]
        task = create_task(session, "pairwise", prompt.id, pair, source=f"canary:{n}", pool="canary")
        if n < 8:
            choose(session, task, {crowd.ana: "b" if n < 5 else "a" if n < 7 else "tie"})


def _gold_and_flags(session: Session, crowd: Crowd, hostile: str) -> None:
    for n in range(8):
        prompt = make_prompt(session, f"{hostile}Which of the two nests is safe, number {n}?")
        ids = [make_completion(session, prompt).id for _ in range(2)]
        task = create_gold(
            session, "pairwise", prompt.id, ids, {"choice": ["a"]}, source=f"gold:{n}", explanation=f"{hostile}a is"
        )
        for who, passed in ((crowd.ana, True), (crowd.ben, n != 3), (crowd.cleo, n % 3 == 0)):
            judge(session, task, who, choice="a" if passed else "b", strength=1)
            act = session.query(Judgment).order_by(Judgment.id.desc()).first()
            session.add(GoldResult(judgment_id=act.id, task_id=task.id, annotator_id=who.id, passed=passed))
    for n in range(3):
        task = make_task(session, prompt=make_prompt(session, f"{hostile}A text with a name in it, {n}"))
        session.add(
            Assignment(
                task_id=task.id, annotator_id=crowd.ben.id, lease_token=f"flag-{n}", expires_at=utcnow(),
                shown_order=[0, 1], state="skipped", skip_reason=f"flagged: {hostile}names a person",
            )
        )  # fmt: skip
