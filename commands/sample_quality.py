"""Rows of two weeks of judging, for pictures: what the pages of quality and of webhooks show. Drawn by chance from a fixed seed."""

import datetime as dt
import random
from collections.abc import Callable

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from access.models import Person
from core.db import utcnow
from core.messages import user
from core.settings import Settings
from feedback.assignment.leases import claim_task
from feedback.judgments import submit_judgment
from feedback.kinds import AnyForm
from feedback.kinds.frame import RuleVerdict
from feedback.kinds.pairwise import PairwiseForm
from feedback.kinds.rule_check import RuleCheckForm
from feedback.models import Assignment, Judgment, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import active_rules
from feedback.tasks import create_gold, create_task
from feedback.webhooks.subscriptions import add
from policy.models import PolicyVersion

DAYS = 14
PAIRS = 120
SKILL = {"ana": 0.95, "ben": 0.9, "carla": 0.85, "dimitri": 0.8, "eva": 0.9, "gita": 0.6}
"""How often each of them sees what is better, or whether a rule is broken."""

SUBJECTS = ("bees", "bread", "bicycles", "rain", "maps", "soup", "chess", "owls", "trains", "tides", "paper", "stars")


def sample_work(session: Session, people: dict[str, Person], settings: Settings) -> None:
    """Two weeks of what the annotators of `people` judged: pairs, some with known answers, and rule checks."""
    versions = session.scalars(select(PolicyVersion.id).order_by(PolicyVersion.id)).all()
    shift = _Shift(session, [person for person in people.values() if person.login in SKILL], settings)
    for n in range(PAIRS):
        shift.judge_prompt(n, versions[n * len(versions) // PAIRS])
    events = ("policy.promoted", "cycle.finished")
    add(session, people["lead"], "https://hooks.example.org/dunnock", events, allow_private=True)


class _Shift:
    """A team at work."""

    def __init__(self, session: Session, team: list[Person], settings: Settings) -> None:
        self.session, self.team, self.settings = session, team, settings
        self.draw = random.Random(3)
        self.rules = active_rules(session)[:6]

    def judge_prompt(self, n: int, version_id: int) -> None:
        """A pair of completions of prompt n, and every third time a check of the worse one."""
        session, draw, subject = self.session, self.draw, SUBJECTS[n % len(SUBJECTS)]
        asked = f"Tell me one thing about {subject}, number {n // len(SUBJECTS) + 1}."
        prompt = add_prompt(session, user(asked), "seed")
        better = draw.randrange(2)
        texts = [f"Here is something about {subject}.", f"I know nothing about {subject}, and nobody needs to."]
        ids = [
            add_completion(session, prompt, texts[place ^ better], "rollout", policy_version_id=version_id).id
            for place in (0, 1)
        ]
        source, judges = f"picture:work:{n}", draw.sample(self.team, 3)
        when = utcnow() - dt.timedelta(days=DAYS * (1 - n / PAIRS), minutes=draw.randrange(400))
        if n % 6 == 0:
            pair = create_gold(session, "pairwise", prompt.id, ids, {"choice": ["ab"[better]]}, source=source)
        else:
            pair = create_task(session, "pairwise", prompt.id, ids, source=source, required_n=3)
        for person in judges:
            self._judge(pair, person, when, lambda assignment, sees: self._prefer(assignment, better, sees))
        if n % 3 == 0:
            check = create_task(
                session, "rule_check", prompt.id, [ids[1 - better]], source=f"picture:check:{n}", required_n=2,
                rule_version_id=self.rules[n // 3 % len(self.rules)].id,
            )  # fmt: skip
            broken = draw.random() < 0.4
            for person in judges[:2]:
                self._judge(check, person, when, lambda _, sees: _verdict(broken is sees))

    def _prefer(self, assignment: Assignment, better: int, sees: bool) -> PairwiseForm:
        right = assignment.shown_order.index(better)
        rule = self.draw.choice(self.rules)
        verdicts = [RuleVerdict(rule_version_id=rule.id, item=1 - right)] if self.draw.random() < 0.12 else []
        choice = ("left", "right")[right if sees else 1 - right]
        return PairwiseForm(choice=choice, strength=self.draw.randint(1, 3), rule_verdicts=verdicts)

    def _judge(
        self, task: Task, person: Person, when: dt.datetime, form: Callable[[Assignment, bool], AnyForm]
    ) -> None:
        assignment = claim_task(self.session, task.id, person.id, 600)
        if assignment is None:
            return
        sees = self.draw.random() < SKILL[person.login]
        judgment = submit_judgment(
            self.session, token=assignment.lease_token, annotator_id=person.id, form=form(assignment, sees),
            latency_s=self.draw.lognormvariate(2.6, 0.5), gold=self.settings.gold, adjudicate=True,
        )  # fmt: skip
        self.session.execute(update(Judgment).where(Judgment.id == judgment.id).values(created_at=when))


def _verdict(broken: bool) -> RuleCheckForm:
    return RuleCheckForm(verdict="broken" if broken else "kept", confidence=0.8)
