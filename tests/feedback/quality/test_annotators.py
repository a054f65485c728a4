"""What is told of each annotator, counted by hand on small rows."""

import datetime as dt

import pytest
from sqlalchemy.orm import Session

from core.db import utcnow
from core.intervals import wilson
from core.settings import QualitySettings
from feedback.assignment.annotators import pause
from feedback.models import Assignment, GoldResult, Judgment, Task, TaskItem
from feedback.quality.acts import Window
from feedback.quality.annotators import SORTS, Track, judging, least_s, standing_of, tracks
from feedback.quality.consensus import Consensus, pair_consensus
from tests.factories import make_person, make_task
from tests.feedback.quality.rows import choose, judge, pairs

SETTINGS = QualitySettings()
NONE = Consensus()


def track_of(session: Session, window: Window | None = None, **more: object) -> Track:
    [track] = tracks(session, window or Window(), QualitySettings(**more), rules=NONE, pairs=NONE)
    return track


def test_nobody_yet(either: Session) -> None:
    make_person(either)
    assert tracks(either, Window(), SETTINGS, rules=NONE, pairs=NONE) == []


def test_each_figure_by_hand(either: Session) -> None:
    ana = make_person(either)
    # ten pairs: seven times the left one, though "a" stood right in half of them; two ties
    for n in range(10):
        order = [0, 1] if n % 2 else [1, 0]
        left, right = ("a", "b") if n % 2 else ("b", "a")
        [task] = pairs(either, [{ana: left if n < 7 else right}], order=order, latency_s=10.0 + n)
        task.items[0].completion.text = "x" * (6000 if n < 2 else 10)
    pairs(either, [{ana: "tie"}, {ana: "both_bad"}], latency_s=None)
    for n in range(4):
        [task] = pairs(either, [{ana: "a"}], order=[0, 1], latency_s=1.0)
        task.pool = "gold"
        found = either.query(Judgment).filter_by(task_id=task.id).one()
        either.add(GoldResult(judgment_id=found.id, task_id=task.id, annotator_id=ana.id, passed=n > 0))
    for reason in ("too long", "flagged: a name in it", "flagged: broken text"):
        task = make_task(either)
        either.add(
            Assignment(
                task_id=task.id, annotator_id=ana.id, lease_token=reason, expires_at=utcnow(), shown_order=[0, 1],
                state="skipped", skip_reason=reason,
            )
        )  # fmt: skip
    either.flush()
    track = track_of(either)
    assert (track.judgments, track.looked_at) == (16, 16)
    assert (track.left.value, track.left.n) == (0.7, 10)
    assert (track.left.low, track.left.high) == pytest.approx(wilson(7, 10))
    assert (track.gold.value, track.gold.n) == (0.75, 4)
    assert (track.fast.value, track.fast.n) == (6 / 14, 14)  # two long ones, four under the floor of 2 s
    assert (track.seconds.value, track.seconds.n) == (12.5, 14)  # 1 ×4, then 10 … 19
    assert (track.skips, track.flags) == (1, 2)
    assert str(track.swap.undefined) == "no pair that they judged was shown to them again"
    assert str(track.on_pairs.undefined) == "none of their judgments is of a task that others judged too"


def test_too_fast_goes_by_the_length_of_the_text() -> None:
    assert least_s(0, SETTINGS) == 2
    assert least_s(600, SETTINGS) == 10


def test_swap_consistency(either: Session) -> None:
    ana = make_person(either)
    for first, again in (("a", "a"), ("b", "b"), ("a", "b"), ("tie", "a")):
        [task] = pairs(either, [{ana: first}])
        repeat = Task(
            kind="pairwise", source=f"repeat:{task.id}", prompt_id=task.prompt_id, about_id=task.id, pool="repeat",
            items=[TaskItem(position=i.position, completion_id=i.completion_id) for i in task.items],
        )  # fmt: skip
        either.add(repeat)
        either.flush()
        choose(either, repeat, {ana: again}, order=[1, 0])
    track = track_of(either)
    assert (track.swap.value, track.swap.n) == (0.5, 4)
    assert track.left.n == 3  # repeats are apart


def test_the_window_and_the_newest(either: Session) -> None:
    ana = make_person(either)
    long_ago = utcnow() - dt.timedelta(days=40)
    pairs(either, [{ana: "a"}] * 3, at=long_ago)
    pairs(either, [{ana: "b"}] * 5, order=[1, 0])
    week = Window(since=utcnow() - dt.timedelta(days=7))
    assert (track_of(either, week).judgments, track_of(either).judgments) == (5, 8)
    few = track_of(either, newest_judgments=2)
    assert (few.judgments, few.looked_at, few.left.n) == (8, 2, 2)
    assert judging(either, Window(since=utcnow() + dt.timedelta(days=1))) == []


def test_scripts_are_told_of_only_when_asked(either: Session) -> None:
    pairs(either, [{make_person(either, scripted=True): "a"}])
    assert judging(either, Window()) == []
    assert track_of(either, Window(simulated=True)).judgments == 1


def test_an_undone_judgment_is_one_judgment(either: Session) -> None:
    ana = make_person(either)
    [task] = pairs(either, [{ana: "a"}])
    old = either.query(Judgment).one()
    either.add(
        Judgment(
            kind="pairwise", task_id=task.id, assignment_id=old.assignment_id, annotator_id=ana.id, choice="b",
            strength=1, supersedes_id=old.id,
        )
    )  # fmt: skip
    either.flush()
    track = track_of(either)
    assert (track.judgments, track.looked_at, track.left.value) == (1, 1, 0)


def test_reliability_and_its_reason(either: Session) -> None:
    ana, ben = make_person(either, "ana"), make_person(either, "ben")
    pairs(either, [{ana: "a", ben: "a"}] * 4)
    consensus = pair_consensus(either, Window())
    found = tracks(either, Window(), SETTINGS, rules=NONE, pairs=consensus)
    assert [str(t.on_pairs.undefined)[:12] for t in found] == ["only 4 tasks"] * 2


def test_orders_put_first_what_needs_a_look(either: Session) -> None:
    ana, ben = make_person(either, "ana"), make_person(either, "ben")
    pairs(either, [{ana: "a", ben: "a"}, {ana: "a", ben: "b"}])
    judge(either, make_task(either), ben, choice="a", strength=1, latency_s=0.1)
    found = tracks(either, Window(), SETTINGS, rules=NONE, pairs=NONE)
    assert [t.person_id for t in found] == [ana.id, ben.id]
    first = {name: sorted(found, key=key)[0].person_id for name, key in SORTS.items()}
    assert first == {
        "judgments": ben.id, "gold": ana.id, "left": ana.id, "swap": ana.id, "fast": ben.id, "seconds": ana.id,
    }  # fmt: skip


def test_standing_is_read_beside(either: Session) -> None:
    ana, ben = make_person(either, "ana"), make_person(either, "ben")
    pause(either, ana.id, "lead", "was asleep")
    found = standing_of(either, [ana.id, ben.id])
    assert (found[ana.id]["standing"], found[ana.id]["why"]) == ("paused", "was asleep")
    assert (found[ben.id]["standing"], found[ben.id]["login"]) == ("good", "ben")
