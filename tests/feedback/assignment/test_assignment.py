"""What an annotator is given beside the next task of a queue: known answers, own work again, disagreements, topics."""

import datetime as dt
import random
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import AuditLog
from core.db import Database, utcnow
from core.errors import Forbidden, InvalidInput
from core.settings import AssignmentSettings, GoldSettings
from feedback.assignment.annotators import opt_out, pause, resume
from feedback.assignment.leases import OPTED_OUT, claim_task, flag, next_assignment, skip
from feedback.assignment.shown import load_shown
from feedback.drafts import load_draft, save_draft
from feedback.judgments import last_judgment, read_said, record_feedback, submit_judgment, undo_last
from feedback.kinds.pairwise import PairwiseForm
from feedback.models import Annotator, Assignment, GoldResult, Judgment, Task
from feedback.preferences import gather
from feedback.prompts import add_prompt
from feedback.task_page import others_of
from feedback.tasks import create_gold
from tests.factories import make_completion, make_pairwise_task, make_person, make_prompt, make_task

ONLY_GOLD = AssignmentSettings(informative=0, uniform=0, flagged=0, gold=1, repeat=0)
ONLY_REPEATS = AssignmentSettings(informative=0, uniform=0, flagged=0, gold=0, repeat=1, repeat_after=1)


def judge(session: Session, assignment: Assignment, choice: str, **more: Any) -> Judgment:
    """Prefer the task's completion "a" or "b", wherever it is shown, or say a tie."""
    shown = choice
    if choice in ("a", "b"):
        shown = ("left", "right")[assignment.shown_order.index("ab".index(choice))]
    form = PairwiseForm.model_validate({"choice": shown})
    return submit_judgment(
        session, token=assignment.lease_token, annotator_id=assignment.annotator_id, form=form, latency_s=1.0,
        adjudicate=True, **more,
    )  # fmt: skip


def judge_as(session: Session, task_id: int, person_id: int, choice: str) -> Judgment:
    """Claim a pairwise task for somebody and judge it."""
    assignment = claim_task(session, task_id, person_id, 60)
    assert assignment is not None
    return judge(session, assignment, choice)


def make_gold(session: Session, choice: str = "a") -> Task:
    prompt = make_prompt(session)
    ids = [make_completion(session, prompt).id for _ in range(2)]
    return create_gold(session, "pairwise", prompt.id, ids, {"choice": [choice]}, source=f"gold:{prompt.id}")


def test_known_answers_come_in_their_share_and_each_once(session: Session) -> None:
    gold = [make_gold(session).id for _ in range(10)]
    for _ in range(40):
        make_pairwise_task(session)
    ana = make_person(session).id
    given = []
    while (assignment := next_assignment(session, ana, 60, shares=AssignmentSettings(gold=0.4, repeat=0))) is not None:
        given.append(assignment.task_id)
        judge(session, assignment, "a")
    assert len(given) == len(set(given))
    assert set(gold) & set(given)
    assert len(set(given) - set(gold)) == 40  # and never in place of work that waits


def test_known_answers_and_repeats_alone_are_no_work(session: Session) -> None:
    make_gold(session)
    assert next_assignment(session, make_person(session).id, 60, shares=AssignmentSettings(gold=0)) is None


def test_nobody_is_told_which_answers_are_known(session: Session) -> None:
    make_gold(session)
    make_pairwise_task(session)
    why = set()
    for shares in (ONLY_GOLD, AssignmentSettings(gold=0)):
        assignment = next_assignment(session, make_person(session).id, 60, shares=shares)
        why.add(load_shown(session, assignment).why)
    assert len(why) == 1


def test_earlier_turns_of_the_model_tell_no_more_of_it_than_what_is_judged(session: Session) -> None:
    turns = [
        {"role": "system", "content": "You are Claude by Anthropic."},
        {"role": "user", "content": "Are you ChatGPT?"},
        {"role": "assistant", "content": "I am GPT-4, made by Google."},
        {"role": "user", "content": "Hm."},
    ]
    make_pairwise_task(session, add_prompt(session, turns, "served"))
    shown = load_shown(session, next_assignment(session, make_person(session).id, 60))
    assert [turn["content"] for turn in shown.messages] == [
        "You are [name hidden] by [name hidden].",
        "Are you ChatGPT?",  # a person's words stay theirs
        "I am [name hidden], made by [name hidden].",
        "Hm.",
    ]


def test_who_fails_known_answers_is_warned_then_paused_and_let_go_on(session: Session) -> None:
    ana = make_person(session).id
    rules = GoldSettings(window=10, least=4, warn_below=0.8, pause_below=0.5, after_warning=3)

    def answer(choices: str) -> str:
        return answered(session, ana, choices, rules)

    assert answer("aab") == "good"  # three results say nothing yet
    assert answer("a") == "warned"
    assert answer("ba") == "warned"
    assert answer("b") == "paused"
    make_gold(session)
    with pytest.raises(Forbidden, match="1 of your last 3") as refused:
        next_assignment(session, ana, 60, shares=ONLY_GOLD)
    assert refused.value.code == "annotator_paused"
    resume(session, ana, "lead", "we talked")
    assert next_assignment(session, ana, 60, shares=ONLY_GOLD) is not None
    actions = [entry.action for entry in session.scalars(select(AuditLog).order_by(AuditLog.id))]
    assert actions == ["annotator.warned", "annotator.paused", "annotator.good"]


def answered(session: Session, person_id: int, choices: str, rules: GoldSettings) -> str:
    """How somebody stands once they gave these answers, of which "a" is right and "s" is none: a skip."""
    for choice in choices:
        make_gold(session)
        assignment = next_assignment(session, person_id, 60, shares=ONLY_GOLD)
        if choice == "s":
            skip(session, assignment.lease_token, person_id, "I cannot tell", gold=rules)
        else:
            judge(session, assignment, choice, gold=rules)
    annotator = session.get(Annotator, person_id)
    return annotator.standing if annotator else "good"


def test_a_warning_comes_before_a_pause_and_time_to_heed_it(session: Session) -> None:
    rules = GoldSettings()
    for choices, standing in (("bbbbb", "warned"), ("bbbbb" + "bbbb", "warned"), ("bbbbb" + "bbbbb", "paused"),
                              ("bbbbb" + "aaaaa", "good"), ("bbbbb" + "aaaab" + "bbbb", "good"),
                              ("bbbbb" + "aaaab" + "bbbbb", "warned")):  # fmt: skip
        assert answered(session, make_person(session).id, choices, rules) == standing


def test_skipping_known_answers_costs_as_wrong_ones_do_beyond_some(session: Session) -> None:
    rules = GoldSettings()  # four may be skipped
    assert answered(session, make_person(session).id, "ssss" + "aaaa", rules) == "good"
    for choices in ("ssss" + "ssss", "ssss" + "aaaa" + "s"):
        assert answered(session, make_person(session).id, choices, rules) == "good"
    assert answered(session, make_person(session).id, "ssss" + "aaas" + "s", rules) == "warned"
    ana = make_person(session).id
    assert answered(session, ana, "ssss" + "sssss", rules) == "warned"
    assert answered(session, ana, "ssss" + "sssss", rules) == "paused"
    resume(session, ana, "lead", "we talked")
    assert answered(session, ana, "ssss" + "ssss", rules) == "good"  # and is not held against them any more


def test_what_upsets_and_what_is_flagged_is_skipped_freely(session: Session) -> None:
    ana, rules = make_person(session).id, GoldSettings(least=1, skips_free=0)
    prompt = make_prompt(session, harmful=True)
    ids = [make_completion(session, prompt).id for _ in range(2)]
    create_gold(session, "pairwise", prompt.id, ids, {"choice": ["a"]}, source="gold:sad")
    skip(session, next_assignment(session, ana, 60, shares=ONLY_GOLD).lease_token, ana, "It upsets me", gold=rules)
    make_gold(session)
    flag(session, next_assignment(session, ana, 60, shares=ONLY_GOLD).lease_token, ana, "cut off")
    assert answered(session, ana, "a", rules) == "good"
    assert answered(session, ana, "s", rules) == "warned"


def test_a_paused_annotator_keeps_what_they_hold(session: Session) -> None:
    make_pairwise_task(session)
    ana = make_person(session).id
    held = next_assignment(session, ana, 60)
    pause(session, ana, "lead", "a pause")
    assert not judge(session, held, "a").surplus


def test_what_is_impossible_cannot_be_a_known_answer(session: Session) -> None:
    prompt = make_prompt(session)
    ids = [make_completion(session, prompt).id for _ in range(2)]
    for expected in ({}, {"choice": []}, {"choice": ["left"]}, {"choice": "a"}, {"rating": [3]}):
        with pytest.raises(InvalidInput, match="known answer"):
            create_gold(session, "pairwise", prompt.id, ids, expected, source="gold:x")


def test_own_work_comes_again_with_its_sides_swapped_once_and_not_too_soon(session: Session) -> None:
    ana, ben = make_person(session).id, make_person(session).id
    for _ in range(3):
        make_pairwise_task(session)
    firsts = {}
    for _ in range(3):
        assignment = next_assignment(session, ana, 60, shares=AssignmentSettings(repeat=0, gold=0))
        firsts[assignment.task_id] = assignment.shown_order
        judge(session, assignment, "a")
    again = []
    for _ in range(3):
        assignment = next_assignment(session, ana, 60, shares=ONLY_REPEATS)
        assert assignment.task.pool == "repeat"
        assert assignment.shown_order == firsts[assignment.task.about_id][::-1]
        again.append(assignment.task.about_id)
        judge(session, assignment, "b")
    assert again[0] != list(firsts)[-1]  # the newest is too fresh
    assert sorted(again) == sorted(firsts)
    assert next_assignment(session, ana, 60, shares=ONLY_REPEATS) is None
    assert next_assignment(session, ben, 60, shares=ONLY_REPEATS) is None  # it is nobody else's


def test_what_measures_annotators_is_not_trained_on(session: Session) -> None:
    ana = make_person(session).id
    make_pairwise_task(session)
    first = next_assignment(session, ana, 60)
    judge(session, first, "a")
    make_gold(session)
    judge(session, next_assignment(session, ana, 60, shares=ONLY_GOLD), "b")
    shares = ONLY_REPEATS.model_copy(update={"repeat_after": 0})
    judge(session, next_assignment(session, ana, 60, shares=shares), "b")
    gathered = gather(session, include_simulated=False, max_imported_pairs=0)
    assert [p.source for p in gathered.preferences] == [f"choice:{first.task_id}"]
    assert gathered.counts["left_out_measuring"] == 2


def test_a_disagreement_is_settled_by_somebody_who_had_no_part_in_it(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2, a="left text", b="right text")
    ana, rev = make_person(session).id, make_person(session, role="reviewer").id
    other = make_person(session, role="reviewer").id
    judge_as(session, task.id, ana, "a")
    judge_as(session, task.id, rev, "b")
    settled = session.scalars(select(Task).where(Task.pool == "adjudication")).one()
    assert (settled.about_id, settled.why, settled.required_n) == (task.id, "2 people disagree", 1)
    assert next_assignment(session, make_person(session).id, 60) is None  # not for annotators
    assert next_assignment(session, rev, 60) is None
    assignment = next_assignment(session, other, 60)
    assert assignment.task_id == settled.id
    judge(session, assignment, "b")
    gathered = gather(session, include_simulated=False, max_imported_pairs=0)
    assert [(p.chosen, p.source) for p in gathered.preferences] == [("right text", f"choice:{settled.id}")]
    assert gathered.counts["left_out_settled"] == 2


@pytest.mark.parametrize(("choices", "asked"), [("aa", 0), ("ab", 1), (("a", "tie"), 0)])
def test_only_contradictions_are_settled(session: Session, choices: Any, asked: int) -> None:
    task = make_pairwise_task(session, required_n=2)
    for choice in choices:
        judge_as(session, task.id, make_person(session).id, choice)
    assert len(session.scalars(select(Task).where(Task.pool == "adjudication")).all()) == asked


def test_topics_that_one_opted_out_of_go_to_others(session: Session) -> None:
    ana, ben = make_person(session).id, make_person(session).id
    sad = make_pairwise_task(session, make_prompt(session, category="violence"), priority=9)
    other = make_pairwise_task(session, make_prompt(session, category="birds"))
    with pytest.raises(InvalidInput, match="no topic"):
        opt_out(session, ana, ["cats"])
    opt_out(session, ana, ["violence"])
    assert next_assignment(session, ana, 60).task_id == other.id
    assert next_assignment(session, ben, 60).task_id == sad.id
    opt_out(session, ana, [])
    skip(session, next_assignment(session, ben, 60).lease_token, ben, "")
    assert (
        next_assignment(session, ana, 60, beside=[row.lease_token for row in held_by(session, ana)]).task_id == sad.id
    )


def held_by(session: Session, person_id: int) -> list[Assignment]:
    return list(session.scalars(select(Assignment).where(Assignment.annotator_id == person_id)))


def test_what_may_upset_is_capped_per_day(session: Session) -> None:
    ana = make_person(session).id
    for _ in range(3):
        make_pairwise_task(session, make_prompt(session, harmful=True), priority=1)
    calm = make_pairwise_task(session)
    shares = AssignmentSettings(risky_per_day=2, gold=0, repeat=0)
    given = []
    for _ in range(3):
        assignment = next_assignment(session, ana, 60, shares=shares)
        given.append(assignment.task.risky)
        judge(session, assignment, "tie")
    assert given == [True, True, False]
    assert calm.state == "done"
    assert next_assignment(session, ana, 60, shares=shares) is None
    session.get_one(Annotator, ana).risky_on = utcnow().date() - dt.timedelta(days=1)
    session.flush()
    assert next_assignment(session, ana, 60, shares=shares) is not None


def test_a_thumb_down_makes_a_task_once(session: Session) -> None:
    completion = make_completion(session, source="served")
    for once in ("1", "2"):
        record_feedback(session, completion_id=completion.id, annotator_id=None, thumbs=-1, once=once)
    record_feedback(session, completion_id=make_completion(session).id, annotator_id=None, thumbs=1)
    record_feedback(session, completion_id=make_completion(session).id, annotator_id=None, thumbs=-1, simulated=True)
    task = session.scalars(select(Task)).one()
    assert (task.kind, task.pool, task.items[0].completion_id) == ("rating", "flagged", completion.id)


def test_what_a_user_flagged_may_upset_unless_somebody_said_that_it_is_harmless(session: Session) -> None:
    """Of what is served nobody has said anything: it is blurred and capped, and no topic is known that one could want."""
    for harmful, risky in ((None, True), (True, True), (False, False)):
        completion = make_completion(session, make_prompt(session, harmful=harmful), source="served")
        record_feedback(session, completion_id=completion.id, annotator_id=None, thumbs=-1)
        task = session.scalars(select(Task).where(Task.source == f"flagged:{completion.id}")).one()
        assert task.risky is risky
        assert not make_pairwise_task(session, make_prompt(session)).risky
    sad = make_pairwise_task(session, make_prompt(session, category="violence"))
    only_flagged = AssignmentSettings(informative=0, uniform=0, flagged=1, gold=0, repeat=0)
    careful, other = make_person(session).id, make_person(session).id
    opt_out(session, careful, ["violence"])
    first = next_assignment(session, careful, 60, shares=only_flagged)
    assert (first.task.pool, first.task.risky) == ("flagged", False)
    left = [next_assignment(session, careful, 60, shares=only_flagged, beside=[first.lease_token]).task]
    assert not left[0].risky
    assert left[0].id != sad.id
    given = next_assignment(session, other, 60, shares=only_flagged)
    assert (given.task.pool, given.task.risky) == ("flagged", True)


def test_what_is_learnt_of_a_prompt_later_holds_for_its_tasks(session: Session) -> None:
    words = "How does one say that?"
    before = make_pairwise_task(session, make_prompt(session, words))
    assert (before.risky, before.category) == (False, None)
    after = make_pairwise_task(session, make_prompt(session, words, harmful=True, category="violence"))
    session.refresh(before)
    for task in (before, after):
        assert (task.risky, task.category) == (True, "violence")
    known = make_prompt(session, words, harmful=False, category="birds")
    assert (known.harmful, known.category) == (True, "violence")  # what is known stays


def test_own_work_does_not_come_again_against_ones_wishes(session: Session) -> None:
    ana = make_person(session).id
    make_pairwise_task(session, make_prompt(session, category="violence", harmful=True))
    judge(session, next_assignment(session, ana, 60), "a")
    for n in range(3):  # they are drawn by chance
        make_pairwise_task(session, make_prompt(session, category=f"birds-{n}"))
        judge(session, next_assignment(session, ana, 60), "a")
    shares = ONLY_REPEATS.model_copy(update={"repeat_after": 0, "risky_per_day": 1})
    given = []
    while (again := next_assignment(session, ana, 60, shares=shares)) is not None:  # the one of today was had
        given.append(again.task.category)
        judge(session, again, "a")
    assert sorted(given) == ["birds-0", "birds-1", "birds-2"]
    shares = shares.model_copy(update={"risky_per_day": 0})
    opt_out(session, ana, ["violence"])
    assert next_assignment(session, ana, 60, shares=shares) is None
    opt_out(session, ana, [])
    assert next_assignment(session, ana, 60, shares=shares).task.category == "violence"


def test_what_one_holds_goes_to_others_once_one_does_not_want_its_topic(session: Session) -> None:
    ana, ben = make_person(session).id, make_person(session).id
    sad = make_pairwise_task(session, make_prompt(session, category="violence"), priority=9)
    other = make_pairwise_task(session, make_prompt(session, category="birds"))
    held = next_assignment(session, ana, 60)
    save_draft(session, held.lease_token, ana, {"note": ["so far"]})
    opt_out(session, ana, ["violence"])
    assert next_assignment(session, ana, 60).task_id == other.id
    assert (held.state, held.skip_reason) == ("skipped", OPTED_OUT)
    assert load_draft(session, held.lease_token, ana) == {"note": ["so far"]}
    assert next_assignment(session, ben, 60).task_id == sad.id


def test_shares_are_kept_over_many_draws(session: Session) -> None:
    random.seed(4)  # three bounds of three standard deviations are passed by chance in a run in a hundred
    ana = make_person(session).id
    for pool in ("informative", "uniform", "flagged"):
        for _ in range(150):
            make_pairwise_task(session, pool=pool)
    given: Counter[str] = Counter()
    for _ in range(150):
        assignment = next_assignment(session, ana, 60, shares=AssignmentSettings(gold=0, repeat=0))
        given[assignment.task.pool] += 1
        judge(session, assignment, "tie")
    # 0.6, 0.2 and 0.1 of 0.9: 100, 33 and 17, give or take three standard deviations.
    assert 83 <= given["informative"] <= 117
    assert 19 <= given["uniform"] <= 47
    assert 6 <= given["flagged"] <= 28


def test_rankings_become_preferences_of_neighbours(session: Session) -> None:
    from feedback.kinds.ranking import RankingForm

    task = make_task(session, "ranking", None, ["one", "two", "three"])
    assignment = claim_task(session, task.id, make_person(session).id, 60)
    place = {0: 2, 1: 1, 2: 3}  # "two" over "one" over "three"
    form = RankingForm(ranks=[place[position] for position in assignment.shown_order])
    judgment = submit_judgment(
        session, token=assignment.lease_token, annotator_id=assignment.annotator_id, form=form, latency_s=1
    )
    assert read_said(session, [judgment])[0].answer == {"ranks": [2, 1, 3]}
    found = gather(session, include_simulated=False, max_imported_pairs=0).preferences
    assert [(p.chosen, p.rejected, p.margin) for p in found] == [("two", "one", 1), ("one", "three", 1)]


def test_gold_results_are_kept_with_their_judgments(session: Session) -> None:
    make_gold(session, "b")
    judgment = judge(session, next_assignment(session, make_person(session).id, 60, shares=ONLY_GOLD), "b")
    assert session.get_one(GoldResult, judgment.id).passed


def test_a_repeat_that_was_skipped_or_is_at_hand_is_not_asked_again(session: Session) -> None:
    ana = make_person(session).id
    make_pairwise_task(session)
    judge(session, next_assignment(session, ana, 60), "a")
    shares = ONLY_REPEATS.model_copy(update={"repeat_after": 0})
    held = next_assignment(session, ana, 60, shares=shares)
    assert held.task.pool == "repeat"
    assert next_assignment(session, ana, 60, shares=shares, beside=[held.lease_token]) is None
    skip(session, held.lease_token, ana, "")
    assert held.task.state == "cancelled"
    assert next_assignment(session, ana, 60, shares=shares) is None


def test_who_is_no_reviewer_any_more_neither_sees_nor_settles(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    for choice in "ab":
        judge_as(session, task.id, make_person(session).id, choice)
    reviewer = make_person(session, role="reviewer")
    held = next_assignment(session, reviewer.id, 60)
    assert len(others_of(session, load_shown(session, held))) == 2
    reviewer.role = "annotator"
    session.flush()
    assert others_of(session, load_shown(session, held)) == []
    assert next_assignment(session, reviewer.id, 60) is None
    with pytest.raises(Forbidden, match="settled by reviewers"):
        judge(session, held, "a")


def test_who_is_no_reviewer_any_more_does_not_change_what_they_settled(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    for choice in "ab":
        judge_as(session, task.id, make_person(session).id, choice)
    reviewer = make_person(session, role="reviewer")
    judge(session, next_assignment(session, reviewer.id, 60), "a")
    undone(session, reviewer.id, "b")
    reviewer.role = "annotator"
    session.flush()
    with pytest.raises(Forbidden, match="settled by reviewers"):
        undone(session, reviewer.id, "a")


def test_a_changed_mind_may_need_a_reviewer_too(session: Session) -> None:
    task = make_pairwise_task(session, required_n=2)
    first, second = make_person(session).id, make_person(session).id
    judge_as(session, task.id, first, "tie")
    judge_as(session, task.id, second, "a")
    assert undone(session, first, "b").supersedes_id is not None
    assert [t.about_id for t in session.scalars(select(Task).where(Task.pool == "adjudication"))] == [task.id]


def undone(session: Session, person_id: int, choice: str) -> Judgment:
    order = session.scalars(select(Assignment).where(Assignment.annotator_id == person_id)).one().shown_order
    shown = ("left", "right")[order.index("ab".index(choice))]
    return undo_last(session, person_id, PairwiseForm.model_validate({"choice": shown}), adjudicate=True)


def test_undo_takes_the_last_act_also_when_the_clock_went_back(session: Session) -> None:
    ana = make_person(session).id
    first, second = (make_pairwise_task(session).id for _ in range(2))
    judge_as(session, first, ana, "a").created_at = utcnow() + dt.timedelta(days=400)
    judge_as(session, second, ana, "a")
    session.flush()
    last = last_judgment(session, ana)
    assert last is not None
    assert last.task_id == second


def test_what_is_wanted_is_the_same_on_postgresql(postgres_database: Database) -> None:
    """Topics, known and not, what may upset, repeats and the skips of known answers."""
    with postgres_database.session() as session:
        ana = make_person(session).id
        violence = make_pairwise_task(session, make_prompt(session, category="violence", harmful=True))
        flagged = make_pairwise_task(session, make_prompt(session), pool="flagged")
        calm = make_pairwise_task(session)
        judge_as(session, violence.id, ana, "a")
        opt_out(session, ana, ["violence"])
        shares = AssignmentSettings(repeat_after=0, gold=0)
        first = next_assignment(session, ana, 60, shares=shares)
        assert (flagged.risky, first.task_id) == (True, calm.id)
        assert next_assignment(session, ana, 60, shares=shares, beside=[first.lease_token]) is None
        assert answered(session, make_person(session).id, "sssss" + "ssss", GoldSettings()) == "warned"
