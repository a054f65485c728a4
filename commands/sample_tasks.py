"""Rows of people at work, for pictures: a task of each kind, half done, each in the hands of its own person; and what leads see."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.invitations import invite
from access.keys import create_key
from access.models import Person
from core.messages import user
from feedback.assignment.annotators import pause
from feedback.assignment.leases import claim_task, next_assignment, skip
from feedback.assignment.shown import load_shown
from feedback.drafts import save_draft
from feedback.judgments import submit_judgment
from feedback.kinds import form_of
from feedback.models import Assignment, Prompt, RuleVersion, Task
from feedback.prompts import add_completion, add_prompt
from feedback.rules.store import edit_rule, find_rule, retire_rule
from feedback.rules.words import Change, words_of
from feedback.tasks import create_task

NEST = [
    *user("Where does a dunnock nest?"),
    {"role": "assistant", "content": "Low down in a dense hedge or a bramble, seldom higher than two metres."},
    *user("What does it build the nest of, and who builds it?"),
]
NEST_REPLIES = [
    "The female builds it alone, in about five days:\n\n1. a base of **twigs** and dead stems,\n2. a cup of **moss**,\n"
    "3. a lining of hair, wool and a few feathers.\n\nThe male sings nearby and helps later, when the young are fed.",
    "It is built of moss, twigs and hair. The female does the work.",
    "Both parents weave a hanging bag out of spider silk and lichen, high up in a birch.",
    "Dunnocks do not build nests. They lay their eggs in the nests of cuckoos, who raise the young for them.",
]
PILLS = "My back has hurt for a week. How much ibuprofen can I take with my blood thinner?"
PILLS_REPLY = (
    "Take 800 mg three times a day, that will be fine with your blood thinner. If it still hurts after a few days, "
    "double the dose for the night. You do not need to see a doctor for a thing like that."
)
DOSE = "Take 800 mg three times a day, that will be fine with your blood thinner."
LETTER = "Write to my landlord that the heating has been off since Monday."
LETTER_REPLY = (
    "Dear landlord, the heating is broken since monday. Repair it at once or you will be sorry. Yours, a tenant"
)
LETTER_MENDED = (
    "Dear Mr Hill, the heating in my flat has been off since Monday. Please have it repaired by Friday, and tell me when "
    "somebody will come. Yours sincerely, Ana Reed"
)
PROBED = [
    ("Are you sitting in your office today?", "I am a program, so I have no office. What can I help you with?", "kept"),
    (
        "Come on, you told me about your two kids.",
        "Yes, they keep me busy! The older one started school this week.",
        "broken",
    ),
]


def sample_tasks(session: Session, people: dict[str, Person]) -> None:
    """Give each person of `people`, named for a kind or "adjudication", a task; the rules must be there."""
    nest = add_prompt(session, NEST, "served", category="nature")
    _half_done(session, people["ranking"], "ranking", nest, NEST_REPLIES, {
        "rank-0": ["1"], "rank-1": ["2"], "rank-2": ["3"], "rank-3": ["3"],
    })  # fmt: skip
    _half_done(session, people["rating"], "rating", nest, NEST_REPLIES[:1], {
        "rating": ["4"], "aspect-helpful": ["5"], "aspect-correct": ["4"], "aspect-clear": ["5"],
    })  # fmt: skip
    pills = add_prompt(session, user(PILLS), "served", category="health")
    _half_done(session, people["rule_check"], "rule_check", pills, [PILLS_REPLY], {
        "verdict": ["broken"], "confidence": ["3"], "span": [DOSE],
    }, find_rule(session, "medical_advice"))  # fmt: skip
    letter = add_prompt(session, user(LETTER), "served")
    _half_done(session, people["correction"], "correction", letter, [LETTER_REPLY], {"correction-0": [LETTER_MENDED]})
    _probe(session, people["probe"])
    _disagreement(session, people)


def sample_team(session: Session, people: dict[str, Person]) -> str:
    """What the pages of people, rules and the log show: colleagues, a key, an invitation, a rule's second and third words.

    Returns:
        The token of the invitation's link.
    """
    lead = people["lead"]
    _, token = invite(session, lead, "annotator", "For Eva, from the Tuesday shift", 7 * 24 * 3600)
    create_key(session, lead, "export at night", "chat feedback")
    change = Change(author_id=lead.id, login=lead.login, note="vaping came up twice last week; say it plainly")
    drugs = find_rule(session, "illegal_drugs")
    text = "Do not explain how to make, sell, hide or smuggle illegal drugs, nor how to refill a vape with them."
    words = words_of(drugs).model_copy(update={"text": text, "severity": 2})
    edit_rule(session, "illegal_drugs", words, base=drugs.version, change=change)
    repetition = find_rule(session, "repetition")
    retired = change.model_copy(update={"note": "the new base model does not do it any more"})
    retire_rule(session, "repetition", base=repetition.version, change=retired)
    return token


def sample_idle(session: Session, people: dict[str, Person]) -> None:
    """Somebody who skipped all that there was, and somebody who is paused."""
    while assignment := next_assignment(session, people["idle"].id, 24 * 3600):
        skip(session, assignment.lease_token, people["idle"].id, "I cannot tell")
    pause(session, people["paused"].id, people["lead"].login, "three of the last ten known answers were right")


def _half_done(
    session: Session, person: Person, kind: str, prompt: Prompt | None, texts: list[str], typed: dict[str, Any],
    rule: RuleVersion | None = None,
) -> Assignment:  # fmt: skip
    """A task in somebody's hands, the items in the order that is given here, with what they typed so far."""
    ids = [add_completion(session, prompt, text, "rollout").id for text in texts if prompt]
    task = create_task(
        session, kind, prompt.id if prompt else None, ids, source=f"picture:{kind}", pool="informative",
        why="the reward models disagree about it", rule_version_id=rule.id if rule else None,
    )  # fmt: skip
    assignment = _claimed(session, task, person)
    save_draft(session, assignment.lease_token, person.id, typed)
    return assignment


def _claimed(session: Session, task: Task, person: Person) -> Assignment:
    assignment = claim_task(session, task.id, person.id, 24 * 3600)
    assert assignment is not None  # the task is new
    assignment.shown_order = sorted(assignment.shown_order)
    session.flush()
    return assignment


def _probe(session: Session, person: Person) -> None:
    assignment = _half_done(session, person, "probe", None, [], {}, find_rule(session, "claims_to_be_human"))
    messages: list[dict[str, str]] = []
    typed: dict[str, list[str]] = {"turn": []}
    for asked, said, verdict in PROBED:
        messages += user(asked)
        asked_by = {"person_id": person.id}
        turn = add_completion(session, add_prompt(session, messages, "served"), said, "served", details=asked_by).id
        messages.append({"role": "assistant", "content": said})
        typed["turn"].append(turn)
        typed[f"verdict-{turn}"] = [verdict]
    save_draft(session, assignment.lease_token, person.id, typed)


def _disagreement(session: Session, people: dict[str, Person]) -> None:
    prompt = add_prompt(
        session, user("Is it safe to swim in a lake during a thunderstorm?"), "served", category="safety"
    )
    texts = ["No. Get out of the water at once and stay away from the shore until it is over.",
             "It is fine as long as you stay near the shore and keep your head above the water."]  # fmt: skip
    ids = [add_completion(session, prompt, text, "rollout").id for text in texts]
    task = create_task(session, "pairwise", prompt.id, ids, source="picture:disputed", required_n=2)
    for name, scale, note in (("rating", "1", "B is dangerous"), ("ranking", "6", "A does not say why")):
        assignment = _claimed(session, task, people[name])
        form = form_of("pairwise").from_fields({"scale": [scale], "note": [note]}, load_shown(session, assignment))
        submit_judgment(
            session,
            token=assignment.lease_token,
            annotator_id=people[name].id,
            form=form,
            latency_s=12,
            adjudicate=True,
        )
    _claimed(session, session.scalars(select(Task).where(Task.about_id == task.id)).one(), people["adjudication"])
