"""All of it in German: each page renders and says nothing in English, and a task is judged by keyboard."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, url_for
from flask.testing import FlaskClient
from playwright.sync_api import Page, expect
from sqlalchemy import select
from werkzeug.routing import BuildError

from access import oidc
from access.models import Person
from commands.seed import seed
from core.db import Database
from core.language import gettext
from core.settings import Settings
from feedback.models import KINDS, Judgment, Rule
from feedback.rules.store import ensure_rules
from feedback.system_prompts.models import SystemPrompt, SystemPromptShare, SystemPromptVersion
from feedback.tasks import create_task
from tests.conftest import SignedIn
from tests.console.rows import make_cycle, make_promoted, make_stages
from tests.factories import PASSWORD, make_completion, make_pairwise_task, make_person, make_prompt
from tests.test_language import Visible, catalogue, forms

pytestmark = pytest.mark.timeout(300)

GERMAN = {"Accept-Language": "de-DE,de;q=0.9,en;q=0.5", "Accept": "text/html"}
NAMES = {"base", "cycle", "system"}  # a policy version, and who did something where nobody did
NOT_PAGES = ("csv", "json", "openapi", "export", "static", "oidc", "library")


def english_left(page: str) -> set[str]:
    """Texts of a page that a catalogue has a German text for."""
    visible = Visible()
    visible.feed(page)
    german = {
        one: other for m in catalogue("de") if m.id for one, other in zip(forms(m.id), forms(m.string), strict=True)
    }
    found = {text.strip() for text in visible.texts}
    return {text for text in found if german.get(text, text) != text} - NAMES


def addresses(app: Flask, **values: Any) -> list[str]:
    """Paths of all pages that these values of their parts lead to."""
    found = []
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            if "GET" not in (rule.methods or ()) or any(word in rule.endpoint for word in NOT_PAGES):
                continue
            if rule.arguments <= values.keys() and not rule.rule.startswith(("/v1", "/api/", "/health", "/metrics")):
                try:
                    found.append(url_for(rule.endpoint, **{n: values[n] for n in rule.arguments}))
                except BuildError:
                    continue
    return sorted(set(found))


@pytest.fixture
def zoe(database: Database, sign_in: Callable[[Person], SignedIn]) -> SignedIn:
    """An admin whose login is no word of ours, as those of `people` are."""
    with database.session() as session:
        person = make_person(session, login="zoe", role="admin")
    return sign_in(person)


def test_every_page(app: Flask, database: Database, settings: Settings, zoe: SignedIn) -> None:
    with database.session() as session:
        ensure_rules(session)
        make_promoted(session, settings)
        make_stages(session, make_cycle(session, settings, "running"), done=("collect",))
        make_pairwise_task(session)
        slug = session.scalars(select(Rule.slug).order_by(Rule.id).limit(1)).one()
        yann = make_person(session, login="yann", role="annotator")
        prompt = SystemPrompt(name="v1")  # as the policy version is called
        whose = {"author_id": zoe.person.id, "note": "zzz"}
        session.add(SystemPromptVersion(system_prompt=prompt, version=1, text="Zzz.", sha256="0" * 64, **whose))
        session.flush()
        session.add(SystemPromptShare(number=1, shares=[{"version_id": 1, "percent": 100}], **whose))
    client = zoe.client
    paths = addresses(app, cycle_id=1, name="v1", slug=slug, person_id=yann.id, number=1)
    assert {"/cycles", "/policies/v1", "/people", "/quality", f"/rules/{slug}/edit", "/account", "/chat"} <= set(paths)
    shown, left = 0, {}
    for path in [*paths, "/cycles/2"]:
        answer = client.get(path, headers=GERMAN, follow_redirects=True)
        if answer.mimetype == "text/html":
            assert answer.status_code in (200, 409), f"{path}: {answer.status_code}"  # 409: there is nothing to confirm
            shown += 1
            assert '<html lang="de">' in answer.text, path
            left[path] = english_left(answer.text)
    assert {path: texts for path, texts in left.items() if texts} == {}
    assert shown > 25


def test_every_kind_of_task(database: Database, settings: Settings, zoe: SignedIn) -> None:
    seed(database, settings)
    seen = set()
    for _ in range(200):
        page = zoe.client.get("/annotate", headers=GERMAN).text
        assert '<html lang="de">' in page
        assert english_left(page) == set()
        if 'data-token="' not in page:
            break
        seen.add(page.split('data-kind="')[1].split('"')[0])
        token = page.split('data-token="')[1].split('"')[0]
        if len(seen) == len(KINDS):
            break
        refused = zoe.client.post(f"/annotate/{token}", data={}, headers=GERMAN)
        assert "Noch nicht gespeichert: " in refused.text
        zoe.client.post(f"/annotate/{token}/skip", data={"reason": "I cannot tell"})
    assert seen == set(KINDS)


def test_errors(client: FlaskClient, annotator: SignedIn) -> None:
    lost = client.get("/nowhere", headers=GERMAN)
    assert lost.status_code == 404
    assert "Unter dieser Adresse gibt es keine Seite." in lost.text
    assert "Zum Start" in lost.text
    wrong = client.post("/sign-in", data={"login": "nobody", "password": "wrong"}, headers=GERMAN)
    assert "Anmeldename oder Passwort stimmt nicht" in wrong.text
    refused = annotator.client.get("/people", headers=GERMAN)
    assert (refused.status_code, "Nicht für dieses Konto" in refused.text) == (403, True)
    void = client.get("/invitation/none", headers=GERMAN)
    assert (void.status_code, "Dieser Link funktioniert nicht" in void.text) == (404, True)
    with annotator.client.application.test_request_context(headers=GERMAN):
        away = oidc._away(OSError("x")).message
    assert "antwortet gerade nicht" in away
    program = client.get("/nowhere", headers={"Accept": "application/json"}).get_json()
    assert "not found" in program["detail"]


def test_a_version_and_a_cycle_that_are_not_there(zoe: SignedIn) -> None:
    for path, words in (
        ("/policies/nope", "es gibt keine Strategie-Version"), ("/cycles/99", "es gibt keine Runde"),
    ):  # fmt: skip
        answer = zoe.client.get(path, headers=GERMAN)
        assert (answer.status_code, words in answer.text) == (404, True), answer.text


def test_a_mark_that_does_not_exist(database: Database, zoe: SignedIn) -> None:
    with database.session() as session:
        prompt = make_prompt(session)
        create_task(session, "rating", prompt.id, [make_completion(session, prompt).id], source="test")
    page = zoe.client.get("/annotate", headers=GERMAN).text
    token = page.split('data-token="')[1].split('"')[0]
    answer = zoe.client.post(f"/annotate/{token}", data={"rating": "9"}, headers=GERMAN)
    assert "höchstens 5" in answer.text
    assert "Input should" not in answer.text


def test_a_text_of_english_alone_is_found() -> None:
    assert english_left("<p>Submit and next</p><p>Abschicken und weiter</p>") == {"Submit and next"}


def test_a_task_by_keyboard_and_the_switch(
    open_page: Callable[..., Page], database: Database, people: dict[str, Person]
) -> None:
    with database.session() as session:
        ensure_rules(session)
        for n in range(2):
            make_pairwise_task(session, a="Moss makes a soft nest.", b="Use sticks.", rank=-n)
    page = open_page(locale="de-DE", viewport={"width": 1280, "height": 800})
    page.goto("/annotate")
    expect(page.get_by_label("Anmeldename")).to_be_focused()
    page.keyboard.type("annotator")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.locator("html[data-ready=yes]").wait_for()
    expect(page.get_by_role("heading", level=1)).to_have_text("Welche Antwort ist besser?")
    for key in ["b", "Space", "Escape"]:
        page.keyboard.press(key)
    expect(page.locator("#reply-1 .broken-count")).to_have_text("✗ verletzt 1 Regel")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 heute von Ihnen beurteilt")).to_be_visible()
    page.locator("html[data-ready=yes]").wait_for()
    with database.read() as session:
        judgment = session.scalars(select(Judgment)).one()
    assert judgment.strength == 2
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("button", name="Submit and next")).to_be_visible()
    page.get_by_role("button", name="Deutsch").click()
    expect(page.get_by_role("button", name="Abschicken und weiter")).to_be_visible()


def test_a_worker_stays_english(app: Flask) -> None:
    with app.app_context():
        assert gettext("Submit and next") == "Submit and next"
