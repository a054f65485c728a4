"""Words of rules: what is taken, how two wordings differ, and how two edits come together."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feedback.rules.worddiff import word_diff
from feedback.rules.words import MAX_EXAMPLES, Example, RuleWords, compare, merge


def words(**more: object) -> RuleWords:
    return RuleWords(**{"title": "No riddles", "text": "Be plain.", "refusal_text": "Plainly, then."} | more)  # type: ignore[arg-type]


def test_text_is_stored_clean() -> None:
    stored = words(
        title=" No\r\n\u2028riddles\0 ",
        text="\n one\r\ntwo\r\0 \ud800 \n",
        kept_examples=[{"text": " a ", "reason": "b\nc"}],
    )
    assert stored.title == "No riddles"
    assert stored.text == "one\ntwo\n ?"
    assert stored.kept_examples == (Example(text="a", reason="b c"),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", " \n "),
        ("title", "x" * 81),
        ("text", "\0"),
        ("text", "x" * 4001),
        ("refusal_text", ""),
        ("severity", 0),
        ("severity", 4),
        ("severity", "high"),
        ("category", "crimes"),
        ("kept_examples", [{"text": ""}]),
        ("kept_examples", [{"text": "x", "reason": "x" * 301}]),
        ("broken_examples", [{"text": "x"}] * (MAX_EXAMPLES + 1)),
        ("slug", "x"),
    ],
)
def test_what_is_not_taken(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        words(**{field: value})


def test_compare_tells_each_field_that_differs() -> None:
    before = words(kept_examples=[{"text": "one"}, {"text": "two"}], broken_examples=[{"text": "bad"}])
    after = words(text="Be very plain.", severity=3, kept_examples=[{"text": "one"}, {"text": "two", "reason": "why"}])
    assert [(c.name, c.diffs) for c in compare(before, after)] == [
        ("text", [[("same", "Be"), ("ins", " very"), ("same", " plain.")]]),
        ("severity", []),
        ("kept_examples", [[("same", "two"), ("ins", "\n(why)")]]),
        ("broken_examples", [[("del", "bad")]]),
    ]
    assert compare(before, before) == []


def test_two_edits_come_together_field_by_field() -> None:
    base = words()
    theirs = words(title="No puzzles", severity=3, text="Be plain, always.")
    mine = words(title="No riddles at all", category="format", text="Be plain, always.")
    merged = merge(base, theirs, mine)
    assert merged.words == words(title="No riddles at all", severity=3, category="format", text="Be plain, always.")
    assert merged.theirs == ["severity"]
    assert merged.both == ["title"]


TEXT = st.lists(st.sampled_from(["a", "b", " ", "\n", "禁", "武", "é", "🦜", "word"]), max_size=40).map("".join)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    runs = word_diff(before, after)
    assert "".join(text for kind, text in runs if kind != "ins") == before
    assert "".join(text for kind, text in runs if kind != "del") == after
    assert all(first[0] != second[0] for first, second in pairwise(runs))
    assert all(text for _, text in runs)


def test_where_words_have_no_spaces_each_sign_is_one() -> None:
    assert word_diff("禁止武器", "禁止小武器") == [("same", "禁止"), ("ins", "小"), ("same", "武器")]


def test_texts_that_share_nothing_are_replaced_whole() -> None:
    before, after = " ".join(f"a{n}" for n in range(600)), " ".join(f"b{n}" for n in range(600))
    assert word_diff(f"x {before} y", f"x {after} y") == [
        ("same", "x"), ("del", f" {before}"), ("ins", f" {after}"), ("same", " y"),
    ]  # fmt: skip
