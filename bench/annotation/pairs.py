"""The pairs that every target is given: one question and two replies each. `dunnock` makes the same text in SQL."""

WANTED = 1
"""Judgments that a task wants in the other tools. One is their default and their quickest; Dunnock's want one to three."""

QUESTION = "why does a small brown bird sing in a hedge? " * 3
REPLY = "because the hedge is warm and the morning long. " * 6


def question(number: int) -> str:
    """The question of a pair."""
    return f"Question {number}: {QUESTION}"


def reply(side: str, number: int) -> str:
    """One of its two replies."""
    return f"Reply {side} to {number}: {REPLY}"
