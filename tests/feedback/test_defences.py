"""Doubles become one pair, and nobody and nothing weighs more than its share; where there is nothing of that, nothing changes."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from core.messages import user
from core.settings import SnapshotSettings
from feedback.defences import hold_back, merge_doubles
from feedback.preferences import Preference, Vote, as_voted, weigh

ALL = SnapshotSettings()
LONG = " ".join(f"word{n}" for n in range(40))


def pair(
    ask: str = "Where?",
    one: str = "In a hedge.",
    other: str = "On a cliff.",
    votes: dict[int, float] | None = None,
    **more: Any,
) -> Preference:
    """A pair of these texts with the strengths, for `one`, of annotators by number."""
    cast = [Vote(who, strength) for who, strength in (votes or {0: 2.0}).items()]
    bare = Preference(user(ask), one, other, **{"cluster": ask, **more})
    return as_voted(bare, cast)


def merged(*pairs: Preference) -> tuple[list[Preference], Counter[str]]:
    counts: Counter[str] = Counter()
    return merge_doubles(pairs, 0.8, counts), counts


# --- doubles


@pytest.mark.parametrize(
    "again",
    [
        {"ask": "  WHERE"},
        {"one": "in a hedge"},
        {"ask": "where ?", "one": "In a hedge!", "other": "on a CLIFF"},
    ],
)
def test_other_case_and_punctuation_is_the_same_pair(again: dict[str, str]) -> None:
    (found,), counts = merged(pair(votes={1: 3.0}), pair(**again, votes={2: 1.0}))
    assert {vote.annotator: vote.strength for vote in found.votes} == {1: 3.0, 2: 1.0}
    assert (found.margin, found.target) == (2.0, 1.0)
    assert sum(counts.values()) == 1


def test_a_hundred_copies_by_one_account_are_one_vote() -> None:
    """Three people said otherwise once; who said it a hundred times, on both sides of the page, counts once against them."""
    honest = pair(votes={1: 2.0, 2: 2.0, 3: 2.0})
    copies = [pair(one="On a cliff" + "!" * n, other="In a hedge", votes={9: 3.0}) for n in range(100)]
    (found,), counts = merged(*copies[:50], honest, *copies[50:])
    assert (found.chosen, found.rejected) == ("In a hedge.", "On a cliff.")
    assert Counter(vote.annotator for vote in found.votes) == {1: 1, 2: 1, 3: 1, 9: 1}
    assert found.margin == pytest.approx((2 + 2 + 2 - 3) / 4)
    assert counts == {"merged_near": 100}


def test_long_texts_may_differ_in_a_word_and_short_ones_not() -> None:
    (found,), counts = merged(pair(one=LONG), pair(one=f"{LONG} indeed", votes={1: 1.0}))
    assert (found.chosen, len(found.votes), counts) == (LONG, 2, {"merged_near": 1})
    apart, counts = merged(pair(one="Yes."), pair(one="No."))
    assert (len(apart), counts) == (2, {})


def test_another_question_is_another_pair_however_long_its_beginning() -> None:
    apart, _ = merged(pair(ask=f"{LONG}: red"), pair(ask=f"{LONG}: blue"))
    assert len(apart) == 2
    system = [{"role": "system", "content": "Be brief."}]
    apart, _ = merged(pair(), replace(pair(), prompt=[*system, *user("Where?")]))
    assert len(apart) == 2


def test_where_the_sides_are_near_each_other_only_equal_ones_are_the_same() -> None:
    """Corrections: what was edited is what the pair is about."""
    one = pair(one=f"{LONG} good", other=f"{LONG} bad")
    two = pair(one=f"{LONG} good", other=f"{LONG} worse", votes={1: 1.0})
    again = pair(one=f"{LONG} BAD", other=f"{LONG} good.", votes={2: 1.0})
    found, counts = merged(one, two, again)
    assert sorted(len(p.votes) for p in found) == [1, 2]
    assert counts == {"merged_near": 1}
    apart, _ = merged(pair(one="Where?", other="where"), pair(one="where", other="Where?", votes={1: 1.0}))
    assert [p.margin for p in apart] == [0.5]  # the same two texts the other way round: one pair, two opinions
    apart, _ = merged(pair(one="Where?", other="where"), pair(one="where?", other="Where"))
    assert len(apart) == 2


def test_as_many_against_as_for_is_a_tie() -> None:
    (found,), _ = merged(pair(votes={1: 2.0}), pair(one="On a cliff.", other="In a hedge.", votes={2: 2.0}))
    assert found.tie
    assert found.margin == 0


def test_who_said_it_twice_has_one_vote_of_the_mean() -> None:
    (found,), _ = merged(pair(votes={1: 3.0}), pair(votes={1: 1.0}))
    assert found.votes == [Vote(1, 2.0)]


def imported(one: str = "In a hedge.", other: str = "On a cliff.", margin: float = 1.0) -> Preference:
    return Preference(user("Where?"), one, other, margin, "import:1", cluster="Where?")


def test_imports_have_no_votes_and_give_way_to_those_that_have() -> None:
    (found,), counts = merged(imported("On a cliff.", "In a hedge."), pair())
    assert (found.chosen, len(found.votes), counts) == ("In a hedge.", 1, {"merged_equal": 1})
    (found,), _ = merged(imported(), imported("in a hedge"))
    assert (found.target, found.margin, found.votes) == (1.0, 1.0, [])
    (found,), _ = merged(imported(margin=2.0), imported(), imported("On a cliff!", "In a hedge!"))
    assert (found.chosen, round(found.target, 3), round(found.margin, 3)) == ("In a hedge!", 0.667, 0.667)
    (found,), _ = merged(imported(margin=2.0), imported("On a cliff!", "In a hedge!"))
    assert (found.tie, found.margin) == (True, 0.0)


def test_the_order_of_pairs_changes_nothing() -> None:
    some = [pair(f"Where {n % 5}?", one=f"Hedge{'!' * (n % 3)}", votes={n: 1.0 + n % 3}) for n in range(30)]
    first, _ = merged(*some)
    random.Random(0).shuffle(some)
    again, _ = merged(*some)
    assert sorted(first, key=repr) == sorted(again, key=repr)
    assert len(first) == 5


# --- shares


def crowd(n_each: dict[int, int], **more: Any) -> list[Preference]:
    """Pairs of one annotator each, every prompt another."""
    names = [who for who, n in n_each.items() for _ in range(n)]
    return [pair(f"prompt {i}", votes={who: 2.0}, **more) for i, who in enumerate(names)]


def share_of(pairs: list[Preference], who: int) -> float:
    mine = math.fsum(p.weight for p in pairs if p.votes[0].annotator == who)
    return mine / math.fsum(p.weight for p in pairs)


def test_where_nobody_has_more_than_a_share_nothing_changes() -> None:
    """Even, uneven within the limit, one person alone, two people, and pairs of elsewhere: the very objects come back."""
    for counts in (dict.fromkeys(range(10), 10), {0: 24, **dict.fromkeys(range(1, 11), 8)}, {0: 50}, {0: 99, 1: 1}):
        pairs = crowd(counts)
        held, facts = hold_back(pairs, ALL)
        assert all(a is b for a, b in zip(pairs, held, strict=True))
        assert [facts[k].get("held_back", 0) for k in ("annotators", "prompts", "categories")] == [0, 0, 0]
        assert merged(*pairs)[0] == pairs
    alone = [imported()] * 8
    assert hold_back(alone, ALL.model_copy(update={"max_prompt_share": 1.0}))[0] == alone


def test_an_annotator_is_held_to_a_share() -> None:
    held, facts = hold_back(crowd({0: 60, **dict.fromkeys(range(1, 11), 10)}), ALL)
    assert share_of(held, 0) == pytest.approx(0.25, abs=1e-4)
    assert facts["annotators"] == {"n": 11, "most": 0.375, "limit": 0.25, "held_back": 1, "left": 0.25}
    assert {p.weight for p in held if p.votes[0].annotator != 0} == {1.0}
    assert all(p.votes[0].weight == p.weight for p in held)  # so that draws of annotators keep it


def test_several_are_held_to_the_same_share() -> None:
    held, facts = hold_back(crowd({0: 80, 1: 60, **dict.fromkeys(range(2, 12), 10)}), ALL)
    assert [round(share_of(held, who), 3) for who in (0, 1)] == [0.25, 0.25]
    assert facts["annotators"]["held_back"] == 2


def test_few_who_did_little_do_not_come_to_count_for_all() -> None:
    """Two did all the work, eighteen had a look: the two keep a fifth of their weight at least."""
    held, facts = hold_back(crowd({0: 500, 1: 300, **dict.fromkeys(range(2, 20), 1)}), ALL)
    assert {p.votes[0].annotator: p.weight for p in held}[0] == 0.2
    assert facts["annotators"]["left"] > 0.5


def test_where_annotators_are_few_the_limit_is_twice_an_even_share() -> None:
    held, facts = hold_back(crowd({0: 60, 1: 10, 2: 10, 3: 10, 4: 10}), ALL)
    assert share_of(held, 0) == pytest.approx(0.4, abs=1e-4)
    assert facts["annotators"]["limit"] == 0.4


def test_within_a_pair_the_others_word_gains() -> None:
    """Who judged most is outvoted by two where it was a stand-off before: the pair is turned, and its target follows."""
    busy = crowd({0: 200, **dict.fromkeys(range(1, 11), 10)})
    disputed = pair("disputed", votes={0: 3.0, 1: -2.0})
    held, _ = hold_back([*busy, disputed], ALL)
    assert (held[-1].chosen, disputed.chosen) == ("On a cliff.", "In a hedge.")
    assert (held[-1].margin, held[-1].target, held[-1].weight) == pytest.approx(tuple(weigh(held[-1].votes)))


@pytest.mark.parametrize(("of", "name", "limit"), [("cluster", "prompts", 0.05), ("category", "categories", 0.5)])
def test_prompts_and_categories_are_held_to_a_share(of: str, name: str, limit: float) -> None:
    few = [pair(f"flood {n}", votes={n % 10: 2.0}, **{of: "flood"}) for n in range(80)]
    many = [pair(f"rest {n}", votes={n % 10: 2.0}, **{of: f"rest {n % 50}"}) for n in range(100)]
    pairs = few if name == "prompts" else [*few, *(replace(p, category="flood") for p in many[:60])]
    rest = many if name == "prompts" else many[60:]
    held, facts = hold_back([*pairs, *rest], ALL)
    flood = math.fsum(p.weight for p in held if getattr(p, of) == "flood") / math.fsum(p.weight for p in held)
    reached = limit if name == "categories" else 16 / 116  # a fifth of what it was is the least
    assert flood == pytest.approx(reached, abs=1e-3)
    assert (facts[name]["held_back"], facts[name]["limit"]) == (1, limit)
    assert all(v.weight == p.weight for p in held for v in p.votes)
    assert all(
        (a.chosen, a.target, a.margin) == (b.chosen, b.target, b.margin)
        for a, b in zip([*pairs, *rest], held, strict=True)
    )


def test_a_prompt_of_no_category_is_of_none_that_could_be_held() -> None:
    pairs = [*crowd(dict.fromkeys(range(10), 9)), *crowd(dict.fromkeys(range(10), 1), category="x")]
    held, facts = hold_back([replace(p, cluster=f"{n}") for n, p in enumerate(pairs)], ALL)
    assert facts["categories"] == {"n": 1, "most": 0.1, "limit": 1.0, "held_back": 0, "left": 0.1}
    assert {p.weight for p in held} == {1.0}


def test_limits_can_be_taken_off() -> None:
    off = ALL.model_copy(update={f"max_{of}_share": 1.0 for of in ("annotator", "prompt", "category")})
    pairs = [pair("one", votes={0: 1.0}, category="x") for _ in range(50)] + crowd(
        dict.fromkeys(range(1, 9), 1), category="y"
    )
    assert hold_back(pairs, off)[0] == pairs
    assert hold_back([], off)[1] == {name: {"n": 0} for name in ("annotators", "prompts", "categories")}
