"""The page of a reward model: its figures and plots' tables, what is undefined and why, its files, and who may read."""

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select

from access.models import Person
from core.db import Database
from core.intervals import rate
from core.settings import Settings
from feedback.models import Snapshot
from reward.evaluation import auc
from reward.guard.figures import agreement
from reward.models import RewardModel
from tests.browser import ARTIFACTS
from tests.conftest import SignedIn
from tests.console.rows import make_candidate, pair_evaluation, rule_evaluation
from tests.factories import PASSWORD

SignIn = Callable[[Person], SignedIn]


def add(database: Database, kind: str, evaluation: dict[str, Any], **more: Any) -> int:
    with database.session() as session:
        snapshot = Snapshot(content_sha256=f"{kind:>064}", path="x", manifest={})
        session.add(snapshot)
        session.flush()
        values = {"kind": kind, "snapshot_id": snapshot.id, "path": "x", "sha256": "c" * 64, "clears_bar": False} | more
        model = RewardModel(evaluation=evaluation, **values)
        session.add(model)
        session.flush()
        return model.id


def test_figures_of_a_preference_model(people: dict[str, Person], sign_in: SignIn, database: Database) -> None:
    evaluation = pair_evaluation()
    client = sign_in(people["reviewer"]).client
    page = client.get(f"/rewards/{add(database, 'preference', evaluation)}").get_data(as_text=True)
    assert f"{100 * evaluation['accuracy']:.1f}" in page
    assert f"{100 * evaluation['calibration']['ece_scaled']:.1f}" in page
    assert "does not clear its bar" in page
    for name in ("calibration", "rewards", "by-length", "by-category", "members", "learning-curve"):
        assert f'id="{name}"' in page, name
    assert page.count("data-plot") == 4
    assert "undefined, because fewer than 8 pairs" in page
    assert "-50 … -11" in page
    assert "self_harm" in page
    assert "no category" in page


def test_figures_of_a_rule_model(people: dict[str, Person], sign_in: SignIn, database: Database) -> None:
    client = sign_in(people["reviewer"]).client
    page = client.get(f"/rewards/{add(database, 'rules', rule_evaluation())}").get_data(as_text=True)
    assert "no_threats" in page
    assert "undefined, because all 1 verdicts are on one side" in page
    assert "undefined, because there are no verdicts" in page
    assert page.count("data-plot") == 1


def test_figures_of_a_guards_model(people: dict[str, Person], sign_in: SignIn, database: Database) -> None:
    said, was = [0.95, 0.9, 0.2, 0.1], [0.9, 0.9, 0.1, 0.1]
    found = agreement(said, was, [True, False, False, False])
    part = {name: found[name] for name in ("n", "auc", "kappa", "recall", "false_hits")}
    evaluation = {
        "whole": found, "on_the_way": part, "n_train": 280,
        "by_fraction": [{"frac": 0.25, **part, "as_whole": rate(3, 4)}],
        "per_rule": [{"rule": "no_threats", "threshold": 0.875, **part}, {"rule": "new", "threshold": 0.9, "auc": auc([], [])}],
    }  # fmt: skip
    client = sign_in(people["reviewer"]).client
    page = client.get(f"/rewards/{add(database, 'guard', evaluation)}").get_data(as_text=True)
    for name in ("calibration", "by-fraction", "per-rule"):
        assert f'id="{name}"' in page, name
    assert "0.88" in page
    assert "Agrees with the rule reward model" in page
    assert "undefined, because there are no verdicts" in page
    assert "280" in page


@pytest.mark.parametrize(
    ("kind", "evaluation", "reason"),
    [
        (
            "preference",
            pair_evaluation(small=True),
            "pairs are in the smaller half of the held-out clusters; 10 are needed",
        ),
        ("rules", rule_evaluation(small=True), "only 1 rule has verdicts; at least two are needed to hold one out"),
        ("preference", {"accuracy": 0.8, "n": 5, "low": 0.4, "high": 0.9, "length_only": 0.5}, "the record has none"),
        ("preference", {}, "the record has none"),
        ("rules", {}, "the record has none"),
        ("guard", {}, "the record has none"),
    ],
)
def test_what_is_undefined_says_why(
    people: dict[str, Person], sign_in: SignIn, database: Database, kind: str, evaluation: dict[str, Any], reason: str
) -> None:
    answer = sign_in(people["reviewer"]).client.get(f"/rewards/{add(database, kind, evaluation)}")
    assert answer.status_code == 200
    assert reason in answer.get_data(as_text=True)


def test_the_reasons_are_told_in_german(people: dict[str, Person], sign_in: SignIn, database: Database) -> None:
    client = sign_in(people["reviewer"]).client
    model = add(database, "rules", rule_evaluation(small=True))
    page = client.get(f"/rewards/{model}", headers={"Accept-Language": "de"}).get_data(as_text=True)
    assert "nur zu 1 Regel gibt es Urteile" in page
    assert "only 1 rule" not in page


def test_files_hold_what_the_tables_show(people: dict[str, Person], sign_in: SignIn, database: Database) -> None:
    evaluation = pair_evaluation()
    model = add(database, "preference", evaluation)
    client = sign_in(people["reviewer"]).client
    answer = client.get(f"/rewards/{model}/rewards.csv")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="dunnock-reward-{model}-rewards.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))
    assert [int(row["chosen"]) for row in rows] == evaluation["rewards"]["counts"]["chosen"]
    found = client.get(f"/rewards/{model}/calibration.json").get_json()
    assert [row["said"]["n"] for row in found["rows"]] == [b["n"] for b in evaluation["calibration"]["bins_scaled"]]
    page = client.get(f"/rewards/{model}").get_data(as_text=True)
    assert f"/rewards/{model}/by-length.csv" in page
    assert client.get(f"/rewards/{model}/per-rule.csv").status_code == 404
    assert client.get("/rewards/999").status_code == 404


@pytest.mark.parametrize(("role", "status"), [("annotator", 403), ("reviewer", 200), ("lead", 200), ("admin", 200)])
def test_who_may_read(people: dict[str, Person], sign_in: SignIn, database: Database, role: str, status: int) -> None:
    model = add(database, "preference", pair_evaluation())
    client = sign_in(people[role]).client
    for path in (f"/rewards/{model}", f"/rewards/{model}/rewards.csv"):
        assert client.get(path).status_code == status, path


def test_cycle_and_version_lead_to_it(
    people: dict[str, Person], sign_in: SignIn, database: Database, settings: Settings
) -> None:
    with database.session() as session:
        version = make_candidate(session, settings)
        cycle_id, name = version.cycle_id, version.name
    with database.read() as session:
        ids = session.scalars(select(RewardModel.id).where(RewardModel.cycle_id == cycle_id)).all()
    client = sign_in(people["reviewer"]).client
    cycle = client.get(f"/cycles/{cycle_id}").get_data(as_text=True)
    assert all(f'href="/rewards/{n}"' in cycle for n in ids)
    assert "12.1" in cycle
    assert "4 members, each of a draw of the annotators." in cycle
    assert "Rule reward model from 160 verdicts" in cycle
    assert f'href="/rewards/{ids[0]}"' in client.get(f"/policies/{name}").get_data(as_text=True)


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_plots_are_drawn_and_fit(
    open_page: Callable[..., Page], people: dict[str, Person], database: Database, width: int, scheme: str
) -> None:
    models = {
        kind: add(database, kind, found)
        for kind, found in (("preference", pair_evaluation()), ("rules", rule_evaluation()))
    }
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(f"/rewards/{models['preference']}")
    page.get_by_label("Login").fill("lead")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    for kind, n in (("preference", 4), ("rules", 1)):
        page.goto(f"/rewards/{models[kind]}")
        plots = page.locator("figure[data-plot]")
        expect(plots).to_have_count(n)
        for i in range(n):
            expect(plots.nth(i)).to_have_attribute("data-drawn", "yes")
            assert plots.nth(i).locator(".plot-legend li").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"reward-{kind}-{width}-{scheme}.png", full_page=True)
