"""Time left: from what was measured since the attempt began, else from what was before it."""

import pytest

from finetune.pace import WINDOW_S, Pace


def test_an_even_pace_by_hand() -> None:
    pace = Pace(0.0)
    assert pace.left_s(10.0, 0.1) is None  # one point is no pace: loading the model took these ten seconds
    assert pace.left_s(15.0, 0.2) == pytest.approx(40)
    assert pace.left_s(20.0, 0.3) == pytest.approx(35)
    assert pace.left_s(55.0, 1.0) == 0


def test_what_was_done_before_a_restart_is_not_counted_as_fast() -> None:
    pace = Pace(100.0, before=(60.0, 0.5))
    assert pace.guess(100.0, 0.5) == pytest.approx(60)  # half of it took 60 s
    assert pace.left_s(104.0, 0.4) == pytest.approx(72)  # from the checkpoint; nothing is measured yet
    assert pace.left_s(114.0, 0.5) == pytest.approx(50)  # a tenth in 10 s


def test_it_follows_when_the_pace_changes() -> None:
    pace, left = Pace(0.0), None
    for second in range(0, 1001, 10):
        left = pace.left_s(float(second), second / 2000)
    assert left == pytest.approx(1000)
    for second in range(1010, 1010 + int(WINDOW_S) + 20, 10):
        left = pace.left_s(float(second), 0.5 + (second - 1000) / 10_000)
    assert left == pytest.approx(5000 - (second - 1000), rel=0.01)


def test_a_stage_that_tells_nothing_is_expected_to_take_what_it_took() -> None:
    pace = Pace(50.0, last_s=30.0)
    assert pace.guess(60.0, 0.0) == pytest.approx(20)
    assert pace.left_s(70.0, 0.0) == pytest.approx(10)
    assert pace.left_s(99.0, 0.0) == 0
    assert Pace(0.0).guess(1.0, 0.0) is None
