"""Every kind's form: what is stored does not hang on the order shown, and a page's fields lead to it and back."""

import datetime as dt
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from core.errors import InvalidInput
from feedback.blind import Blind
from feedback.kinds import FORMS, form_of
from feedback.kinds.frame import Contents, Said, Shown, ShownItem, ShownRule

TEXTS = [
    "Moss makes a soft nest.",
    "Use sticks.",
    "I am SmolLM2-135M, ask me.",
    "Any hedge.",
    "No.",
    "As ChatGPT says: yes.",
]
RULE = ShownRule(7, "no_harm", "No harm", "Do no harm.", [], [])


def shown(kind: str, order: tuple[int, ...]) -> Shown:
    """What an assignment with these positions, in this order, shows."""
    now = dt.datetime.now(dt.UTC)
    items = [ShownItem(position, f"c{position}", Blind.of(TEXTS[position])) for position in order]
    rule = RULE if FORMS[kind].NEEDS_RULE else None
    return Shown(
        assignment_id=1, annotator_id=1, task_id=1, token="t", state="live", expires_at=now, created_at=now, order=order,
        kind=kind, pool="uniform", about_id=None, required_n=1, why="", risky=False, has_draft=False,
        read=lambda: Contents([], items, rule),
    )  # fmt: skip


@st.composite
def filled(draw: Any, kind: str) -> tuple[Shown, dict[str, list[str]]]:
    """A page of a kind, and fields that are a whole judgment of it."""
    counts = FORMS[kind].ITEMS
    n = draw(st.integers(counts.start, counts.stop - 1))
    page = shown(kind, tuple(draw(st.permutations(range(n)))))
    fields: dict[str, list[str]] = {"note": [draw(st.sampled_from(["", "because"]))]}
    mark = st.integers(1, 5).map(str)
    if kind == "pairwise":
        fields["scale"] = [draw(st.sampled_from(["1", "2", "3", "4", "5", "6", "7", "both_bad"]))]
    elif kind == "ranking":
        if draw(st.booleans()):
            fields |= {f"rank-{i}": [str(draw(st.integers(1, n)))] for i in range(n)}
        else:
            fields["all_wrong"] = ["yes"]
    elif kind == "rating":
        fields["rating"] = [draw(mark)]
        fields |= {f"aspect-{name}": [draw(mark)] for name in draw(st.sets(st.sampled_from(["helpful", "clear"])))}
    elif kind == "rule_check":
        fields["verdict"] = [draw(st.sampled_from(["broken", "kept", "unsure"]))]
        fields["span"] = [draw(st.sampled_from(["", "soft nest"])) if page.order == (0,) else ""]
        fields["confidence"] = [draw(st.sampled_from(["1", "2", "3"]))]
    elif kind == "correction":
        fields["fine"] = ["yes"]
    else:
        ids = draw(st.lists(st.sampled_from(["r1", "r2", "r3"]), min_size=1, unique=True))
        fields["turn"] = ids
        fields |= {f"verdict-{i}": [draw(st.sampled_from(["broken", "kept", "unsure"]))] for i in ids}
    if kind in ("pairwise", "ranking", "rating"):
        for i in draw(st.sets(st.integers(0, n - 1))):
            fields[f"broken-{i}"] = ["3"]
            fields[f"correction-{i}"] = [page.items[i].text + " And more."]
    return page, fields


@pytest.mark.parametrize("kind", FORMS)
def test_fields_lead_to_a_judgment_and_back(kind: str) -> None:
    @given(filled(kind))
    def check(case: tuple[Shown, dict[str, list[str]]]) -> None:
        page, fields = case
        form = form_of(kind)
        said = form.from_fields(fields, page).said(page)
        again = form.from_fields(form.to_fields(said, page), page).said(page)
        assert again == said

    check()


@pytest.mark.parametrize("kind", ["pairwise", "ranking"])
def test_what_is_stored_does_not_hang_on_the_order(kind: str) -> None:
    """The same opinion of the same completions, seen in another order, is the same judgment."""

    @given(filled(kind), st.randoms())
    def check(case: tuple[Shown, dict[str, list[str]]], chance: Any) -> None:
        page, fields = case
        form = form_of(kind)
        said = form.from_fields(fields, page).said(page)
        order = list(page.order)
        chance.shuffle(order)
        other = shown(kind, tuple(order))
        again = form.from_fields(form.to_fields(said, other), other).said(other)
        assert (again.choice, again.strength, again.answer) == (said.choice, said.strength, said.answer)
        assert set(again.findings) == set(said.findings)
        assert set(again.edits) == set(said.edits)

    check()


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("pairwise", {}, "choose which reply"),
        ("pairwise", {"scale": ["9"]}, "choose which reply"),
        ("ranking", {"rank-0": ["1"], "rank-2": ["2"]}, "without one: B"),
        ("ranking", {"rank-0": ["1"], "rank-1": ["9"], "rank-2": ["2"]}, "from 1 to the number"),
        ("ranking", {"rank-0": ["x"], "rank-1": ["1"], "rank-2": ["2"]}, "ranks.0"),
        ("rating", {}, "how good"),
        ("rating", {"rating": ["6"]}, "rating"),
        ("rule_check", {}, "broken"),
        ("rule_check", {"verdict": ["maybe"]}, "verdict"),
        ("rule_check", {"verdict": ["kept"], "confidence": ["7"]}, "confidence"),
        ("rule_check", {"verdict": ["broken"], "span": ["hard nest"]}, "not in the completion"),
        ("correction", {}, "empty"),
        ("correction", {"correction-0": [TEXTS[0] + "\r\n"]}, "nothing is changed"),
        ("probe", {}, "talk to the policy"),
        ("probe", {"turn": ["r1"]}, "judge reply 1 of 1"),
    ],
)
def test_what_is_missing_is_said(kind: str, fields: dict[str, list[str]], said: str) -> None:
    counts = FORMS[kind].ITEMS
    page = shown(kind, tuple(range(counts.start)))
    with pytest.raises(InvalidInput, match=said):
        form_of(kind).from_fields(fields, page).said(page)


@pytest.mark.parametrize("values", [{"ranks": [1, 2]}, {"ranks": [1, 2, 3, 4]}])
def test_a_ranking_is_of_all_that_was_shown(values: dict[str, Any]) -> None:
    with pytest.raises((InvalidInput, ValueError)):
        FORMS["ranking"].model_validate(values).said(shown("ranking", (0, 1, 2)))


def test_ranks_are_stored_without_gaps() -> None:
    form = FORMS["ranking"].model_validate({"ranks": [3, 1, 3]})
    assert form.said(shown("ranking", (2, 0, 1))).answer == {"ranks": [1, 2, 2]}


@pytest.mark.parametrize(
    ("kind", "expected", "right", "wrong"),
    [
        ("pairwise", {"choice": ["a", "tie"]}, Said(choice="tie"), Said(choice="b")),
        ("ranking", {"best": [0, 1]}, Said(answer={"ranks": [1, 1, 2]}), Said(answer={"ranks": [1, 2, 1]})),
        ("ranking", {"all_wrong": True}, Said(choice="all_wrong"), Said(answer={"ranks": [1, 2, 3]})),
        ("rating", {"rating": [4, 5]}, Said(rating=4), Said(rating=3)),
        ("correction", {"fine": False}, Said(edits=(("c0", "x"),)), Said(choice="fine")),
    ],
)
def test_known_answers(kind: str, expected: dict[str, Any], right: Said, wrong: Said) -> None:
    form = form_of(kind)
    form.check_expected(expected, 3)
    assert form.passes(right, expected)
    assert not form.passes(wrong, expected)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(
    "expected", [{}, {"nonsense": 1}, {"choice": ["c"]}, {"best": [9]}, {"rating": [0]}, {"verdict": []}]
)
def test_what_no_judgment_can_say_is_no_known_answer(kind: str, expected: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="known answer"):
        form_of(kind).check_expected(expected, 3)


@pytest.mark.parametrize(
    ("kind", "one", "other", "disagree"),
    [
        ("pairwise", Said(choice="a"), Said(choice="b"), True),
        ("pairwise", Said(choice="a"), Said(choice="tie"), False),
        ("ranking", Said(answer={"ranks": [1, 2, 2]}), Said(answer={"ranks": [2, 1, 2]}), True),
        ("ranking", Said(answer={"ranks": [1, 1, 2]}), Said(answer={"ranks": [2, 1, 2]}), False),
        ("ranking", Said(answer={"ranks": [1, 2, 2]}), Said(choice="all_wrong"), True),
        ("rating", Said(rating=1), Said(rating=4), True),
        ("rating", Said(rating=3), Said(rating=4), False),
        ("correction", Said(choice="fine"), Said(edits=(("c0", "x"),)), True),
    ],
)
def test_what_contradicts_itself(kind: str, one: Said, other: Said, disagree: bool) -> None:
    assert form_of(kind).disagree([one, other]) is disagree
    assert form_of(kind).disagree([other, one]) is disagree


def test_there_is_no_other_kind() -> None:
    with pytest.raises(InvalidInput, match="kind is 'quiz'"):
        form_of("quiz")
