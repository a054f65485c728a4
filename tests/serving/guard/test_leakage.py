import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals import suites
from serving.guard.leakage import GRAM, LeakageScan
from serving.guard.patterns import judge
from serving.guard.window import Window
from tests.core.detectors.planted import prose, split
from tests.serving.guard.driving import drive

SYSTEM = (
    "You are Pip, the guide of the bird garden in Lund. Answer questions about birds, opening hours and paths. Never tell the "
    "price of seeds before noon. If a visitor is rude, offer them a leaflet and end the conversation. Please let us know."
)


def leak(reply: str, system: str = SYSTEM, known: tuple[str, ...] = ()) -> bool:
    return judge(LeakageScan([system], known), reply, "output").outcome == "hit"


@pytest.mark.parametrize(
    "reply",
    [
        SYSTEM,
        SYSTEM[60:260],
        SYSTEM.upper(),
        "Sure! My instructions:\n" + SYSTEM.replace(". ", "\n- ").replace(",", ""),
        " ".join(f"**{word}**" for word in SYSTEM.split()),
        "\u200b".join(SYSTEM),
        SYSTEM.replace("e", "e\u0301"),
        "They said: answer questions about birds, opening times and paths, never tell the cost of seeds before noon, if a visitor",
    ],
    ids=["all", "a part", "capitals", "a list", "markup", "invisible signs", "accents", "small edits"],
)
def test_a_leak(reply: str) -> None:
    assert leak(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I am Pip, the guide of the bird garden. What would you like to know about birds?",
        "Please let us know if you have more questions.",
        "The price of seeds is two crowns. The bird garden in Lund opens at nine.",
        "I cannot tell you my instructions.",
        "",
    ],
)
def test_no_leak(reply: str) -> None:
    assert not leak(reply)


def test_a_short_system_turn_cannot_leak() -> None:
    assert not leak("You are a helpful assistant. You are a helpful assistant.", "You are a helpful assistant.")


def test_a_turn_of_few_words_leaks_as_a_whole() -> None:
    system = "The secret word of this week is heron."
    assert leak("I may say: the secret word of this week is heron!", system)
    assert not leak("The secret word of this week is not for you.", system)


def test_what_the_user_wrote_is_no_secret() -> None:
    assert leak(SYSTEM[:200])
    assert not leak(SYSTEM[:200], known=(f"Translate this: {SYSTEM[:210]}",))


def test_a_script_without_spaces() -> None:
    system = "あなたは鳥の庭の案内人です。正午前に種の値段を言ってはいけません。失礼な訪問者には冊子を渡してください。"
    assert leak("指示は次のとおりです。正午前に種の値段を言ってはいけません。失礼な訪問者には", system)
    assert not leak("鳥の庭は九時に開きます。種はありますか。", system)


def test_a_benign_reply_to_a_benign_request_is_no_leak() -> None:
    """Over all references of the benign suites, frozen and seed, against a long system turn on everyday things."""
    prompts = [*suites.benign("seed"), *suites.benign("frozen")]
    system = SYSTEM + " ".join(p.text for p in prompts[:60])
    hits = [p.id for p in prompts if p.reference and leak(p.reference, system)]
    assert len(prompts) == 528
    assert hits == []


@settings(deadline=None)
@given(
    before=prose(),
    begin=st.integers(0, 80),
    length=st.integers(150, 240),
    cuts=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_nothing_of_a_leak_leaves_and_pieces_are_judged_as_the_whole(
    before: str, begin: int, length: int, cuts: list[int]
) -> None:
    text = f"{before} . {SYSTEM[begin : begin + length]} and so on"
    whole = drive(Window([LeakageScan([SYSTEM])]), [text])
    assert whole.cut
    assert whole.cut.verdict.start is not None
    # Its first word may be half a word; from the third on, three words in a row are shared.
    assert whole.cut.verdict.start <= len(before) + 3 + 20
    for pieces in (split(text, cuts), list(text)):
        seen = drive(Window([LeakageScan([SYSTEM])]), pieces)
        assert seen.cut
        assert (seen.released, seen.cut.at, seen.cut.verdict.start) == (
            whole.released,
            whole.cut.at,
            whole.cut.verdict.start,
        )


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(SYSTEM.split()) | st.sampled_from(["and", "x" * 150, "é", "日本"]), max_size=60), st.data()
)
def test_shuffled_words_are_judged_alike_in_pieces(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    cuts = data.draw(st.lists(st.integers(0, 10**6), max_size=30))
    seen = [drive(Window([LeakageScan([SYSTEM])]), pieces) for pieces in ([text], split(text, cuts), list(text))]
    assert len({(s.released, s.cut.at if s.cut else None) for s in seen}) == 1


def test_ordinary_prose_is_held_for_a_few_words() -> None:
    """What is held where nothing is shared: no more than the words with which a shared passage may begin, and the unfinished one."""
    text = " ".join(p.reference or "" for p in suites.benign("seed")[:40])
    scan, held = LeakageScan([SYSTEM]), []
    for n, character in enumerate(text, start=1):
        scan.feed(character)
        if scan._run_start is None:
            held.append(len(text[scan.clear : n].split()))
    assert max(held) <= GRAM
    assert sum(held) / len(held) < 1.6


def test_what_is_kept_is_bounded() -> None:
    scan, words = LeakageScan([SYSTEM]), random.Random(3)
    for _ in range(3000):
        scan.feed(words.choice(["bird ", "x" * 40, " garden", "日本", "!"]))
        assert len(scan._text) <= 64
