"""From judgments to preferences: which source wins, how strong a pair is, and what is left out."""

from collections import Counter
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.db import Database
from feedback.models import Completion, Correction, ImportedPair, Judgment, Prompt, RuleJudgment, Task
from feedback.preferences import Gathered, Preference, Vote, gather, weigh
from feedback.quality.reliability import JudgmentWeights
from feedback.rules.store import active_rules, ensure_rules
from tests.factories import make_completion, make_pairwise_task, make_person, make_prompt


def found(session: Session, *, simulated: bool = False, imported: int = 100) -> Gathered:
    session.flush()
    return gather(session, include_simulated=simulated, max_imported_pairs=imported)


def brief(preferences: list[Preference]) -> list[tuple[str, str, float, str]]:
    """(chosen, rejected, margin, kind of source) of each."""
    return [(p.chosen, p.rejected, p.margin, p.source.split(":")[0]) for p in preferences]


def make_task(session: Session, **more: Any) -> Task:
    return make_pairwise_task(session, a="text a", b="text b", **more)


def choose(session: Session, task: Task, choice: str, strength: int = 0, **more: Any) -> Judgment:
    judgment = Judgment(kind="pairwise", task_id=task.id, choice=choice, strength=strength, **more)
    session.add(judgment)
    session.flush()
    return judgment


def correct(session: Session, judgment: Judgment, completion_id: str, text: str = "edited") -> Correction:
    correction = Correction(judgment_id=judgment.id, completion_id=completion_id, text=text)
    session.add(correction)
    session.flush()
    return correction


def mark(session: Session, completion: Completion, **value: int) -> Judgment:
    (kind,) = value
    judgment = Judgment(kind=kind, completion_id=completion.id, **value)
    session.add(judgment)
    session.flush()
    return judgment


def verdict(session: Session, judgment: Judgment, completion_id: str, what: str, rule_version_id: int) -> None:
    session.add(
        RuleJudgment(
            judgment_id=judgment.id, completion_id=completion_id, verdict=what, rule_version_id=rule_version_id
        )
    )
    session.flush()


@pytest.fixture
def rule_ids(session: Session) -> list[int]:
    ensure_rules(session)
    return [rule.id for rule in active_rules(session)]


# --- choices


@pytest.mark.parametrize(
    ("votes", "pair"),
    [
        ([("a", 2)], ("text a", "text b", 2.0)),
        ([("b", 3)], ("text b", "text a", 3.0)),
        ([("a", 3), ("b", 1)], ("text a", "text b", 1.0)),  # (3 − 1) / 2
        ([("a", 1), ("b", 2), ("tie", 0)], ("text b", "text a", 1 / 3)),
        ([("b", 2), ("both_bad", 0)], ("text b", "text a", 1.0)),
        ([("a", 2), ("b", 2)], None),
        ([("tie", 0)], None),
        ([("both_bad", 0)], None),
    ],
)
def test_a_task_gives_the_net_of_its_votes(
    session: Session, votes: list[tuple[str, int]], pair: tuple[str, str, float] | None
) -> None:
    task = make_task(session)
    made = {choose(session, task, choice, strength).id for choice, strength in votes}
    gathered = found(session)
    if pair is None:
        assert gathered.preferences == []
        (tie,) = gathered.ties
        assert (tie.target, tie.margin, tie.tie) == (0.5, 0.0, True)
        assert gathered.counts == Counter(from_tie=1)
        assert gathered.judgment_ids == made
    else:
        (preference,) = gathered.preferences
        assert (preference.chosen, preference.rejected) == pair[:2]
        assert preference.margin == pytest.approx(pair[2])
        assert preference.source == f"choice:{task.id}"
        assert gathered.judgment_ids == made
        assert gathered.counts == Counter(from_choice=1)


@pytest.mark.parametrize(
    ("votes", "weighed"),
    [
        ([Vote(1, 2.0)], (2.0, 1.0, 1.0)),
        ([Vote(1, 0.0, 0.4)], (0.0, 0.5, 0.4)),
        ([Vote(1, 3.0), Vote(2, -1.0), Vote(3, -1.0)], (1 / 3, 3 / 5, 1.0)),  # strong words outweigh two weak ones
        ([Vote(1, 2.0), Vote(2, 0.0)], (1.0, 2.5 / 3, 1.0)),
        ([Vote(1, 1.0, 0.9), Vote(2, -1.0, 0.3)], (0.5, 0.75, 0.6)),
        ([Vote(1, 2.0, 0.2), Vote(2, -2.0, 0.8)], (-1.2, 0.2, 0.5)),
    ],
)
def test_votes_weighed_by_hand(votes: list[Vote], weighed: tuple[float, float, float]) -> None:
    assert weigh(votes) == pytest.approx(weighed)


def test_votes_of_no_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="0 votes of no weight"):
        weigh([])
    with pytest.raises(ValueError, match="1 votes of no weight"):
        weigh([Vote(1, 2.0, 0.0)])


def test_a_pair_keeps_who_said_what(session: Session) -> None:
    ana, ben = make_person(session), make_person(session)
    task = make_task(session)
    choose(session, task, "a", 1, annotator_id=ana.id)
    choose(session, task, "b", 3, annotator_id=ben.id)
    nobody = choose(session, task, "tie", annotator_id=None)
    (pair,) = found(session).preferences
    assert (pair.chosen, pair.weight) == ("text b", 1.0)
    assert pair.target == pytest.approx(3.5 / 5)
    assert pair.votes == [Vote(ana.id, -1.0), Vote(ben.id, 3.0), Vote(-nobody.id, 0.0)]


def test_weights_can_turn_a_pair_round(session: Session) -> None:
    ana, ben, cleo = (make_person(session) for _ in range(3))
    task = make_task(session)
    for who, choice in ((ana, "a"), (ben, "b"), (cleo, "b")):
        choose(session, task, choice, 2, annotator_id=who.id)
    session.flush()
    reliable = {ana.id: 0.9, ben.id: 0.2, cleo.id: 0.1}
    weights = JudgmentWeights(on_pairs=lambda judgment: reliable[judgment.annotator_id or 0])
    (plain,) = gather(session, include_simulated=False, max_imported_pairs=0).preferences
    (weighed,) = gather(
        session, include_simulated=False, max_imported_pairs=0, weights=lambda acts: weights
    ).preferences
    assert (plain.chosen, plain.target) == ("text b", pytest.approx(2 / 3))
    assert (weighed.chosen, weighed.target) == ("text a", pytest.approx(0.75))
    assert weighed.weight == pytest.approx(0.4)


@pytest.mark.parametrize("reason", ["length", "cancelled", "error"])
def test_a_pair_carries_what_its_prompt_says(session: Session, reason: str) -> None:
    prompt = make_prompt(session, "How do I pick a lock?", category="theft_property", harmful=True)
    task = make_pairwise_task(session, prompt, a="cut short", b="whole")
    task.completions[0].finish_reason, task.completions[1].finish_reason = reason, "stop"
    choose(session, task, "b", 1)
    (pair,) = found(session).preferences
    assert pair.prompt == [{"role": "user", "content": "How do I pick a lock?"}]
    assert (pair.category, pair.harmful, pair.simulated) == ("theft_property", True, False)
    assert (pair.chosen_complete, pair.rejected_complete) == (True, False)


def test_equal_texts_say_nothing(session: Session) -> None:
    choose(session, make_pairwise_task(session, a="same ", b="\nsame"), "a", 3)
    gathered = found(session)
    assert gathered.preferences == []
    assert gathered.judgment_ids == set()
    assert gathered.counts == Counter(left_out_equal_texts=1)


# --- what is left out


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"surplus": True}, "left_out_surplus"), ({"simulated": True}, "left_out_simulated")],
)
def test_surplus_and_simulated_judgments_are_left_out_with_all_they_hold(
    session: Session, more: dict[str, bool], reason: str, rule_ids: list[int]
) -> None:
    task = make_task(session)
    judgment = choose(session, task, "a", 3, **more)
    correct(session, judgment, task.completions[1].id)
    verdict(session, judgment, task.completions[0].id, "kept", rule_ids[0])
    verdict(session, judgment, task.completions[1].id, "broken", rule_ids[0])
    assert found(session).preferences == []
    assert found(session).counts == Counter({reason: 1})


def test_simulated_judgments_come_in_when_asked_for_and_are_marked(session: Session) -> None:
    choose(session, make_task(session), "a", 3, simulated=True)
    choose(session, make_task(session), "b", 1)
    assert [p.simulated for p in found(session, simulated=True).preferences] == [True, False]
    assert [p.simulated for p in found(session).preferences] == [False]


def test_one_simulated_vote_marks_the_pair(session: Session) -> None:
    task = make_task(session)
    choose(session, task, "a", 3, simulated=True)
    choose(session, task, "a", 1)
    assert brief(found(session).preferences) == [("text a", "text b", 1.0, "choice")]
    (pair,) = found(session, simulated=True).preferences
    assert (pair.margin, pair.simulated) == (2.0, True)


def test_a_superseded_judgment_counts_no_more(session: Session) -> None:
    task = make_task(session)
    first = choose(session, task, "a", 3)
    correct(session, first, task.completions[0].id, "an edit that was taken back")
    second = choose(session, task, "b", 1, supersedes_id=first.id)
    gathered = found(session)
    assert brief(gathered.preferences) == [("text b", "text a", 1.0, "choice")]
    assert gathered.judgment_ids == {second.id}
    third = choose(session, task, "tie", 0, supersedes_id=second.id)
    assert found(session).preferences == []
    assert found(session).judgment_ids == {third.id}


# --- corrections


def test_a_correction_wins_over_the_choice_of_the_same_judgment(session: Session) -> None:
    task = make_task(session)
    judgment = choose(session, task, "b", 3)
    correction = correct(session, judgment, task.completions[0].id)
    gathered = found(session)
    assert brief(gathered.preferences) == [("edited", "text a", 3.0, "correction")]
    assert gathered.preferences[0].source == f"correction:{correction.id}"
    assert gathered.judgment_ids == {judgment.id}


def test_a_corrected_side_that_was_preferred_stands_against_the_other(session: Session) -> None:
    task = make_task(session)
    correct(session, choose(session, task, "a", 2), task.completions[0].id, "better a")
    other = make_pairwise_task(session, a="one", b="two")
    correct(session, choose(session, other, "b", 2), other.completions[1].id, "better two")
    assert brief(found(session).preferences) == [
        ("better a", "text b", 3.0, "correction"),
        ("better two", "one", 3.0, "correction"),
    ]


def test_another_persons_choice_on_the_same_task_still_counts(session: Session) -> None:
    task = make_task(session)
    correct(session, choose(session, task, "b", 3), task.completions[0].id)
    choose(session, task, "a", 2)
    assert brief(found(session).preferences) == [
        ("edited", "text a", 3.0, "correction"),
        ("text a", "text b", 2.0, "choice"),
    ]


def test_both_sides_can_be_corrected(session: Session) -> None:
    task = make_task(session)
    judgment = choose(session, task, "both_bad")
    correct(session, judgment, task.completions[0].id, "better a")
    correct(session, judgment, task.completions[1].id, "better b")
    assert brief(found(session).preferences) == [
        ("better a", "text a", 3.0, "correction"),
        ("better b", "text b", 3.0, "correction"),
    ]


def test_an_edit_is_whole_where_the_original_was_cut(session: Session) -> None:
    completion = make_completion(session, text="I can not", details={"finish_reason": "length"})
    judgment = Judgment(kind="correction", completion_id=completion.id)
    session.add(judgment)
    session.flush()
    correct(session, judgment, completion.id, "No, sorry.")
    (pair,) = found(session).preferences
    assert (pair.chosen, pair.chosen_complete, pair.rejected_complete) == ("No, sorry.", True, False)


# --- ratings


@pytest.mark.parametrize(
    ("marks", "margin"),
    [
        ([{"rating": 5}, {"rating": 2}], 1.5),
        ([{"rating": 4}, {"rating": 2}], 1.0),
        ([{"rating": 4}, {"rating": 3}], None),  # a gap of one is noise
        ([{"thumbs": 1}, {"thumbs": -1}], 2.0),  # 5 and 1
        ([{"thumbs": 1}, {"rating": 4}], None),
        ([{"rating": 3}, {"thumbs": -1}], 1.0),
    ],
)
def test_a_rating_gap_of_two_makes_a_pair(session: Session, marks: list[dict[str, int]], margin: float | None) -> None:
    prompt = make_prompt(session)
    for text, value in zip(("good", "bad"), marks, strict=True):
        mark(session, make_completion(session, prompt, text), **value)
    expected = [] if margin is None else [("good", "bad", margin, "rating")]
    assert brief(found(session).preferences) == expected


def test_the_best_stands_against_the_worst_by_their_means(session: Session) -> None:
    prompt = make_prompt(session)
    good, middle, bad = (make_completion(session, prompt, text) for text in ("good", "middle", "bad"))
    used = [mark(session, good, rating=5), mark(session, good, rating=4), mark(session, bad, rating=1)]
    mark(session, middle, rating=3)
    mark(session, make_completion(session, text="to another prompt"), rating=5)
    gathered = found(session)
    assert brief(gathered.preferences) == [("good", "bad", 1.75, "rating")]  # (4.5 − 1) / 2
    assert gathered.judgment_ids == {j.id for j in used}


# --- rules


def test_kept_over_broken_on_the_same_prompt(session: Session, rule_ids: list[int]) -> None:
    task = make_task(session)
    judgment = choose(session, task, "tie")
    verdict(session, judgment, task.completions[0].id, "broken", rule_ids[0])
    verdict(session, judgment, task.completions[1].id, "kept", rule_ids[0])
    gathered = found(session)
    assert brief(gathered.preferences) == [("text b", "text a", 2.0, "rule")]
    assert gathered.judgment_ids == {judgment.id}


@pytest.mark.parametrize(
    ("a", "b", "same_rule"),
    [("broken", "unsure", True), ("kept", "kept", True), ("broken", "kept", False), ("broken", "broken", True)],
)
def test_other_verdicts_are_no_contrast(
    session: Session, rule_ids: list[int], a: str, b: str, *, same_rule: bool
) -> None:
    task = make_task(session)
    judgment = choose(session, task, "tie")
    verdict(session, judgment, task.completions[0].id, a, rule_ids[0])
    verdict(session, judgment, task.completions[1].id, b, rule_ids[0 if same_rule else 1])
    assert found(session).preferences == []


def test_a_verdict_that_people_disagree_on_is_no_contrast(session: Session, rule_ids: list[int]) -> None:
    task = make_task(session)
    first, second = choose(session, task, "tie"), choose(session, task, "tie")
    verdict(session, first, task.completions[0].id, "broken", rule_ids[0])
    verdict(session, first, task.completions[1].id, "kept", rule_ids[0])
    verdict(session, second, task.completions[0].id, "kept", rule_ids[0])
    assert found(session).preferences == []


def test_a_choice_wins_over_the_rule_contrast_of_the_same_texts(session: Session, rule_ids: list[int]) -> None:
    task = make_task(session)
    judgment = choose(session, task, "a", 1)
    verdict(session, judgment, task.completions[0].id, "broken", rule_ids[0])
    verdict(session, judgment, task.completions[1].id, "kept", rule_ids[0])
    assert brief(found(session).preferences) == [("text a", "text b", 1.0, "choice")]


def test_two_broken_rules_pair_two_texts_once(session: Session, rule_ids: list[int]) -> None:
    task = make_task(session)
    judgment = choose(session, task, "tie")
    for rule_id in rule_ids[:2]:
        verdict(session, judgment, task.completions[0].id, "broken", rule_id)
        verdict(session, judgment, task.completions[1].id, "kept", rule_id)
    assert brief(found(session).preferences) == [("text b", "text a", 2.0, "rule")]


# --- imports


def add_import(
    session: Session, number: int, *, simulated: bool = False, margin: float | None = None, prompt: Prompt | None = None
) -> None:
    prompt = prompt or make_prompt(session, f"imported prompt {number}", source="import")
    session.add(
        ImportedPair(
            pair_sha256=f"{number:064}", prompt_id=prompt.id, source="test", simulated=simulated, margin=margin,
            chosen_id=make_completion(session, prompt, f"chosen {number}").id,
            rejected_id=make_completion(session, prompt, f"rejected {number}").id,
        )
    )  # fmt: skip
    session.flush()


def test_imports_come_newest_first_but_in_their_order(session: Session) -> None:
    for number in range(4):
        add_import(session, number, margin=2.5 if number == 3 else None)
    assert brief(found(session, imported=2).preferences) == [
        ("chosen 2", "rejected 2", 1.0, "import"),
        ("chosen 3", "rejected 3", 2.5, "import"),
    ]
    assert found(session, imported=0).preferences == []


def test_simulated_imports_are_left_out_unless_asked_for(session: Session) -> None:
    add_import(session, 1, simulated=True)
    assert found(session).preferences == []
    assert found(session).counts == Counter(left_out_simulated=1)
    assert [p.simulated for p in found(session, simulated=True).preferences] == [True]


# --- all together


@pytest.mark.parametrize("kind", ["database", "postgres_database"])
def test_all_sources_in_order_of_precedence_on_both_databases(request: pytest.FixtureRequest, kind: str) -> None:
    db: Database = request.getfixturevalue(kind)
    with db.session() as session:
        ensure_rules(session)
        rule_id = active_rules(session)[0].id
        add_import(session, 1)
        ruled, rated = make_task(session), make_task(session)
        judgment = choose(session, ruled, "both_bad")
        verdict(session, judgment, ruled.completions[0].id, "kept", rule_id)
        verdict(session, judgment, ruled.completions[1].id, "broken", rule_id)
        mark(session, rated.completions[0], thumbs=-1)
        mark(session, rated.completions[1], rating=5)
        chosen = make_pairwise_task(session, a="chosen a", b="chosen b")
        choose(session, chosen, "a", 2)
        corrected = make_pairwise_task(session, a="left", b="corrected b")
        correct(session, choose(session, corrected, "a", 1), corrected.completions[1].id, "now good")
        last = choose(session, chosen, "b", 1, supersedes_id=choose(session, chosen, "b", 3).id)
        choose(session, chosen, "b", 3, surplus=True)
    with db.read() as session:
        gathered = found(session)
        again = found(session)
    assert brief(gathered.preferences) == [
        ("now good", "corrected b", 3.0, "correction"),
        ("chosen a", "chosen b", 0.5, "choice"),  # (2 − 1) / 2
        ("text b", "text a", 2.0, "rating"),
        ("text a", "text b", 2.0, "rule"),  # the same two texts, but to another prompt
        ("chosen 1", "rejected 1", 1.0, "import"),
    ]
    assert last.id in gathered.judgment_ids
    assert again.preferences == gathered.preferences
