"""What GET sends that is no page: its content type, that no browser guesses another, and that no cell becomes a formula."""

import csv
import io
import json
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from core.db import Database
from core.settings import Settings
from tests.factories import PASSWORD
from tests.pages.places import OTHERS, Download
from tests.pages.rows import fill
from tests.pages.texts import Formulas, Texts

FORMULA = ("=", "+", "-", "@", "\t", "\r")
CSV = [name for name, other in OTHERS.items() if other.kind == "text/csv"]

Get = Callable[[Download], TestResponse]


@pytest.fixture
def filled(app: Flask, database: Database, settings: Settings) -> Callable[[Texts], Get]:
    """A function that fills the database with texts and gives one that asks for a download."""

    def make(texts: Texts) -> Get:
        with database.session() as session:
            found = fill(session, settings, texts)
        clients: dict[str, FlaskClient] = {}

        def get(other: Download) -> TestResponse:
            if other.who not in clients:
                clients[other.who] = app.test_client()
                login = {"login": found.logins[other.who], "password": PASSWORD}
                assert clients[other.who].post("/sign-in", data=login).status_code == 302
            return clients[other.who].get(other.path.format(**found.address))

        return get

    return make


def test_each_says_what_it_is(filled: Callable[[Texts], Get]) -> None:
    get = filled(Texts(hostile=True))
    for name, other in OTHERS.items():
        answer = get(other)
        assert answer.headers["X-Content-Type-Options"] == "nosniff", name
        if not other.kind:
            assert (answer.status_code, answer.location[:1], answer.location[1:2] != "/") == (302, "/", True), name
            continue
        expected = 503 if name == "health.readyz" else 200  # no engine runs here
        assert (answer.status_code, answer.mimetype) == (expected, other.kind), name
        if other.kind == "application/json":
            json.loads(answer.text)
        if other.kind == "text/html":  # a part of a page: its hostile texts are escaped, and it brings no script
            assert ("&lt;svg" if other.texts else "<svg viewBox=") in answer.text, name
            ours = answer.text if other.texts else answer.text.replace("<svg viewBox=", "")
            assert not any(sign in ours for sign in ("<svg", "<script", "<img", "<iframe", "<style")), name
        answer.close()


@pytest.mark.parametrize("name", CSV)
def test_no_cell_is_a_formula(filled: Callable[[Texts], Get], name: str) -> None:
    """A spreadsheet takes what begins with these signs for a formula, and may send it out or run it."""
    rows = list(csv.reader(io.StringIO(filled(Formulas())(OTHERS[name]).text, newline="")))
    cells = [cell for row in rows for cell in row]
    assert [cell for cell in cells if cell.startswith(FORMULA)] == []
    quoted = [cell for cell in cells if cell[:1] == "'" and cell[1:].startswith(FORMULA)]
    assert bool(quoted) == OTHERS[name].texts, "no text of people's was in it"
    assert len({len(row) for row in rows}) == 1
