"""The quality pages over HTTP: who may see them, what an empty database says, their files, pausing, hostile texts."""

import csv
import io
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

import console.quality_views as views
from access.models import AuditLog, Person
from console import quality
from console.quality import TABLES
from console.quality_reader import Filters
from core.db import Database
from core.errors import Forbidden
from feedback.assignment.leases import next_assignment
from feedback.models import Annotator
from feedback.sampled import within_budget
from tests.conftest import SignedIn
from tests.console.quality_rows import Crowd, make_crowd
from tests.factories import make_task

pytestmark = pytest.mark.timeout(300)
SignIn = Callable[[Person], SignedIn]
XSS = "<script>window.hit = 1</script><img src=x onerror=window.hit=2>\u202e"

PAGES = ["/quality", "/quality/annotators", "/quality/gold", "/quality/flags", "/quality/consensus"]
FILES = [f"/quality/tables/{name}.{form}" for name in TABLES for form in ("csv", "json")]
STANDING = ["/quality/annotators/1/pause", "/quality/annotators/1/resume"]


@pytest.fixture
def crowd(database: Database) -> Crowd:
    with database.session() as session:
        within_budget(session, "rate", 0)
        return make_crowd(session)


def audit(database: Database) -> list[tuple[str, str, str]]:
    with database.read() as session:
        rows = session.scalars(select(AuditLog).where(AuditLog.actor == "lead", AuditLog.action != "session.sign_in"))
        return [(row.actor, row.action, row.subject) for row in rows]


# Who ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "reads", "changes"),
    [("annotator", False, False), ("reviewer", True, False), ("lead", True, True), ("admin", True, True)],
)
def test_roles(
    people: dict[str, Person], sign_in: SignIn, database: Database, role: str, reads: bool, changes: bool
) -> None:
    client = sign_in(people[role]).client
    for path in PAGES + FILES:
        assert client.get(path).status_code == (200 if reads else 403), path
    for path in STANDING:
        assert client.get(path).status_code == (200 if changes else 403), path
        assert client.post(path).status_code == (303 if changes else 403), path
    with database.read() as session:
        assert bool(session.scalars(select(Annotator)).all()) == changes
    assert ('href="/quality"' in client.get("/chat").text) == reads


def test_visitors_are_asked_to_sign_in(client: FlaskClient) -> None:
    for path in PAGES + FILES + STANDING:
        assert client.get(path).headers["Location"].startswith("/sign-in"), path
    for path in STANDING:
        assert client.post(path).headers["Location"].startswith("/sign-in"), path


def test_reviewers_see_no_buttons(people: dict[str, Person], sign_in: SignIn, crowd: Crowd) -> None:
    page = sign_in(people["reviewer"]).client.get("/quality/annotators").text
    assert "cleo" in page
    assert "/pause" not in page
    assert "/resume" not in page


def test_pausing_needs_the_csrf_token(app: Flask, lead: SignedIn, crowd: Crowd, database: Database) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.post(f"/quality/annotators/{crowd.ana.id}/pause").status_code == 400
    assert audit(database) == []


# Nothing there --------------------------------------------------------------------------------------------------------


def test_every_figure_of_an_empty_database_says_why(lead: SignedIn) -> None:
    page = lead.client.get("/quality").text
    for reason in (
        "undefined, because only 0 tasks were judged by two people or more; 10 are needed",
        "undefined, because only 0 pairs have two people who each preferred a side; 30 are needed",
        "Undefined, because nobody judged a task in this time.",
        "Undefined, because no task was judged by two people in this time.",
        "Undefined, because no completion that a policy version wrote was judged on a rule.",
        "No task is open.",
        "There are no tasks yet.",
    ):
        assert reason in page, reason
    assert "data-plot" not in page
    assert "Undefined, because nobody judged" in lead.client.get("/quality/annotators").text
    assert "Nothing was flagged" in lead.client.get("/quality/flags").text
    assert "No task has a known answer yet" in lead.client.get("/quality/gold").text
    assert "only 0 tasks have two such judgments" in lead.client.get("/quality/consensus").text
    assert (
        lead.client.get("/quality/tables/agreement.json")
        .json["rows"][0]["alpha"]["undefined"]
        .startswith("undefined, because only 0 tasks")
    )


def test_what_is_simulated_is_told_of_and_left_out(lead: SignedIn, crowd: Crowd) -> None:
    page = lead.client.get("/quality").text
    assert "9 simulated judgments in this time are left out" in page
    assert ">script<" not in lead.client.get("/quality/annotators").text
    assert ">script<" in lead.client.get("/quality/annotators?simulated=1").text
    assert "not what people think" in lead.client.get("/quality?simulated=1").text


# Figures --------------------------------------------------------------------------------------------------------------


def test_the_pages_show_what_the_files_hold(lead: SignedIn, crowd: Crowd) -> None:
    page = lead.client.get("/quality").text
    rows = lead.client.get("/quality/tables/agreement.json").json["rows"]
    alpha = next(row["alpha"] for row in rows if row["kind"] == "pairs")
    assert f"<b>{alpha['value']:.2f}</b>" in page
    assert f"{alpha['low']:.2f} … {alpha['high']:.2f}, n\u00a0{alpha['n']}" in page
    versions = lead.client.get("/quality/tables/violations-by-version.json").json["rows"]
    assert [row["version"] for row in versions] == ["base", "v1"]
    assert versions[0]["checked"]["value"] > versions[1]["checked"]["value"]
    assert versions[0]["probed"]["undefined"]
    assert f'data-value="{versions[0]["checked"]["value"]}"' in page
    one = lead.client.get("/quality/tables/violations-by-version.json?rule=no-threats").json
    assert one["filters"] == {"rule": "no-threats"}
    assert one["rows"][0]["checked"]["n"] == 24
    assert versions[0]["checked"]["n"] == 48


def test_versions_side_by_side(lead: SignedIn, crowd: Crowd) -> None:
    (row,) = lead.client.get("/quality/tables/compared.json").json["rows"]
    assert (row["version"], row["beside"]) == ("v1", "base")
    assert (row["preferred"]["value"], row["preferred"]["n"]) == (5 / 7, 7)
    assert row["preferred"]["low"] < 5 / 7 < row["preferred"]["high"]
    assert (row["ties"], row["both_bad"], row["waiting"]) == (1, 0, 1)
    assert 'id="compared"' in lead.client.get("/quality").text


def test_csv_is_what_json_is(lead: SignedIn, crowd: Crowd) -> None:
    for name in TABLES:
        document = lead.client.get(f"/quality/tables/{name}.json").json
        answer = lead.client.get(f"/quality/tables/{name}.csv")
        assert answer.mimetype == "text/csv"
        assert f"dunnock-{name}.csv" in answer.headers["Content-Disposition"]
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert len(rows) == len(document["rows"]) > 0, name
        for row, cells in zip(rows, document["rows"], strict=True):
            cells.pop("age_s", None)  # it has grown from one answer to the next
            for column, cell in cells.items():
                wanted = cell["value"] if isinstance(cell, dict) else cell
                assert row[column].lstrip("'") == ("" if wanted is None else str(wanted)), (name, column)
                if isinstance(cell, dict):
                    assert row[f"{column}_n"] == str(cell["n"])
                    assert row[f"{column}_undefined"] == (cell["undefined"] or "")


def test_the_annotators_table_finds_the_careless_one(lead: SignedIn, crowd: Crowd) -> None:
    rows = {row["login"]: row for row in lead.client.get("/quality/tables/annotators.json").json["rows"]}
    cleo, ana = rows["cleo"], rows["ana"]
    assert cleo["standing"] == "warned"
    assert cleo["left"]["low"] > 0.9
    assert ana["fast"]["value"] < 0.1
    assert cleo["fast"]["value"] > 0.8
    assert cleo["gold"]["value"] < 0.5 < ana["gold"]["value"]
    assert cleo["on_pairs"]["value"] < 0.3 < ana["on_pairs"]["value"]
    assert ana["swap"]["n"] == 20
    assert rows["ben"]["flags"] == 3
    for sort in ("gold", "left", "fast"):
        first = lead.client.get(f"/quality/tables/annotators.json?sort={sort}").json["rows"][0]
        assert first["login"] == "cleo", sort


@pytest.mark.parametrize(
    "query", ["days=3", "days=x", "simulated=2", "sort=login;drop", "before=-1", "before=9999999999"]
)
def test_an_address_that_no_link_has_is_refused(lead: SignedIn, query: str) -> None:
    for path in ("/quality", "/quality/flags", "/quality/tables/flags.csv"):
        assert lead.client.get(f"{path}?{query}").status_code == 400, path


@pytest.mark.parametrize("path", ["tables/nothing.csv", "tables/flags.xml", "library/app.py", "library/../figure.py"])
def test_what_is_not_there(lead: SignedIn, path: str) -> None:
    assert lead.client.get(f"/quality/{path}").status_code == 404


def test_lists_go_on(lead: SignedIn, crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "Filters", lambda *values: Filters(*values, limit=2))
    for path in ("/quality/flags", "/quality/gold"):
        first = lead.client.get(path).text
        older = first.split("before=")[1].split('"')[0].split("&")[0]
        second = lead.client.get(f"{path}?before={older}").text
        assert "Newest" in second
        assert second.count("<tr>") >= 2
        assert first.split("<tbody>")[1] != second.split("<tbody>")[1]


def test_a_file_that_holds_not_all_says_so_and_where_the_rest_is(
    lead: SignedIn, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lead.client.get("/quality/tables/flags.json")
    assert (whole.json["truncated"], whole.headers["X-Truncated"], "Link" in whole.headers) == (False, "false", False)
    monkeypatch.setattr(quality, "EXPORTED", 2)
    for name in ("flags", "gold"):
        path, seen = f"/quality/tables/{name}.csv", 0
        while True:
            answer = lead.client.get(path)
            seen += len(list(csv.DictReader(io.StringIO(answer.text))))
            if answer.headers["X-Truncated"] == "false":
                break
            path = answer.headers["Link"].split(">")[0].removeprefix("<")
        assert seen > 2, name
    assert lead.client.get("/quality/tables/flags.json").json["truncated"] is True
    assert lead.client.get("/quality/tables/consensus.csv").headers["X-Truncated"] == "true"
    monkeypatch.setattr(views, "Filters", lambda *values: Filters(*values, limit=2))
    for path in ("/quality/flags", "/quality/gold", "/quality/consensus"):
        assert "Files hold up to" in lead.client.get(path).text, path


def test_what_needs_you_is_in_a_file(lead: SignedIn, crowd: Crowd) -> None:
    rows = {row["what"]: row["n"] for row in lead.client.get("/quality/tables/needs.json").json["rows"]}
    page = lead.client.get("/quality").text
    assert rows["warned"] == 1
    assert rows["flagged"] > 0
    assert rows["people who judged"] >= 3
    for what in ("paused", "warned", "flagged", "to be settled"):
        assert f"<b>{rows[what]}</b>" in page.split('class="needs"')[1].split("</ul>")[0], what
    assert "/quality/tables/needs.csv" in page


def test_the_library_is_served_from_the_installed_wheel(client: FlaskClient) -> None:
    with (
        client.get("/quality/library/uplot.iife.min.js") as script,
        client.get("/quality/library/uplot.min.css") as style,
    ):
        assert "https://github.com/leeoniya/uPlot" in script.text[:80]
        assert (script.mimetype, style.mimetype) == ("text/javascript", "text/css")
        assert "max-age=86400" in script.headers["Cache-Control"]
        assert len(script.data) + len(style.data) < 60_000


# Pausing --------------------------------------------------------------------------------------------------------------


def test_pause_and_let_go_on(lead: SignedIn, crowd: Crowd, database: Database) -> None:
    ana = crowd.ana.id
    with database.session() as session:
        make_task(session)
    assert "Pause this annotator?" in lead.client.get(f"/quality/annotators/{ana}/pause").text
    assert audit(database) == []  # asking changes nothing
    done = lead.client.post(f"/quality/annotators/{ana}/pause", data={"reason": "on holiday"}, follow_redirects=True)
    assert "ana gets no more tasks" in done.text
    assert "on holiday" in done.text
    with database.session() as session, pytest.raises(Forbidden, match="on holiday"):
        next_assignment(session, ana, 60)
    again = lead.client.post(f"/quality/annotators/{ana}/pause", follow_redirects=True)
    assert "paused already; nothing was changed" in again.text
    assert "As it stands" in lead.client.get(f"/quality/annotators/{ana}/resume").text
    assert "ana may go on" in lead.client.post(f"/quality/annotators/{ana}/resume", follow_redirects=True).text
    assert "may work already" in lead.client.post(f"/quality/annotators/{ana}/resume", follow_redirects=True).text
    with database.session() as session:
        assert next_assignment(session, ana, 60) is not None
    subject = f"person:{ana}"
    assert audit(database) == [("lead", "annotator.paused", subject), ("lead", "annotator.good", subject)]


def test_nobody_is_paused_who_is_not_there(lead: SignedIn) -> None:
    for path in ("/quality/annotators/99/pause", "/quality/annotators/99/resume"):
        assert lead.client.get(path).status_code == lead.client.post(path).status_code == 404


# Hostile texts --------------------------------------------------------------------------------------------------------


def test_what_people_typed_is_shown_as_text(lead: SignedIn, database: Database) -> None:
    with database.session() as session:
        crowd = make_crowd(session, hostile=XSS)
    pages = [*PAGES, f"/quality/annotators/{crowd.cleo.id}/resume", "/quality?rule=" + XSS]
    for path in pages:
        page = lead.client.get(path).text
        assert "&lt;script&gt;window.hit" in page, path
        assert "<script>window" not in page
        assert "<img" not in page
    answer = lead.client.post(f"/quality/annotators/{crowd.ana.id}/pause", data={"reason": XSS}, follow_redirects=True)
    assert "<script>window" not in answer.text
