"""The audit page, and the same entries as CSV and JSON."""

import csv
import io
import json
import re

import pytest

from access.audit import record
from core.db import Database
from tests.conftest import SignedIn

NASTY = '<script>alert("x")</script>'


@pytest.fixture
def log(database: Database) -> None:
    """A short log."""
    with database.session() as session:
        record(session, "ana", "rule.edit", "rule:3", {"text": "Never lie."}, {"text": f"Never {NASTY}."})
        record(session, "=cmd()", "rule.add", "rule:4", after={"text": "Be kind.", "tags": ["ä"]})


def test_who_did_what_with_before_and_after(lead: SignedIn, log: None) -> None:
    page = lead.client.get("/audit").text
    assert "<del>Never lie.</del>" in page
    assert "<ins>Never &lt;script&gt;" in page
    assert NASTY not in page
    assert page.index(">rule:4<") < page.index(">rule:3<")


def test_the_filter_is_in_the_url_and_in_the_downloads(lead: SignedIn, log: None) -> None:
    query = "?actor=ana&action=rule.edit&subject=rule:3"
    page = lead.client.get(f"/audit{query}").text
    assert "rule:4" not in re.sub(r"<option.*?</option>", "", page)
    assert 'href="/audit.csv?actor=ana&amp;action=rule.edit&amp;subject=rule:3&amp;since=&amp;until="' in page
    assert [e["subject"] for e in json.loads(lead.client.get(f"/audit.json{query}").text)] == ["rule:3"]
    for ending in ("%00", "%0d%0a"):  # what PostgreSQL does not take is no part of a filter
        assert [e["subject"] for e in json.loads(lead.client.get(f"/audit.json{query}{ending}").text)] == ["rule:3"]
    assert json.loads(lead.client.get("/audit.json?actor=nobody").text) == []
    assert "Nothing of that kind" in lead.client.get("/audit?actor=nobody").text


def test_json_and_csv_hold_what_the_page_shows(lead: SignedIn, log: None) -> None:
    answer = lead.client.get("/audit.json")
    assert answer.mimetype == "application/json"
    rows = json.loads(answer.text)
    assert [row["action"] for row in rows] == ["rule.add", "rule.edit", "session.sign_in"]
    assert rows[0]["after"] == {"text": "Be kind.", "tags": ["ä"]}
    assert [row["via"] for row in rows] == ["process", "process", "browser"]
    page = lead.client.get("/audit").text
    assert page.count("by a process<") == 2
    assert page.count("in a browser<") == 1
    answer = lead.client.get("/audit.csv")
    assert (answer.mimetype, "attachment" in answer.headers["Content-Disposition"]) == ("text/csv", True)
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert [line["action"] for line in lines] == [row["action"] for row in rows]
    assert json.loads(lines[0]["after"]) == rows[0]["after"]
    assert lines[0]["actor"] == "'=cmd()"  # a spreadsheet must not run it


def test_a_long_log_is_paged_and_downloaded_whole(lead: SignedIn, database: Database) -> None:
    with database.session() as session:
        for n in range(1200):
            record(session, "ana", "rule.edit", f"rule:{n}")
    page = lead.client.get("/audit?action=rule.edit").text
    older = re.search(r'href="(/audit\?[^"]*before=\d+[^"]*)"', page)
    assert older is not None
    second = lead.client.get(older[1].replace("&amp;", "&")).text
    assert "rule:1199" in page
    assert "rule:1149" in second
    assert "rule:1150" not in second
    assert len(json.loads(lead.client.get("/audit.json?action=rule.edit").text)) == 1200
    assert len(lead.client.get("/audit.csv?action=rule.edit").text.splitlines()) == 1201


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", "2026-1", "9999-12-31"])
def test_a_day_that_is_none(lead: SignedIn, day: str) -> None:
    assert lead.client.get("/audit", query_string={"until": day}).status_code == 400


def test_days_are_whole(lead: SignedIn, log: None) -> None:
    rows = json.loads(lead.client.get("/audit.json").text)
    today = rows[0]["at"][:10]
    assert len(json.loads(lead.client.get(f"/audit.json?since={today}&until={today}").text)) == len(rows)
    assert json.loads(lead.client.get("/audit.json?until=2020-01-01").text) == []
