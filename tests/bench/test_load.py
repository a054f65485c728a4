"""The load generator: percentiles of given latencies, and what is counted when a target refuses or runs dry."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from bench.annotation import load
from bench.annotation.http import Refused
from bench.annotation.load import Target, closed_loop, open_loop, summary
from bench.tools import NotDone
from tests.bench.loops import run as run_loop


class InMemory(Target):
    """Tasks are numbers; every `refuse_every`-th call of `next` is refused."""

    name = "in memory"

    def __init__(self, tasks: int, refuse_every: int = 0, *, one_call: bool = False, strict: bool = False) -> None:
        super().__init__()
        self.left, self.refuse_every, self.one_call, self.strict = tasks, refuse_every, one_call, strict
        self.calls: Counter[str] = Counter()
        self.judged: list[int] = []

    def prepare(self, size: int, limit_s: float) -> dict[str, Any]:
        return {}

    async def next(self, annotator: int) -> Any:
        await asyncio.sleep(0.001)
        self.calls["next"] += 1
        if self.refuse_every and self.calls["next"] % self.refuse_every == 0:
            raise Refused("next: 500")
        if not self.left:
            return None
        self.left -= 1
        return self.left

    async def submit(self, annotator: int, task: Any) -> None:
        self.calls["submit"] += 1
        self.judged.append(task)

    async def submit_and_next(self, annotator: int, task: Any) -> Any:
        await self.submit(annotator, task)
        return await self.next(annotator)

    def check(self) -> dict[str, int]:
        return {"judgments": len(self.judged)}

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WARM_UP_S", 0.0)


def test_percentiles_of_given_latencies() -> None:
    assert summary([n / 1000 for n in range(101)]) == {"n": 101, "p50_ms": 50.0, "p99_ms": 99.0, "max_ms": 100.0}


def test_a_percentile_of_few_is_no_guess_beyond_them() -> None:
    assert summary([0.002]) == {"n": 1, "p50_ms": 2.0, "p99_ms": 2.0, "max_ms": 2.0}
    assert summary([0.0, 0.1]) == {"n": 2, "p50_ms": 50.0, "p99_ms": 99.0, "max_ms": 100.0}


@pytest.mark.parametrize("one_call", [False, True])
def test_the_closed_loop_counts_what_was_judged(one_call: bool) -> None:
    target = InMemory(100_000, one_call=one_call)
    found = run_loop(closed_loop(target, 0.2, annotators=3))
    timed = "submit_and_next" if one_call else "submit"
    assert 0 < found["tasks"] == found[timed]["n"] <= target.acknowledged == len(target.judged)
    assert len(target.judged) == len(set(target.judged))
    assert found["tasks_per_s"] == pytest.approx(found["tasks"] / 0.2, abs=0.01)
    assert found["failed_calls"] == {}


def test_a_refused_call_is_counted_and_the_annotator_goes_on() -> None:
    target = InMemory(100_000, refuse_every=5)
    found = run_loop(closed_loop(target, 0.2, annotators=2))
    assert found["tasks"] > 0
    assert found["failed_calls"] == {"next: 500": target.calls["next"] // 5}


def test_a_refused_call_ends_the_run_of_a_strict_target() -> None:
    with pytest.raises(Refused, match="next: 500"):
        run_loop(closed_loop(InMemory(100, refuse_every=5, strict=True), 5, annotators=2))


def test_a_target_that_only_refuses_is_given_up() -> None:
    with pytest.raises(NotDone, match="nobody was given a first task.*500"):
        run_loop(closed_loop(InMemory(100, refuse_every=1), 5, annotators=2))


def test_running_dry_is_no_result() -> None:
    with pytest.raises(NotDone, match="ran out of tasks in the closed loop"):
        run_loop(closed_loop(InMemory(10), 5, annotators=2))
    with pytest.raises(NotDone, match="ran out of tasks in the open loop"):
        run_loop(open_loop(InMemory(0), 1, annotators=2))


def test_the_open_loop_judges_one_task_a_second_each() -> None:
    target = InMemory(100)
    found = run_loop(open_loop(target, 1, annotators=4))
    assert found["next"]["n"] == found["submit"]["n"] == len(target.judged) == 4
