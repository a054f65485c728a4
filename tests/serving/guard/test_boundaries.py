import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.guard.boundaries import LONGEST_CLUSTER, torn_nowhere
from serving.guard.patterns import PatternScan
from serving.guard.window import Window
from tests.core.detectors.planted import prose, split


@pytest.mark.parametrize(
    ("text", "upto", "more", "place"),
    [
        ("abc", 3, True, 2),
        ("abc", 2, True, 2),
        ("abc", 3, False, 3),
        ("", 0, True, 0),
        ("ae\u0301x", 2, True, 1),
        ("ae\u0301x", 3, True, 3),
        ("a👩‍👩‍👧b", 3, True, 1),
        ("🇩🇪🇫🇷x", 3, True, 2),
        ("a\r\n", 2, False, 1),
        ("a\ud83d", 2, True, 1),
        ("a\ud83d\ude00b", 2, True, 1),
        ("a\ud83d\ude00b", 3, True, 3),
        ("e" + "\u0301" * 200, 150, True, 150),
    ],
)
def test_places(text: str, upto: int, more: bool, place: int) -> None:
    assert torn_nowhere(text, upto, more=more) == place


@settings(deadline=None)
@given(prose(10) | st.text(), st.lists(st.integers(0, 10**6), max_size=30))
def test_no_cluster_is_torn_in_a_stream(text: str, cuts: list[int]) -> None:
    ends = {0, *(cluster.end() for cluster in regex.finditer(r"\X", text))}
    window, released = Window([PatternScan("secrets", [])]), 0
    for piece in split(text, cuts):
        for action in window.feed(piece):
            released += len(action.text)  # type: ignore[union-attr]
            assert released in ends
    assert released >= len(text) - LONGEST_CLUSTER
    released += sum(len(action.text) for action in window.finish())  # type: ignore[union-attr]
    assert released == len(text)
