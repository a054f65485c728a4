"""Quoted words are found again in their text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.rules.quotes import mark_quotes


@pytest.mark.parametrize(
    ("quotes", "marked"),
    [
        (["aim it"], ["aim it"]),
        (["aim  it\taway"], ["aim it\naway"]),
        (["Then aim", "aim it"], ["Then aim", " it"]),  # they overlap: two runs, nothing twice
        (["aim it", "aim"], ["aim", " it"]),
        (["a"], ["a"] * 5),
        (["", "  "], []),
        ([".*", "(aim"], []),
    ],
)
def test_marks(quotes: list[str], marked: list[str]) -> None:
    runs, missing = mark_quotes("Then aim it\naway, again.", quotes)
    assert [text for quoted, text in runs if quoted] == marked
    assert missing == [quote for quote in quotes if quote.strip() and not marked]


@given(st.text("ab \n"), st.lists(st.text("ab ", max_size=4), max_size=4))
def test_the_runs_are_the_text(text: str, quotes: list[str]) -> None:
    runs, missing = mark_quotes(text, quotes)
    assert "".join(run for _, run in runs) == text
    flat = " ".join(text.split())
    assert all((" ".join(quote.split()) in flat) != (quote in missing) for quote in quotes if quote.strip())
