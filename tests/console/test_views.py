"""The operators' pages over HTTP, on real rows."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.models import AuditLog, Person
from console import views
from core.db import Database, utcnow
from core.errors import ArtifactError
from core.settings import Settings
from finetune.cycle import LEASE
from finetune.models import Cycle, Lease, StageRun, StageStep
from policy.models import PolicyVersion, Promotion
from policy.versions import active_version
from tests.conftest import SignedIn
from tests.console.rows import (
    make_candidate,
    make_cycle,
    make_gate_report,
    make_promoted,
    make_stages,
)
from tests.factories import make_policy_version

JSON = {"Accept": "application/json"}
XSS = "<script>window.hit = 1</script><img src=x onerror=window.hit=2>"
SignIn = Callable[[Person], SignedIn]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the versions that the engine was asked to load; it loads them all."""
    names: list[str] = []
    monkeypatch.setattr(views, "make_ready", lambda client, version, settings: names.append(version.name))
    return names


def active_name(database: Database) -> str:
    with database.read() as session:
        return active_version(session).name


def audit(database: Database) -> list[tuple[str, str, str]]:
    with database.read() as session:
        rows = session.scalars(select(AuditLog).where(AuditLog.action != "session.sign_in").order_by(AuditLog.id))
        return [(row.actor, row.action, row.subject) for row in rows]


# Roles and empty pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/cycles", "/policies", "/reports/demo"])
def test_empty_pages_say_what_comes(lead: SignedIn, path: str) -> None:
    answer = lead.client.get(path)
    assert answer.status_code == 200
    assert "make demo" in answer.text


READING = ["/cycles", "/cycles/1", "/cycles/1.json", "/policies", "/policies/base", "/reports/demo"]
CHANGING = [
    ("get", "/rollback"),
    ("get", "/policies/v1/promote"),
    ("post", "/cycles"),
    ("post", "/cycles/1/cancel"),
    ("post", "/rollback"),
    ("post", "/policies/v1/promote"),
]


@pytest.mark.parametrize(
    ("role", "reads", "changes"),
    [("annotator", False, False), ("reviewer", True, False), ("lead", True, True), ("admin", True, True)],
)
def test_roles(
    people: dict[str, Person], sign_in: SignIn, database: Database, settings: Settings, loaded: list[str],
    role: str, reads: bool, changes: bool,
) -> None:  # fmt: skip
    with database.session() as session:
        make_promoted(session, settings)
    client = sign_in(people[role]).client
    for path in READING:
        assert (client.get(path).status_code == 403) != reads, path
    for method, path in CHANGING:
        assert (getattr(client, method)(path).status_code == 403) != changes, path
    if not changes:
        assert (active_name(database), audit(database)) == ("v1", [])


def test_visitors_are_asked_to_sign_in(client: FlaskClient) -> None:
    for method, path in [*CHANGING, *(("get", path) for path in READING)]:
        answer = getattr(client, method)(path)
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/sign-in"), path


def test_reviewers_see_no_buttons_of_change(
    people: dict[str, Person], sign_in: SignIn, database: Database, settings: Settings
) -> None:
    with database.session() as session:
        make_promoted(session, settings)
    client = sign_in(people["reviewer"]).client
    for path in ("/cycles", "/policies", "/policies/v1"):
        page = client.get(path).text
        assert "Roll back" not in page
        assert "Run a cycle now" not in page


@pytest.mark.parametrize("path", ["/cycles", "/cycles/1/cancel", "/rollback", "/policies/v1/promote"])
def test_changes_need_the_csrf_token(app: Flask, lead: SignedIn, database: Database, path: str) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.post(path).status_code == 400
    assert app.test_client().post(path).status_code == 400
    with database.read() as session:
        assert session.scalars(select(Cycle)).all() == []


# Cycles ---------------------------------------------------------------------------------------------------------------


def test_start_and_cancel_a_cycle(lead: SignedIn, database: Database) -> None:
    first = lead.client.post("/cycles")
    assert (first.status_code, first.headers["Location"]) == (303, "/cycles/1")
    again = lead.client.post("/cycles", follow_redirects=True)
    assert "one runs at a time" in again.text
    assert "Waiting for a worker" in again.text
    assert "Cycle 1 is waiting" in lead.client.get("/cycles").text
    assert "cancelled by lead" in lead.client.post("/cycles/1/cancel", follow_redirects=True).text
    assert "already ended" in lead.client.post("/cycles/1/cancel", follow_redirects=True).text
    with database.read() as session:
        assert [(c.state, c.reason) for c in session.scalars(select(Cycle))] == [("cancelled", "manual")]
    assert audit(database) == [("lead", "cycle.request", "cycle:1"), ("lead", "cycle.cancel", "cycle:1")]


def test_cycle_page_tells_the_results_in_words(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_stages(session, make_cycle(session, settings, outcome="v1 is active"))
    page = lead.client.get("/cycles/1").text
    for words in (
        "310 pairs to train on, 84 held out.",
        "394 of them rest on simulated judgments",
        "Left out: 9 ties, 3 doubles.",
        "(95 % interval 71.3–87.9\u202f%, n 84); going by length alone: 59.5\u202f%.",
        "Trained on 306 pairs, 4 dropped as too long; 78 steps.",
        "v1 passed every check.",
        "v1 is active",
        "label smoothing",
    ):
        assert words in page
    assert page.count("<svg") == 2
    assert page.count("optimiser step") == 2
    assert "data-poll" not in page


def test_cycle_json_is_what_the_page_polls(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        cycle = make_cycle(session, settings, "running")
        make_stages(session, cycle, ("collect", "rate", "snapshot"))
        session.add(StageRun(cycle_id=cycle.id, name="reward", progress=0.25, note="step 10/40", attempts=2))
    assert 'data-poll="/cycles/1.json"' in lead.client.get("/cycles/1").text
    first = lead.client.get("/cycles/1.json").get_json()
    stages = {s["name"]: s for s in first["stages"]}
    assert (first["state"], first["unfinished"], len(stages)) == ("running", True, 7)
    assert (stages["reward"]["state"], stages["reward"]["progress"], stages["reward"]["note"]) == (
        "running",
        0.25,
        "step 10/40",
    )
    assert "attempt 2" in stages["reward"]["figures"]
    assert [stages[name]["state"] for name in ("snapshot", "gate")] == ["done", "waiting"]
    with database.session() as session:
        row = session.scalars(select(StageRun).where(StageRun.name == "reward")).one()
        row.progress = 0.5
    second = lead.client.get("/cycles/1.json").get_json()
    assert second["fingerprint"] == first["fingerprint"]  # a step further is no reason to render anew
    with database.session() as session:
        session.scalars(select(StageRun).where(StageRun.name == "reward")).one().state = "done"
        session.add(Lease(name=LEASE, holder="host:1:x", expires_at=utcnow() + dt.timedelta(minutes=1)))
    third = lead.client.get("/cycles/1.json").get_json()
    assert third["fingerprint"] != first["fingerprint"]
    assert first["waiting_for"].startswith("No worker is on it")
    assert third["waiting_for"] == ""  # a worker holds the lease


def make_steps(session: Session, run: StageRun, part: str, n: int) -> None:
    session.add_all(
        StageStep(stage_run_id=run.id, part=part, step=step, figures={"loss": 1 / step, "learning_rate": 1.25e-5})
        for step in range(1, n + 1)
    )


def test_steps_of_a_stage_are_curves_figures_and_files(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        cycle = make_cycle(session, settings, "running")
        run = StageRun(cycle_id=cycle.id, name="reward", progress=0.5)
        session.add(run)
        session.flush()
        make_steps(session, run, "preference", 40)
        make_steps(session, run, "rules", 3)
    page = lead.client.get("/cycles/1").text
    assert page.count("<svg") == 2
    assert "The figures of 40 steps" in page
    assert "The newest 25; the files hold all." in page
    part = lead.client.get("/cycles/1/steps/reward").text
    assert (part.count("<svg"), "<html" in part) == (2, False)
    state = lead.client.get("/cycles/1.json").get_json()
    assert {s["name"]: s["told"] for s in state["stages"]}["reward"] == 43

    lines = lead.client.get("/cycles/1/steps/reward-preference.csv").text.splitlines()
    assert (lines[0], len(lines)) == ("step,loss,learning_rate", 41)
    assert lines[1] == "40,0.025,1.25e-05"  # the newest first
    rows = lead.client.get("/cycles/1/steps/reward-rules.json").get_json()["rows"]
    assert [row["step"] for row in rows] == [3, 2, 1]
    for path in (
        "/cycles/1/steps/reward.csv",
        "/cycles/1/steps/gate",
        "/cycles/1/steps/x.json",
        "/cycles/9/steps/reward",
    ):
        assert lead.client.get(path, headers=JSON).status_code == 404


def test_steps_of_an_older_round_come_from_its_result(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_stages(session, make_cycle(session, settings))
    rows = lead.client.get("/cycles/1/steps/update.json").get_json()["rows"]
    assert (len(rows), rows[0]["step"]) == (78, 78)


def test_time_left_and_energy_are_told(lead: SignedIn, database: Database, settings: Settings) -> None:
    energy = {"kwh": 0.002, "co2_kg": 0.001, "seconds": 9.0, "watts": 80.0, "country": "DEU", "cpu": "counters (RAPL)"}
    with database.session() as session:
        older = make_cycle(session, settings)
        make_stages(session, older)
        cycle = make_cycle(session, settings, "running")
        make_stages(session, cycle, ("collect", "rate", "snapshot", "reward"))
        for run in session.scalars(select(StageRun).where(StageRun.cycle_id == cycle.id)):
            run.energy = energy
        session.add(
            StageRun(
                cycle_id=cycle.id, name="update", progress=0.5, note="step 4/8", left_s=100.0, told_at=utcnow(), energy=energy,
                trackers=None,
            )
        )  # fmt: skip
    state = lead.client.get("/cycles/2.json").get_json()
    update = next(s for s in state["stages"] if s["name"] == "update")
    assert update["note"].startswith("step 4/8 · about 1\u202fmin ")
    assert "2\u202fWh, 1\u202fg CO2 (estimated)" in update["figures"]
    assert state["left"] == "about 3\u202fmin 16\u202fs left in all"  # the gate took 96 s last time
    total = "Estimated for the whole machine: 10\u202fWh of energy, 5\u202fg of CO2 (electricity of DEU)."
    assert state["energy"].startswith(total)
    page = lead.client.get("/cycles/2").text
    assert page.count("2\u202fWh, 1\u202fg CO2 (estimated)") == 5  # of each stage
    assert f"{total} Processor: counters (RAPL)" in page


def test_unknown_cycle_is_404(lead: SignedIn) -> None:
    assert lead.client.get("/cycles/7").status_code == 404
    assert lead.client.get("/cycles/7.json", headers=JSON).status_code == 404
    assert lead.client.post("/cycles/7/cancel").status_code == 404


def test_cycles_page_by_keyset(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        for number in range(30):
            make_cycle(session, settings, "failed" if number % 10 == 0 else "promoted")
    first = lead.client.get("/cycles").text
    assert "Cycle 30<" in first
    assert "/cycles?before=6" in first
    second = lead.client.get("/cycles?before=6").text
    assert "Cycle 5<" in second
    assert "Cycle 6<" not in second
    assert "Older" not in second
    assert lead.client.get("/cycles?state=failed").text.count('scope="row"') == 3
    assert lead.client.get("/cycles?before=x").status_code == 400
    assert lead.client.get("/cycles?state=odd").status_code == 400


# Policy versions ------------------------------------------------------------------------------------------------------


def test_policy_pages_of_a_filled_database(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_promoted(session, settings)
    listed = lead.client.get("/policies").text
    assert "v1</a> answers now" in listed
    assert "first version" in listed
    page = lead.client.get("/policies/v1").text
    for words in (
        "SmolLM2-135M-Instruct", f'title="{"a" * 64}"', "310 pairs of 394 judgments, 394 simulated", "81.0\u202f% right",
        "reference: base, adapters off", "71.8\u202f%", "at most 50.0\u202f%", "p = 1.000", "Roll back to base", "self harm",
    ):  # fmt: skip
        assert words in page
    assert "never a candidate" in lead.client.get("/policies/base").text
    assert lead.client.get("/policies/v9").status_code == 404


def test_texts_of_models_and_people_are_rendered_as_text(
    lead: SignedIn, database: Database, settings: Settings
) -> None:
    with database.session() as session:
        cycle = make_cycle(session, settings, "failed", outcome=XSS, reason=XSS[:31])
        session.add(StageRun(cycle_id=cycle.id, name="snapshot", state="failed", error=XSS, note=XSS))
        version = make_candidate(session, settings)
        make_gate_report(session, version, active_version(session), example=XSS)
        session.scalars(select(Promotion)).one().reason = XSS
    report = settings.var_dir / "reports" / "demo.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"policy_version": XSS, "examples": [{"before": {"prompt": XSS, "verdict": XSS}}]}))
    for path in ("/cycles", "/cycles/1", "/policies", "/policies/v2", "/reports/demo"):
        page = lead.client.get(path).text
        assert "&lt;script&gt;window.hit" in page, path
        assert "<script>window" not in page
        assert "<img" not in page


def test_harmful_examples_are_blurred_until_asked_for(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_promoted(session, settings)
    page = lead.client.get("/policies/v1").text
    assert page.count('class="veil"') == 1  # one of the two examples is harmful
    assert '<details class="veil" open' not in page


# Compare --------------------------------------------------------------------------------------------------------------


def test_a_lead_asks_for_a_comparison(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_candidate(session, settings, cycle=make_cycle(session, settings, "failed"))
    assert "/policies/v1/compare" in lead.client.get("/policies/v1").text
    assert "/policies/base/compare" not in lead.client.get("/policies/base").text  # it is the active one
    assert "Compare v1 with base?" in lead.client.get("/policies/v1/compare").text
    form = {"current": "base", "prompts": "7"}
    for wrong in ({"prompts": "0"}, {"prompts": "many"}, {"prompts": "501"}):
        assert lead.client.post("/policies/v1/compare", data=form | wrong).status_code == 400
    for path, current in (("v1", "v0"), ("base", "base")):
        assert lead.client.post(f"/policies/{path}/compare", data=form | {"current": current}).status_code == 409
    with database.read() as session:
        assert session.scalar(select(Cycle).where(Cycle.state == "requested")) is None
    answer = lead.client.post("/policies/v1/compare", data=form)
    with database.read() as session:
        cycle = session.scalars(select(Cycle).where(Cycle.state == "requested")).one()
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/cycles/{cycle.id}")
    assert cycle.settings["stages"] == ["compare"]
    assert cycle.settings["compare"] == {"candidate": "v1", "incumbent": "base"}
    assert cycle.settings["collect"]["prompts_per_suite"] == 7
    assert audit(database) == [("lead", "cycle.request", f"cycle:{cycle.id}")]
    again = lead.client.post("/policies/v1/compare", data=form, follow_redirects=True)
    assert "is not finished yet" in again.text
    assert "two versions answer the seed prompts" in again.text
    assert len(audit(database)) == 1


# Promote --------------------------------------------------------------------------------------------------------------


def test_promote_by_hand(lead: SignedIn, database: Database, settings: Settings, loaded: list[str]) -> None:
    with database.session() as session:
        version = make_candidate(session, settings)
        make_gate_report(session, version, active_version(session))
    assert "/policies/v1/promote" in lead.client.get("/policies/v1").text
    assert "instead of <b>base</b>" in lead.client.get("/policies/v1/promote").text
    assert active_name(database) == "base"
    answer = lead.client.post("/policies/v1/promote", data={"reason": "looks good"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/policies/v1")
    assert (active_name(database), loaded) == ("v1", ["v1"])
    with database.read() as session:
        row = session.scalars(select(Promotion).order_by(Promotion.id.desc())).first()
        assert row is not None
        assert (row.kind, row.actor, row.reason, row.once) == ("promote", "lead", "looks good", "manual:v1")
    assert audit(database) == [("lead", "policy.promote", "policy_version:v1")]
    assert lead.client.post("/policies/v1/promote").status_code == 409  # a second click changes nothing


@pytest.mark.parametrize("case", ["no report", "failed", "refused", "running", "other incumbent"])
def test_promote_is_refused(
    lead: SignedIn, database: Database, settings: Settings, loaded: list[str], case: str
) -> None:
    with database.session() as session:
        cycle = make_cycle(session, settings, "running" if case == "running" else "failed")
        version = make_candidate(session, settings, cycle=cycle)
        incumbent = active_version(session)
        if case == "other incumbent":
            incumbent = make_policy_version(session, "v77", "retired")
        if case != "no report":
            make_gate_report(session, version, incumbent, passed=case != "failed")
        if case == "refused":
            version.state = "refused"
    page = lead.client.get("/policies/v1")
    assert page.status_code == 200
    assert "/policies/v1/promote" not in page.text
    for answer in (lead.client.get("/policies/v1/promote"), lead.client.post("/policies/v1/promote")):
        assert answer.status_code == 409
        assert "Nothing was changed." in answer.text
    assert (active_name(database), loaded, audit(database)) == ("base", [], [])


def test_promote_needs_an_engine_that_can_load_it(
    lead: SignedIn, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any) -> None:
        raise ArtifactError("policy version v1 cannot be loaded")

    monkeypatch.setattr(views, "make_ready", damaged)
    with database.session() as session:
        make_gate_report(session, make_candidate(session, settings), active_version(session))
    assert lead.client.post("/policies/v1/promote").status_code == 503
    assert (active_name(database), audit(database)) == ("base", [])


# Roll back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/cycles/77", "/cycles/99999999999999999999999", "/cycles/99999999999999999999999.json"]
)
def test_a_cycle_that_is_not_there_is_not_found(lead: SignedIn, path: str) -> None:
    assert lead.client.get(path).status_code == 404


def test_rollback_by_form(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_promoted(session, settings)
        make_promoted(session, settings)
    page = lead.client.get("/rollback").text
    assert 'name="to" value="v1"' in page
    assert 'name="current" value="v2"' in page
    form = {"to": "v1", "current": "v2", "reason": "too many refusals"}
    assert lead.client.post("/rollback", data=form).headers["Location"] == "/policies/v1"
    assert active_name(database) == "v1"
    assert audit(database) == [("lead", "policy.rollback", "policy_version:v1")]
    with database.read() as session:
        entry = session.scalars(select(AuditLog).where(AuditLog.action == "policy.rollback")).one()
        assert (entry.before, entry.after) == ({"active": "v2"}, {"active": "v1"})
        assert session.scalars(select(Promotion).order_by(Promotion.id.desc())).first().reason == "too many refusals"
    assert (
        lead.client.post("/rollback", data={"to": "v2"}).status_code == 409
    )  # no page was read that said what is active
    again = lead.client.post("/rollback", data=form)  # the same form once more must not go one further back
    assert again.status_code == 409
    assert "now v1 is" in again.text
    assert active_name(database) == "v1"
    assert 'name="to" value="base"' in lead.client.get("/rollback").text


def test_rollback_to_a_named_version_and_without_a_name(lead: SignedIn, database: Database, settings: Settings) -> None:
    with database.session() as session:
        make_promoted(session, settings)
        make_promoted(session, settings)
    assert "Roll back to this version" in lead.client.get("/policies/base").text
    assert lead.client.get("/rollback?to=base").status_code == 200
    assert lead.client.get("/rollback?to=v2").status_code == 409  # active already
    assert lead.client.get("/rollback?to=v9").status_code == 404
    assert lead.client.post("/rollback", data={"current": "v2"}).status_code == 303
    assert active_name(database) == "v1"
    assert (
        lead.client.post("/rollback", data={"to": "v2", "current": "v1"}).status_code == 303
    )  # forward again: it was active once
    assert active_name(database) == "v2"


@pytest.mark.parametrize("method", ["get", "post"])
def test_rollback_with_nothing_before(lead: SignedIn, database: Database, method: str) -> None:
    with database.session() as session:
        base = make_policy_version(session)
        session.add(Promotion(kind="first", policy_version_id=base.id, actor="system", once="first"))
    assert "Roll back" not in lead.client.get("/policies").text
    answer = getattr(lead.client, method)("/rollback")
    assert answer.status_code == 409
    assert "base" in answer.text
    assert "<h1>" in answer.text
    with database.read() as session:
        assert [v.state for v in session.scalars(select(PolicyVersion))] == ["active"]
    assert audit(database) == []


# The demo's report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "{}", "[]", "no json", "null",
        '{"base": null, "promoted": 3, "reward": {"accuracy": NaN}, "stages": [1, {}], "examples": [{}, 5, {"after": {}}]}',
        '{"base": {"harmful_compliance": {"rate": null, "n": 0}}, "gate": {"checks": [{}, 1]}, "seconds": "x"}',
    ],
)  # fmt: skip
def test_an_odd_demo_report_breaks_nothing(lead: SignedIn, settings: Settings, content: str) -> None:
    path = settings.var_dir / "reports" / "demo.json"
    path.parent.mkdir()
    path.write_text(content)
    assert lead.client.get("/reports/demo").status_code == 200
    assert lead.client.get("/cycles").text.count("The demo’s report") == 1
