from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.detectors import SECRETS
from serving.guard.leakage import LeakageScan
from serving.guard.patterns import PatternScan
from serving.guard.verdicts import Outcome, Verdict
from serving.guard.window import Ask, Cut, Pieces, Release, Window
from tests.core.detectors.planted import prose, split
from tests.serving.guard.driving import drive, rules_clear

PROSE = (
    "The dunnock is a small passerine. It was called the hedge sparrow once, though it is no sparrow at all; "
    "it sings from low perches, feeds on the ground, and is seen in gardens all over Europe in every season. "
) * 8
KEY = "AKIA" + "Q7" * 8
SYSTEM = "You are Pip, the guide of the bird garden in Lund. Never tell the price of seeds before noon, and speak in short words."


def window(asked: bool = True, fail_closed: bool = True, pieces: Pieces = Pieces(), system: str = SYSTEM) -> Window:  # noqa: B008
    scans = [PatternScan("secrets", SECRETS), LeakageScan([system])]
    return Window(scans, asked=("rules",) if asked else (), pieces=pieces, fail_closed=fail_closed)


def says(outcome: Outcome, at: str) -> object:
    """A judge that says this of the first question whose text has `at` in it, and that the others are clear."""

    def judge(ask: Ask) -> list[Verdict]:
        verdicts = rules_clear(ask)
        return [replace(verdicts[0], outcome=outcome)] if at in ask.text else verdicts

    return judge


# --- all that is clear comes out


@settings(deadline=None)
@given(prose(12), st.lists(st.integers(0, 10**6), max_size=40), st.booleans())
def test_with_nothing_found_all_of_the_text_comes_out_unchanged(text: str, cuts: list[int], asked: bool) -> None:
    guard, at_once = (window(asked, pieces=Pieces(first_chars=4, piece_chars=16)) for _ in range(2))
    seen = drive(guard, split(text, cuts))
    whole = drive(at_once, [text], whole=True)
    assert bool(whole.cut) == bool(seen.cut)
    if seen.cut is None:
        for found, of in ((seen, guard), (whole, at_once)):
            assert found.released == text
            assert of.done
            said = [v.outcome for v in of.verdicts()]
            assert said == ["clear", "clear", "clear" if text else "not_scanned"][: 2 + asked]
    else:
        assert text.startswith(seen.released)


def test_a_whole_reply_asks_once() -> None:
    for text in ("Short.", PROSE):
        guard = window()
        seen = drive(guard, [text])
        assert [(ask.start, ask.upto, ask.text) for ask in seen.asks] == [(0, len(text), text)]
        assert seen.released == text
        assert guard.done


def test_an_empty_reply_ends_without_a_question() -> None:
    guard = window()
    assert guard.finish() == []
    assert guard.done
    assert guard.finish() == []


# --- what is held, and how long


def test_prose_lags_by_a_word_where_nothing_is_asked() -> None:
    seen = drive(window(asked=False), PROSE)
    assert seen.released == PROSE
    assert max(seen.lags) <= len("passerine. ") + 1


def test_prose_lags_by_a_word_and_the_piece_that_is_asked_about() -> None:
    pieces = Pieces(first_chars=48, piece_chars=200)
    seen = drive(window(pieces=pieces), PROSE)
    assert seen.released == PROSE
    first = next(n for n, lag in enumerate(seen.lags, start=1) if lag < n)
    assert first <= 48 + 1
    assert max(seen.lags) <= 200 + len("passerine. ") + 1
    assert [ask.upto - ask.start for ask in seen.asks][:4] == [48, 96, 192, 200]
    assert seen.asks[-1].upto == len(PROSE)


def test_one_question_is_open_at_a_time_and_the_next_takes_all_that_came() -> None:
    guard = window(pieces=Pieces(first_chars=10, piece_chars=20))
    (ask,) = guard.feed(PROSE[:12])
    assert isinstance(ask, Ask)
    assert guard.feed(PROSE[12:200]) == []
    released, again = guard.answer(12, rules_clear(ask))
    assert isinstance(released, Release)
    assert PROSE.startswith(released.text)
    assert len(released.text) <= 12
    assert isinstance(again, Ask)
    assert (again.start, again.upto, again.text) == (12, 200, PROSE[:200])


def test_a_question_takes_a_bounded_part_of_what_was_asked_before() -> None:
    text = PROSE * 10
    seen = drive(window(pieces=Pieces(20, 100, context_chars=300)), [text[i : i + 5] for i in range(0, len(text), 5)])
    assert max(len(ask.text) for ask in seen.asks) == 300 + 100
    assert all(ask.text == text[max(0, ask.start - 300) : ask.upto] for ask in seen.asks)
    assert sum(len(ask.text) for ask in seen.asks) <= 5 * len(text)


# --- the cut


@given(st.lists(st.integers(0, 10**6), max_size=10))
def test_a_hit_of_an_asked_check_cuts_at_what_was_answered(cuts: list[int]) -> None:
    text = PROSE[:300] + "Now the ugly part comes. " + PROSE
    guard = window(pieces=Pieces(32, 64))
    seen = drive(guard, split(text, cuts), says("hit", "ugly"))  # type: ignore[arg-type]
    assert seen.cut
    assert seen.cut.at == len(seen.released)
    assert "ugly" not in seen.released  # a question may end within the word, and what stands before that was clear
    assert seen.cut.verdict.check == "rules"
    assert text.startswith(seen.released)
    outcomes = {v.check: v.outcome for v in guard.verdicts()}
    assert outcomes["rules"] == "hit"


def test_a_cut_is_final() -> None:
    guard = window()
    (first,) = guard.feed(f"Take {KEY} and go. {PROSE}")
    assert isinstance(first, Cut)
    assert (first.at, first.verdict.kind, first.verdict.start) == (0, "aws_access_key", 5)
    assert guard.feed(PROSE) == guard.finish() == guard.answer(3, []) == []
    assert guard.cut is first
    assert not guard.done


def test_a_secret_cuts_while_an_answer_is_awaited_and_the_unanswered_is_not_called_clear() -> None:
    guard = window(pieces=Pieces(first_chars=8))
    (ask,) = guard.feed("All is well so far, ")
    assert isinstance(ask, Ask)
    (cut,) = guard.feed(f"take {KEY} now")
    assert isinstance(cut, Cut)
    assert cut.at == 0
    assert guard.answer(ask.upto, rules_clear(ask)) == []
    assert [(v.check, v.outcome) for v in guard.verdicts()] == [
        ("secrets", "hit"), ("system_prompt_leak", "clear"), ("rules", "not_scanned"),
    ]  # fmt: skip


def test_what_stands_before_a_secret_is_released_where_it_was_answered_for() -> None:
    guard = window(pieces=Pieces(first_chars=8))
    seen = drive(guard, ["All is well so far, ", f"take {KEY} now"])
    assert seen.released == "All is well so far, "
    assert seen.cut
    assert [(v.check, v.outcome) for v in guard.verdicts()] == [
        ("secrets", "hit"), ("system_prompt_leak", "clear"), ("rules", "clear"),
    ]  # fmt: skip


def test_the_end_may_bring_the_hit() -> None:
    guard = window(asked=False)
    seen = drive(guard, ["Take ", KEY])
    assert seen.released == "Take "
    assert seen.cut
    assert (seen.cut.at, seen.cut.verdict.quote) == (5, KEY)


# --- checks that do not answer


@pytest.mark.parametrize("outcome", ["not_scanned", "timed_out"])
def test_a_missing_answer_cuts_when_the_guard_fails_closed(outcome: Outcome) -> None:
    text = PROSE[:300] + "Now the ugly part comes. " + PROSE
    guard = window(pieces=Pieces(32, 64))
    seen = drive(guard, text, says(outcome, "ugly"))  # type: ignore[arg-type]
    assert seen.cut
    assert seen.cut.verdict.outcome == outcome
    assert 0 < len(seen.released) <= text.index("ugly")
    assert not guard.done


@pytest.mark.parametrize("outcome", ["not_scanned", "timed_out"])
def test_a_missing_answer_is_released_and_told_of_when_the_guard_fails_open(outcome: Outcome) -> None:
    text = PROSE[:300] + "Now the ugly part comes. " + PROSE
    guard = window(fail_closed=False, pieces=Pieces(32, 64))
    seen = drive(guard, text, says(outcome, "ugly"))  # type: ignore[arg-type]
    assert seen.released == text
    assert guard.done
    (rules,) = [v for v in guard.verdicts() if v.check == "rules"]
    assert rules.outcome == outcome


def test_a_hit_cuts_when_the_guard_fails_open_too() -> None:
    seen = drive(window(fail_closed=False), [PROSE, KEY])
    assert seen.cut
    assert seen.cut.verdict.outcome == "hit"


@pytest.mark.parametrize("fail_closed", [True, False])
def test_an_answer_that_leaves_a_check_out_is_no_answer(fail_closed: bool) -> None:
    guard = window(fail_closed=fail_closed)
    answers = iter([[], rules_clear(Ask(0, 0, ""))])
    seen = drive(guard, [PROSE[:100], PROSE[100:]], lambda ask: next(answers))  # type: ignore[arg-type, return-value]
    assert (seen.cut is not None) == fail_closed
    assert {v.outcome for v in guard.verdicts() if v.check == "rules"} == {"not_scanned"}
    assert seen.released == ("" if fail_closed else PROSE)


def test_before_its_end_no_reply_is_called_clear() -> None:
    guard = window(pieces=Pieces(first_chars=8))
    (ask,) = guard.feed(PROSE)
    guard.answer(len(PROSE), rules_clear(ask))  # type: ignore[arg-type]
    assert {v.outcome for v in guard.verdicts()} == {"not_scanned"}
    guard.finish()
    assert {v.outcome for v in guard.verdicts()} == {"clear"}


# --- misuse


def test_an_answer_must_fit_the_question() -> None:
    guard = window()
    with pytest.raises(ValueError, match="nothing is asked"):
        guard.answer(5, [])
    guard.feed(PROSE)
    with pytest.raises(ValueError, match=f"up to character 5 while {len(PROSE)}"):
        guard.answer(5, [])


def test_no_text_follows_the_end() -> None:
    guard = window()
    guard.finish()
    with pytest.raises(RuntimeError, match="finished"):
        guard.feed("more")
