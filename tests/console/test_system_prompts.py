"""Pages of system prompts: who may what, texts and shares, and figures that are right."""

import csv
import datetime as dt
import io
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from access.models import AuditLog, Person
from console.prompt_effects import Scope, effects
from core.db import Database, table_of, utcnow
from core.intervals import Z95, wilson
from feedback.models import Completion, Judgment, completion_id
from feedback.quality.clustered import Sums, difference
from feedback.quality.estimate import Estimate
from feedback.rules.store import ensure_rules, starter_rules
from feedback.rules.words import Change
from feedback.system_prompts import store
from feedback.system_prompts.models import SystemPromptShare
from feedback.system_prompts.store import Share
from feedback.tasks import create_task
from serving.models import GuardReport
from tests import factories
from tests.conftest import SignedIn


def make_prompt(client: FlaskClient, name: str = "tutor", text: str = "Be brief.", note: str = "first") -> Any:
    return client.post("/system-prompts", data={"name": name, "text": text, "note": note}, follow_redirects=True)


def share(client: FlaskClient, base: int, **percents: int) -> Any:
    form = {"base": base, "note": "trial", **{f"percent_{id_}": n for id_, n in percents.items()}}
    return client.post("/system-prompts/shares", data=form, follow_redirects=True)


def rows(database: Database) -> list[SystemPromptShare]:
    with database.read() as session:
        return list(session.scalars(select(SystemPromptShare).order_by(SystemPromptShare.id)))


def test_a_lead_writes_versions_and_shares_and_brings_former_ones_back(lead: SignedIn, database: Database) -> None:
    client = lead.client
    assert "tutor@1" in make_prompt(client).text
    edit = {"base": "1", "text": "Be very brief.", "note": "shorter"}
    page = client.post("/system-prompts/tutor", data=edit, follow_redirects=True).text
    assert re.search(r"<ins>\s*very", page)
    assert "tutor@2" in page
    assert share(client, 0, **{"0": 50, "1": 50}).status_code == 200
    assert share(client, 1, **{"2": 100}).status_code == 200
    assert client.post("/system-prompts/shares/1/bring-back", data={"base": 2}).status_code == 303
    found = rows(database)
    assert [row.number for row in found] == [1, 2, 3]
    assert found[2].shares == found[0].shares
    with database.read() as session:
        acts = [
            row.action
            for row in session.scalars(select(AuditLog).order_by(AuditLog.id))
            if "system_prompt" in row.action
        ]
    assert acts == ["system_prompt.create", "system_prompt.edit", *["system_prompt.shares"] * 3]
    older = client.post(
        "/system-prompts/shares", data={"base": 3, "note": "old", "other": "tutor@1", "other_percent": 100}
    )
    assert older.status_code == 303
    assert rows(database)[3].shares == [{"version_id": 1, "percent": 100}]
    assert share(client, 4).status_code == 200  # none at all
    assert rows(database)[4].shares == []


@pytest.mark.parametrize(
    ("percents", "why"),
    [
        ({"0": 50, "1": 40}, "90 %"),
        ({"1": 101}, "101 %"),
        ({"77": 100}, "77"),
        ({"0": 100, "00": 0, "x": 1}, "whole number"),
    ],
)
def test_shares_that_are_none_are_refused(
    lead: SignedIn, database: Database, percents: dict[str, int], why: str
) -> None:
    make_prompt(lead.client)
    answer = share(lead.client, 0, **percents)
    assert answer.status_code == 400
    assert why in answer.text
    assert rows(database) == []


def test_of_two_who_set_shares_at_once_one_is_told(lead: SignedIn, database: Database) -> None:
    make_prompt(lead.client)
    assert share(lead.client, 0, **{"1": 100}).status_code == 200
    late = share(lead.client, 0, **{"0": 100})
    assert late.status_code == 409
    assert "changed this after you had opened it" in late.text
    assert len(rows(database)) == 1
    stale = lead.client.post("/system-prompts/tutor", data={"base": "7", "text": "Other.", "note": "n"})
    assert stale.status_code == 409


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("tutor", "x", 409), ("none", "x", 400), ("../etc", "x", 400), ("A b", "x", 400), ("ok", " \n ", 400),
        ("ok", "x" * 10_000, 400), ("ok", "x" * 30_000, 400), ("ok", "{{ 7*7 }}<script>alert(1)</script>\u202e", 200),
    ],
)  # fmt: skip
def test_texts_that_fit_are_shown_as_they_are_and_others_refused(
    lead: SignedIn, name: str, text: str, status: int
) -> None:
    make_prompt(lead.client)
    answer = make_prompt(lead.client, name, text)
    assert answer.status_code == status
    if status == 200:
        assert "{{ 7*7 }}&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    elif len(text) > 5:
        assert f"{text[:40]}" in answer.text  # what was typed comes back


def test_who_may_see_and_change(people: dict[str, Person], sign_in: Callable[[Person], SignedIn]) -> None:
    reviewer, annotator = (sign_in(people[role]).client for role in ("reviewer", "annotator"))
    assert reviewer.get("/system-prompts").status_code == 200
    assert 'name="text"' not in reviewer.get("/system-prompts").text
    assert make_prompt(reviewer).status_code == 403
    assert annotator.get("/system-prompts").status_code == 403
    assert annotator.get("/rules/any/guard").status_code == 403


# Figures --------------------------------------------------------------------------------------------------------------


def shared(session: Session, *percents: int) -> tuple[int, list[int]]:
    """A row of shares of none and "tutor@1"; its id, and the arms."""
    person = factories.make_person(session, role="lead")
    change = Change(author_id=person.id, login=person.login, note="n")
    version = store.create_prompt(session, "tutor", "Be brief.", change, most_tokens=1024)
    shares = [Share(None, percents[0]), Share(version.id, percents[1])]
    return store.set_shares(session, shares, base=0, change=change).id, [0, version.id]


def reply(session: Session, share_id: int, arm: int, unit: str, **more: Any) -> str:
    given = {
        "system_prompt_share_id": share_id, "system_prompt_version_id": arm or None, "system_prompt_unit": unit,
        "finish_reason": "stop", "completion_tokens": 10, "prompt_tokens": 5, "latency_s": 1.0, **more,
    }  # fmt: skip
    source = given.pop("source", "served")
    return factories.make_completion(session, given.pop("prompt", None), source=source, details=given).id


@pytest.mark.parametrize("where", ["database", "postgres_database"])
def test_what_counts_and_what_does_not(where: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(where)
    with database.session() as session:
        share_id, (none, tutor) = shared(session, 60, 40)
        person = factories.make_person(session)
        ids = [reply(session, share_id, arm, f"u{i % 2}") for arm, n in ((none, 3), (tutor, 4)) for i in range(n)]
        for more in ({"prompt_tokens": 0}, {"source": "paired"}, {"system_prompt_share_id": None}):
            reply(session, share_id, tutor, "u9", **more)
        reply(session, share_id, tutor, "u1", finish_reason="cancelled", completion_tokens=500, latency_s=99.0)
        for completion, thumbs in ((ids[0], 1), (ids[3], -1), (ids[4], 1)):
            session.add(Judgment(kind="thumbs", completion_id=completion, annotator_id=person.id, thumbs=thumbs))
        ensure_rules(session)
        rule = {"check": "rules", "rule_version_id": 1, "outcome": "clear"}
        for completion, verdicts, broken in (
            (ids[3], [rule], 1),
            (ids[4], [rule], None),
            (ids[5], [{"check": "pii"}], None),
        ):
            report = GuardReport(
                completion_id=completion, outcome="clear", cut=False, rule_version_id=broken, verdicts=verdicts
            )
            session.add(report)
        session.flush()
        found = {effect.arm: effect for effect in effects(session, Scope(), none)}
    assert list(found) == [none, tutor]
    assert [(e.replies, e.units) for e in found.values()] == [(3, 2), (5, 2)]
    tutors = found[tutor].figures
    assert (tutors["thumbs"].value, tutors["thumbs"].n, found[none].figures["thumbs"].value) == (0.5, 2, 1.0)
    assert (tutors["guard"].value, tutors["guard"].n) == (0.5, 2)
    assert found[none].figures["guard"].undefined is not None
    assert (tutors["tokens"].value, tutors["tokens"].n, tutors["p95_s"].value) == (10, 4, 1.0)


@pytest.mark.parametrize("where", ["database", "postgres_database"])
def test_preferences_between_versions_are_those_of_pairs(where: str, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(where)
    with database.session() as session:
        share_id, (none, tutor) = shared(session, 60, 40)
        prompt, person = factories.make_prompt(session), factories.make_person(session)
        policy = factories.make_policy_version(session).id
        for n, (first, choice) in enumerate(
            [(none, "b"), (none, "b"), (none, "a"), (tutor, "a"), (tutor, "tie"), (none, "both_bad")]
        ):
            second = tutor if first == none else none
            both = [
                reply(session, share_id, arm, f"u{n}", prompt=prompt, source=source)
                for arm, source in ((first, "served"), (second, "paired"))
            ]
            session.flush()
            for each in both:
                session.get_one(Completion, each).policy_version_id = policy
            task = create_task(session, "pairwise", prompt.id, both, source=f"pair:{n}", pool="canary")
            session.add(Judgment(kind="pairwise", task_id=task.id, annotator_id=person.id, choice=choice))
        session.flush()
        found = {effect.arm: effect for effect in effects(session, Scope(share_id=share_id), none)}
        again = {effect.arm: effect for effect in effects(session, Scope(share_id=share_id), tutor)}
    preferred = found[tutor].figures["preferred"]
    assert (preferred.value, preferred.n) == (0.75, 4)
    assert (found[tutor].ties, found[tutor].both_bad) == (1, 1)
    assert found[none].figures["preferred"].undefined is not None
    assert again[none].figures["preferred"].value == 0.25


def test_figures_of_many_replies_are_those_that_python_finds(database: Database) -> None:
    draw = random.Random(7)
    with database.session() as session:
        share_id, arms = shared(session, 60, 40)
        prompt, made = factories.make_prompt(session), []
        for n in range(6000):
            made.append(
                {
                    "id": completion_id(), "prompt_id": prompt.id, "source": "served", "text": "x", "finish_reason": "stop",
                    "system_prompt_share_id": share_id, "system_prompt_version_id": arms[n % 2] or None,
                    "system_prompt_unit": f"u{draw.randrange(300)}-{n % 2}", "prompt_tokens": 5,
                    "completion_tokens": draw.randrange(1, 200), "latency_s": draw.lognormvariate(0, 1), "created_at": utcnow(),
                }
            )  # fmt: skip
        session.execute(insert(table_of(Completion)), made)
        found = {effect.arm: effect for effect in effects(session, Scope(since=utcnow() - dt.timedelta(days=7)), 0)}
    for n, arm in enumerate(arms):
        mine = made[n::2]
        latencies = sorted(row["latency_s"] for row in mine)
        figures = found[arm].figures
        assert (found[arm].replies, figures["tokens"].n) == (3000, 3000)
        assert figures["tokens"].value == pytest.approx(sum(row["completion_tokens"] for row in mine) / 3000)
        assert figures["p50_s"].value == pytest.approx(latencies[1499])
        assert figures["p95_s"].value == pytest.approx(latencies[2849])
        for name in ("p50_s", "p95_s"):
            low, high = figures[name].low, figures[name].high
            assert low is not None
            assert high is not None
            assert low < figures[name].value < high


def test_clusters_widen_intervals_and_rows_apart_give_the_plain_ones() -> None:
    apart = Sums(k=100, n=100, s=30, nn=100, ns=30, ss=30)
    low, high = apart.rate("").low, apart.rate("").high
    # the variance has k − 1 below, Wilson's has n
    assert (low, high) == pytest.approx(wilson(0.3 * 99, 99))
    together = Sums(k=10, n=100, s=30, nn=1000, ns=300, ss=300)  # ten users of ten replies: three always, seven never
    wide = together.rate("")
    assert wide.low is not None
    assert wide.high is not None
    assert (wide.value, wide.low < low, wide.high > high) == (0.3, True, True)
    assert Sums(k=5, n=50, s=0, nn=500).rate("").high == pytest.approx(wilson(0, 5)[1])


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    """Two rates of clustered rows, 400 times."""
    draw, held, times = random.Random(3), 0, 400

    def arm(p: float) -> Estimate:
        units = []
        for _ in range(60):
            rate = min(1.0, max(0.0, draw.gauss(p, 0.15)))
            units.append([draw.random() < rate for _ in range(draw.randrange(1, 9))])
        n, s = [len(u) for u in units], [sum(u) for u in units]
        sums = (
            sum(n),
            sum(s),
            sum(a * a for a in n),
            sum(a * b for a, b in zip(n, s, strict=True)),
            sum(b * b for b in s),
        )
        return Sums(60, *sums).rate("")

    for _ in range(times):
        found = difference(arm(0.5), arm(0.4))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert held / times == pytest.approx(0.95, abs=0.035)


def test_a_difference_of_two_rates_has_newcombes_interval() -> None:
    """56/70 and 48/80: 0.2, 0.0524 to 0.3339 (Newcombe 1998, Statist. Med. 17:873, table II, method 10)."""
    one, other = (Estimate(s / n, *wilson(s, n), n=n) for s, n in ((56, 70), (48, 80)))
    found = difference(one, other)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert difference(one, Estimate(None)).undefined is not None


def test_tables_as_files(lead: SignedIn, database: Database) -> None:
    with database.session() as session:
        share_id, (none, tutor) = shared(session, 60, 40)
        for i in range(40):
            reply(session, share_id, (none, tutor)[i % 2], f"u{i}", completion_tokens=10 + i)
    answer = lead.client.get("/system-prompts/tables/effects.csv")
    first, second = csv.DictReader(io.StringIO(answer.text))
    assert (first["version"], first["replies"], second["version"], second["units"]) == ("none", "20", "tutor@1", "20")
    told = lead.client.get("/system-prompts/tables/differences.json?period=7").json["rows"]
    assert [(row["version"], row["beside"], row["tokens"]["value"]) for row in told] == [("tutor@1", "none", 1.0)]
    first, _ = csv.DictReader(io.StringIO(lead.client.get("/system-prompts/tables/cost.csv").text))
    spread = math.sqrt(sum((10 + i - 29) ** 2 for i in range(0, 40, 2)) / 19 / 20)
    assert float(first["tokens_high"]) - float(first["tokens"]) == pytest.approx(Z95 * spread)
    assert "tutor@1" in lead.client.get("/system-prompts").text
    assert lead.client.get("/system-prompts/tables/nothing.csv").status_code == 404
    assert lead.client.get("/system-prompts?period=1000").status_code == 400


# What the guard does about a rule -------------------------------------------------------------------------------------


def test_a_lead_sets_what_the_guard_does_about_a_rule(lead: SignedIn, database: Database) -> None:
    slug = starter_rules()[0]["slug"]
    path = f"/rules/{slug}/guard"
    with database.session() as session:
        ensure_rules(session)
        figure = {"rate": 0.8, "low": 0.6, "high": 0.9, "n": 40}
        row = {
            "rule": slug,
            "threshold": 0.4,
            "auc": {"undefined": "too few"},
            "recall": figure,
            "false_hits": figure,
        }
        factories.make_reward_model(session, kind="guard", evaluation={"per_rule": [row]})
    assert "80.0" in lead.client.get(path).text
    form = {"base": "0", "action": "record", "threshold": "0,7", "note": "too strict"}
    page = lead.client.post(path, data=form, follow_redirects=True).text
    assert "0.7" in page
    assert "too strict" in page
    assert "only records what breaks this, from P(broken) 0.7" in lead.client.get(f"/rules/{slug}").text
    assert lead.client.post(path, data=form).status_code == 409
    for wrong in (
        {"threshold": "1.5"},
        {"threshold": "0"},
        {"threshold": "nan"},
        {"threshold": "x"},
        {"action": "explode"},
        {"note": ""},
    ):
        assert lead.client.post(path, data={**form, "base": "1", **wrong}).status_code == 400, wrong
