"""What counts as nearly the same, and what must not."""

import pytest

from core.messages import user
from feedback.near import Near, clusters, prompt_text, representatives, words

LONG = " ".join(f"word{n}" for n in range(40))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where does it nest?", "  where does it   NEST ?!"),
        ("Where does it nest?", "*Where* does \u200bit «nest»"),
        ("Where does it nest?", "\uff37here does it nest"),
    ],
    ids=["case, spaces, punctuation", "marks and a sign that nobody sees", "full width"],
)
def test_what_looks_alike_has_equal_words(one: str, other: str) -> None:
    assert words(one) == words(other) == ["where", "does", "it", "nest"]


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("3.5", "35"), ("a+b", "a-b"), ("C#", "C"), ("50%", "50"), ("x=2", "x=3")]
)
def test_signs_that_mean_something_stay(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_a_text_without_words_is_what_it_is_made_of() -> None:
    assert words("?? !") == ["??", "!"]
    assert words("") == []


def test_short_texts_that_differ_in_a_word_are_not_near() -> None:
    index = Near(0.8, ["Yes, you may.", LONG])
    assert index.like("No, you may.") == []
    assert index.like("yes, you MAY") == ["Yes, you may."]
    assert index.like(f"{LONG} more") == [LONG]


def test_no_chain_leads_from_one_text_to_another() -> None:
    """Each step changes one word of forty; after ten of them little is left alike."""
    steps = [" ".join([*(f"new{k}" for k in range(n)), *LONG.split()[n:]]) for n in range(0, 20, 2)]
    found = representatives(steps, 0.8)
    assert found[steps[0]] == found[steps[1]]
    assert found[steps[0]] != found[steps[-1]]
    assert set(found) == set(steps)
    assert all(found[first] == first for first in found.values())


def test_prompts_that_differ_in_punctuation_are_one_cluster() -> None:
    asked = [user(text) for text in ("Where does it nest?", "where does it nest", "Where does it sleep?")]
    named = clusters(asked, [], 0.8)
    one, same, other = (named[prompt_text(prompt)] for prompt in asked)
    assert one == same != other
    assert clusters(asked, ["Where does it nest!!"], 0.8)[prompt_text(asked[1])] is None


def test_a_similarity_of_one_finds_equal_words_alone() -> None:
    index = Near(1.0, [LONG, "Yes."])
    assert index.like(f"{LONG} more") == []
    assert index.like("yes!") == ["Yes."]
