"""Progress, throughput, what waits, and rule violations, on both databases."""

import datetime as dt

import pytest
from sqlalchemy.orm import Session

import finetune.models  # noqa: F401 (the table of versions names that of cycles)
from core.db import utcnow
from feedback.assignment.annotators import annotator_of, pause, set_standing
from feedback.models import Assignment, Completion, Task
from feedback.quality.acts import Window, left_out
from feedback.quality.queue import Waiting, health, progress, throughput
from feedback.quality.violations import violations
from feedback.tasks import create_task
from tests.factories import make_completion, make_person, make_policy_version, make_prompt, make_task
from tests.feedback.quality.rows import checks, judge, make_rule, pairs


def test_an_empty_queue(either: Session) -> None:
    assert progress(either) == []
    assert violations(either, Window()) == []
    found = health(either)
    assert (found.waiting, found.leases, found.adjudications, found.paused) == ([], 0, 0, 0)
    assert [day.total for day in throughput(either, 7)] == [0] * 7


def test_progress_counts_tasks_and_places(either: Session) -> None:
    ana = make_person(either)
    make_task(either, required_n=3)
    judge(either, make_task(either, required_n=3), ana, choice="a", strength=1)
    either.query(Task).order_by(Task.id.desc()).first().state = "live"
    pairs(either, [{ana: "a"}] * 2)
    make_task(either, "rating", texts=(None,)).state = "cancelled"
    make_task(either, pool="gold", required_n=1_000_000)
    either.flush()
    pairwise, rating = progress(either)
    assert (pairwise.kind, pairwise.done, pairwise.live, pairwise.cancelled) == ("pairwise", 2, 2, 0)
    assert (pairwise.places_done, pairwise.places) == (3, 8)
    assert (rating.done, rating.live, rating.cancelled, rating.places) == (0, 0, 1, 0)


def test_days_are_days_in_utc(either: Session) -> None:
    if either.get_bind().dialect.name == "postgresql":
        from sqlalchemy import text

        either.execute(text("SET LOCAL TIME ZONE 'Pacific/Kiritimati'"))  # 14 hours ahead
    ana, ben, script = make_person(either), make_person(either), make_person(either, scripted=True)
    yesterday = dt.datetime.combine(utcnow().date(), dt.time(), dt.UTC) - dt.timedelta(seconds=1)
    pairs(either, [{ana: "a", ben: "b"}, {ana: "a"}], at=yesterday)
    judge(either, make_task(either, "rating", texts=(None,)), ana, rating=3, at=yesterday)
    pairs(either, [{ana: "a", script: "b"}], at=utcnow())
    pairs(either, [{ana: "a"}], at=utcnow() - dt.timedelta(days=9))
    days = throughput(either, 3)
    assert [(day.total, day.people) for day in days] == [(0, 0), (4, 2), (1, 1)]
    assert days[1].by_kind == {"pairwise": 3, "rating": 1}
    assert days[1].day == yesterday.date()
    assert throughput(either, 3, simulated=True)[2].total == 2
    assert left_out(either, Window()) == 1
    assert left_out(either, Window(simulated=True)) == 0


def test_what_waits(either: Session) -> None:
    ana, ben = make_person(either), make_person(either)
    old = make_task(either, required_n=2)
    old.created_at = utcnow() - dt.timedelta(days=3)
    make_task(either, pool="informative", required_n=3)
    make_task(either, pool="adjudication", about_id=old.id)
    full = make_task(either)
    full.taken = 1
    for minutes in (5, -5):
        either.add(
            Assignment(
                task_id=full.id, annotator_id=(ana if minutes > 0 else ben).id, lease_token=str(minutes), shown_order=[0, 1],
                expires_at=utcnow() + dt.timedelta(minutes=minutes),
            )
        )  # fmt: skip
    pause(either, ana.id, "lead", "")
    set_standing(either, annotator_of(either, ben.id), "warned", "gold", "gold check")
    found = health(either)
    assert [(w.pool, w.kind, w.tasks, w.places) for w in found.waiting] == [
        ("adjudication", "pairwise", 1, 1), ("informative", "pairwise", 1, 3), ("uniform", "pairwise", 1, 2),
    ]  # fmt: skip
    uniform: Waiting = found.waiting[2]
    assert uniform.oldest == pytest.approx(old.created_at, abs=dt.timedelta(milliseconds=1))
    assert (found.leases, found.lapsed, found.adjudications, found.warned, found.paused) == (2, 1, 1, 1, 1)


def test_violations_by_version(either: Session) -> None:
    ana, ben, cleo = (make_person(either) for _ in range(3))
    one, two = make_rule(either, "no-threats"), make_rule(either, "no-advice")
    base, v1 = make_policy_version(either), make_policy_version(either, "v1", "candidate")
    said = [{ana: "broken", ben: "broken", cleo: "kept"}, {ana: "broken", ben: "kept"}, {ana: "kept", ben: "unsure"}]
    checks(either, one.id, said, policy_version_id=base.id)
    checks(either, one.id, [{ana: "kept"}] * 5, policy_version_id=v1.id)
    checks(either, two.id, [{ana: "unsure"}], policy_version_id=v1.id)
    checks(either, two.id, [{ana: "broken"}])  # no version wrote it
    for pool in ("gold", "repeat"):
        checks(either, two.id, [{ana: "broken"}], policy_version_id=v1.id)[0].pool = pool
    checks(either, two.id, [{make_person(either, scripted=True): "broken"}], policy_version_id=v1.id)
    found = {(v.rule, v.policy_version_id): (v.rate.value, v.rate.n) for v in violations(either, Window())}
    assert found == {
        (None, base.id): (2 / 3, 3), (None, v1.id): (0, 5),
        ("no-threats", base.id): (2 / 3, 3), ("no-threats", v1.id): (0, 5),
    }  # fmt: skip
    assert not any(v.probed for v in violations(either, Window()))
    with_script = {(v.rule, v.policy_version_id): v.rate.n for v in violations(either, Window(simulated=True))}
    assert with_script["no-advice", v1.id] == 1


def test_what_a_reviewer_settled_stands(either: Session) -> None:
    ana, ben, cleo, reviewer = (make_person(either) for _ in range(4))
    rule, base = make_rule(either), make_policy_version(either)
    [task] = checks(either, rule.id, [{ana: "broken", ben: "broken", cleo: "kept"}], policy_version_id=base.id)
    assert violations(either, Window())[0].rate.value == 1
    settling = create_task(
        either, "rule_check", task.prompt_id, [task.items[0].completion_id], source="adjudication:1",
        rule_version_id=rule.id, about_id=task.id, pool="adjudication",
    )  # fmt: skip
    judge(either, settling, reviewer, verdict="kept")
    assert (violations(either, Window())[0].rate.value, violations(either, Window())[0].rate.n) == (0, 1)


def test_probes_are_told_apart(either: Session) -> None:
    from feedback.models import RuleJudgment

    ana, rule, base = make_person(either), make_rule(either), make_policy_version(either)
    probe = create_task(either, "probe", None, [], source="probe:1", rule_version_id=rule.id)
    act = judge(either, probe, ana)
    for verdict in ("broken", "kept"):
        reply: Completion = make_completion(either, make_prompt(either), source="served", policy_version_id=base.id)
        either.add(RuleJudgment(judgment_id=act.id, rule_version_id=rule.id, completion_id=reply.id, verdict=verdict))
    checks(either, rule.id, [{ana: "kept"}], policy_version_id=base.id)
    found = [(v.rule, v.probed, v.rate.value, v.rate.n) for v in violations(either, Window())]
    slug = rule.rule.slug
    assert found == [(None, False, 0, 1), (None, True, 0.5, 2), (slug, False, 0, 1), (slug, True, 0.5, 2)]
