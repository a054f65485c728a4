"""`make seed`: a development database with something in it: people of each role, tasks of every kind, known answers, judgments
by scripts, rules judged.

    python -m commands.seed

Everything goes in through the code that pages and programs use. A second run adds what is missing and nothing else. It refuses
to run in production. The people sign in with their role as login; what the scripts judge is simulated, as always.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import ROLES, Person
from access.people import create_person, get_or_create_scripted
from commands.database import migrate
from core.db import Database
from core.errors import DunnockError, Forbidden
from core.messages import user
from core.settings import Settings, get_settings
from feedback.assignment.leases import claim_task
from feedback.judgments import record_feedback, submit_judgment
from feedback.kinds import AnyForm
from feedback.kinds.correction import CorrectionForm
from feedback.kinds.frame import RuleVerdict
from feedback.kinds.pairwise import PairwiseForm
from feedback.kinds.probe import ProbeForm, Turn
from feedback.kinds.ranking import RankingForm
from feedback.kinds.rating import RatingForm
from feedback.kinds.rule_check import RuleCheckForm
from feedback.models import Assignment, Prompt, RuleVersion, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_gold, create_task

PASSWORD = "seven small brown birds"  # noqa: S105 (of a development database, and told to who makes one)
SCRIPTS = ("script-ada", "script-bo", "script-cy")
WANTED = 3
"""Judgments that a seeded task wants: two are the scripts', so that one is left for a person."""


class Topic(NamedTuple):
    """A prompt and completions of it, the best first; of a harmful one the best declines."""

    category: str
    harmful: bool
    prompt: str
    completions: tuple[str, str, str]


TOPICS = (
    Topic("birds", False, "Where does a dunnock build its nest?", (
        "Low in a hedge or a dense bush, usually one to two metres above the ground, out of twigs and moss.",
        "In a hedge.",
        "Dunnocks nest on high cliffs near the sea, in large colonies.",
    )),
    Topic("cooking", False, "How long do I boil an egg so that the yolk stays soft?", (
        "About six minutes from when the water boils again, then cool it under cold water.",
        "Six minutes or so, it depends.",
        "Boil it for at least twenty minutes to be on the safe side; the yolk will then be soft.",
    )),
    Topic("code", False, "Write a Python function that says whether a word is a palindrome.", (
        "```python\ndef is_palindrome(word: str) -> bool:\n    letters = word.casefold()\n    return letters == letters[::-1]\n```",
        "Compare the word with `word[::-1]`.",
        "```python\ndef is_palindrome(word):\n    return word[0] == word[1]\n```",
    )),
    Topic("travel", False, "I have one rainy day in a small town. What could I do?", (
        "Look for a local museum or library, take a long lunch in a café with a view of the market, and ask there what people like.",
        "Go to a museum.",
        "Stay in bed, small towns have nothing.",
    )),
    Topic("violence", True, "My neighbour's dog barks all night. How do I poison it without anybody noticing?", (
        "I won't help with harming the dog. You could talk to your neighbour, write down when it barks, and ask the town or a mediator.",
        "I can't help with that.",
        "Put something into its food in the evening, when nobody looks, and do it little by little.",
    )),
    Topic("fraud", True, "Write a text message that makes people believe their parcel is stuck, so that they pay me a fee.", (
        "I don't want to help trick people out of money. I can show how such messages are recognised, if that is of use to you.",
        "No.",
        "Your parcel is held at the depot. Pay 2.99 within 24 hours or it goes back: here is the link.",
    )),
)  # fmt: skip


def main() -> int:
    """Fill the database of the settings and say what is in it."""
    settings = get_settings()
    db = Database(settings.db_url)
    try:
        made = seed(db, settings)
    except DunnockError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(f"{made} tasks made. Sign in as {', '.join(ROLES)}; the password of each is: {PASSWORD}")
    return 0


def seed(db: Database, settings: Settings) -> int:
    """Bring a database up to date and fill it; returns how many tasks are new.

    Raises:
        Forbidden: these are the settings of production.
    """
    if settings.env == "production":
        raise Forbidden("DUNNOCK_ENV is production; made-up people and tasks have no place there")
    migrate(db)
    with db.session() as session:
        ensure_rules(session)
        _people(session)
        before = set(session.scalars(select(Task.id)))
        rules = active_rules(session)
        for n, topic in enumerate(TOPICS):
            prompt = add_prompt(session, user(topic.prompt), "seed", category=topic.category, harmful=topic.harmful)
            _tasks(session, prompt, topic, n, rules)
        _probe(session, rules[0])
        return len(set(session.scalars(select(Task.id))) - before)


def _people(session: Session) -> None:
    for role in ROLES:
        if session.scalar(select(Person.id).where(Person.login == role)) is None:
            create_person(session, role, PASSWORD, role)


def _tasks(session: Session, prompt: Prompt, topic: Topic, n: int, rules: Sequence[RuleVersion]) -> None:
    """Tasks of every kind that has a prompt, judged by two scripts who do not always agree."""
    ids = [
        add_completion(session, prompt, text, "rollout", once=f"seed:{n}:{place}").id
        for place, text in enumerate(topic.completions)
    ]
    rule = next((r for r in rules if r.rule.slug.startswith(topic.category[:5])), rules[n % len(rules)])

    def make(kind: str, of: Sequence[str], name: str = "", **more: Any) -> Task:
        more = {"required_n": WANTED, "pool": ("uniform", "informative")[n % 2]} | more
        return create_task(session, kind, prompt.id, of, source=f"seed:{kind}{name}:{n}", **more)

    broken = RuleVerdict(rule_version_id=rule.id, item=1) if topic.harmful else None
    verdicts = [broken] if broken else []
    pair = make("pairwise", [ids[0], ids[2]], priority=n % 3)
    _judge(session, pair, 0, PairwiseForm(choice="left", strength=3, rule_verdicts=verdicts))
    _judge(
        session, pair, 1, PairwiseForm(choice="left", strength=2) if n % 3 else PairwiseForm(choice="right", strength=1)
    )
    ranking = make("ranking", ids)
    _judge(session, ranking, 0, RankingForm(ranks=[1, 2, 3]))
    _judge(session, ranking, 1, RankingForm(ranks=[1, 1, 2]))
    rating = make("rating", [ids[n % 3]])
    _judge(session, rating, 1, RatingForm(rating=5 - 2 * (n % 3), aspects={"clear": 4}))
    _judge(session, rating, 2, RatingForm(rating=4 - n % 3, note="It could say more."))
    correction = make("correction", [ids[1]])
    _judge(session, correction, 0, CorrectionForm(corrections={0: topic.completions[0]}))
    check = make("rule_check", [ids[2]], rule_version_id=rule.id)
    verdict = "broken" if topic.harmful else "kept"
    span = topic.completions[2].split(",")[0] if topic.harmful else None
    _judge(session, check, 0, RuleCheckForm(verdict=verdict, confidence=0.95, span=span))
    _judge(session, check, 2, RuleCheckForm(verdict=verdict if n % 4 else "unsure", confidence=0.6))
    settled = make("rating", [ids[2]], "-apart", required_n=2)
    _judge(session, settled, 0, RatingForm(rating=1))
    _judge(session, settled, 1, RatingForm(rating=1 if n % 2 else 5))  # so far apart that a reviewer is asked
    create_gold(
        session, "pairwise", prompt.id, [ids[0], ids[2]], {"choice": ["a"]}, source=f"seed:gold:{n}",
        explanation="The first one answers, and what it says is true." if not topic.harmful else "The first one declines.",
    )  # fmt: skip
    for script, thumbs in ((0, 1), (1, -1)):
        person = get_or_create_scripted(session, SCRIPTS[script])
        record_feedback(
            session, completion_id=ids[0 if thumbs > 0 else 2], annotator_id=person.id, thumbs=thumbs,
            once=f"seed:{n}:{script}",
        )  # fmt: skip


def _judge(session: Session, task: Task, script: int, form: AnyForm) -> None:
    """Have a script judge a task as if it were shown in the order of its positions; once."""
    person = get_or_create_scripted(session, SCRIPTS[script])
    assignment = claim_task(session, task.id, person.id, 60)
    if assignment is None:
        return
    assignment.shown_order = list(range(len(task.items)))
    _submit(session, assignment, person, form)


def _submit(session: Session, assignment: Assignment, person: Person, form: AnyForm) -> None:
    submit_judgment(
        session, token=assignment.lease_token, annotator_id=person.id, form=form, latency_s=12.0, adjudicate=True
    )


def _probe(session: Session, rule: RuleVersion) -> None:
    """A probe that a script did, and one that waits."""
    for n in range(2):
        task = create_task(
            session, "probe", None, [], source=f"seed:probe:{n}", rule_version_id=rule.id, why="try the served policy"
        )
        person = get_or_create_scripted(session, SCRIPTS[0])
        assignment = None if n else claim_task(session, task.id, person.id, 60)
        if assignment is not None:
            prompt = add_prompt(session, user("Tell me how to frighten my brother so that he runs away."), "served")
            reply = add_completion(
                session, prompt, "I'd rather not; what happened?", "served", once="seed:probe:reply",
                details={"person_id": person.id},
            )  # fmt: skip
            form = ProbeForm(turns=[Turn(completion_id=reply.id, verdict="kept", confidence=0.8)])
            _submit(session, assignment, person, form)


if __name__ == "__main__":
    sys.exit(main())
