"""The pages of the rules over HTTP: who may what, editing, conflicts, and hostile texts."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from access.models import AuditLog, Person
from app import create_app
from core.db import Database
from core.settings import Settings
from feedback.models import Judgment, RuleJudgment, RuleVersion
from feedback.rules.store import (
    MAX_RULES,
    create_rule,
    edit_rule,
    ensure_rules,
    find_rule,
    find_version,
    history,
    retire_rule,
)
from feedback.rules.words import CATEGORIES, MAX_EXAMPLE, MAX_EXAMPLES, MAX_TEXT, Change, RuleWords, words_of
from tests.conftest import SignedIn
from tests.factories import PASSWORD, make_completion, make_person
from tests.hostile import HOSTILE

SignIn = Callable[[Person], SignedIn]
FIELDS = {
    "title": "No riddles", "text": "Do not speak in riddles.", "category": "format", "severity": "2",
    "refusal_text": "Plainly, then.", "kept_text": ["It is noon."], "kept_reason": [""],
    "broken_text": ["What is it that has no hands and strikes?"], "broken_reason": ["A riddle."],
}  # fmt: skip


@pytest.fixture
def rule(database: Database, people: dict[str, Person]) -> str:
    """The slug of a rule in two versions, made by the lead and the admin."""
    lead, admin = people["lead"], people["admin"]
    old = RuleWords(title="No riddles", text="Do not speak in riddles.", refusal_text="Plainly, then.")
    with database.session() as session:
        create_rule(session, old, Change(author_id=lead.id, login="lead"))
        new = old.model_copy(update={"text": "Never speak in riddles.", "severity": 3})
        edit_rule(session, "no_riddles", new, base=1, change=Change(author_id=admin.id, login="admin", note="firmer"))
    return "no_riddles"


def newest(database: Database, slug: str = "no_riddles") -> RuleVersion:
    with database.read() as session:
        return find_rule(session, slug)


def typed(page: str) -> dict[str, list[str]]:
    """What stands in the editor's fields of a page, by name."""
    found = re.findall(
        r'<textarea name="(\w+)"[^>]*>\n(.*?)</textarea>', re.sub(r"(?s)<template>.*?</template>", "", page), re.DOTALL
    )
    fields: dict[str, list[str]] = {}
    for name, value in found:
        fields.setdefault(name, []).append(html.unescape(value))
    for name in ("title", "note", "base"):
        if value := re.search(rf'name="{name}" value="([^"]*)"', page):
            fields[name] = [html.unescape(value[1])]
    return fields


# Who may what ---------------------------------------------------------------------------------------------------------

READING = ["/rules", "/rules/no_riddles", "/rules/no_riddles/versions/1", "/rules/no_riddles?from=1&to=2"]
WRITING = [
    ("get", "/rules/new"),
    ("post", "/rules/new"),
    *(
        (method, f"/rules/no_riddles/{act}")
        for act in ("edit", "retire", "restore", "try")
        for method in ("get", "post")
    ),
]


@pytest.mark.parametrize(
    ("role", "figures", "writes"),
    [("annotator", False, False), ("reviewer", True, False), ("lead", True, True), ("admin", True, True)],
)
def test_roles(
    people: dict[str, Person], sign_in: SignIn, database: Database, rule: str, role: str, figures: bool, writes: bool
) -> None:
    client = sign_in(people[role]).client
    for path in READING:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert ("Marked" in answer.text) == figures, path
        assert any(f'href="/rules{end}"' in answer.text for end in ("/new", "/no_riddles/edit")) == (
            writes and "versions/1" not in path
        ), path
    for method, path in WRITING:
        assert (getattr(client, method)(path).status_code == 403) != writes, path
    if not writes:
        assert newest(database).version == 2
        with database.read() as session:
            assert set(session.scalars(select(AuditLog.action))) == {"rule.create", "rule.edit", "session.sign_in"}


def test_visitors_are_asked_to_sign_in(client: FlaskClient, rule: str) -> None:
    for method, path in [*WRITING, *(("get", path) for path in READING)]:
        answer = getattr(client, method)(path)
        assert (answer.status_code, answer.headers["Location"].split("?")[0]) == (302, "/sign-in"), path


@pytest.mark.parametrize("path", [path for method, path in WRITING if method == "post"])
def test_changes_need_the_csrf_token(app: Flask, lead: SignedIn, database: Database, rule: str, path: str) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.post(path, data={**FIELDS, "base": "2", "note": "n"}).status_code == 400
    assert newest(database).version == 2


def test_everybody_finds_the_rules(people: dict[str, Person], sign_in: SignIn, rule: str) -> None:
    for person in people.values():
        page = sign_in(person).client.get("/rules").text
        assert '<a href="/rules" aria-current="page">Rules</a>' in page
        assert "No riddles" in page


# The list -------------------------------------------------------------------------------------------------------------


def shown(page: str) -> list[str]:
    """Slugs in the order of the list."""
    return re.findall(r'<a class="user-text" dir="auto" href="/rules/(\w+)"', page)


def test_list_filters_by_address(lead: SignedIn, database: Database, rule: str) -> None:
    with database.session() as session:
        n = ensure_rules(session)
        change = Change(author_id=lead.person.id, login="lead", note="n")
        retire_rule(session, "repetition", base=1, change=change)
    get = lead.client.get
    assert len(shown(get("/rules").text)) == n
    assert len(shown(get("/rules?state=all").text)) == n + 1
    assert shown(get("/rules?state=retired").text) == ["repetition"]
    assert shown(get("/rules?q=RIDDLES").text) == ["no_riddles"]
    assert set(shown(get("/rules?category=advice").text)) == {"medical_advice", "legal_advice", "financial_advice"}
    assert shown(get("/rules?category=advice&sort=severity").text)[0] == "medical_advice"
    assert shown(get("/rules?sort=title").text) != shown(get("/rules").text)
    assert shown(get("/rules?sort=changed&state=all").text)[0] == "repetition"
    page = get("/rules?category=advice&q=zzz").text
    assert "No rule fits." in page
    assert 'value="zzz"' in page
    for bad in ("state=dead", "category=x", "sort=x"):
        assert get(f"/rules?{bad}").status_code == 400


def test_empty_list_says_what_comes(lead: SignedIn) -> None:
    assert "make migrate" in lead.client.get("/rules").text


def judge(database: Database, version_id: int, *verdicts: str, kind: str = "rule_check") -> None:
    with database.session() as session:
        for verdict in verdicts:
            completion = make_completion(session)
            judgment = Judgment(kind=kind, completion_id=completion.id)
            session.add(judgment)
            session.flush()
            row = {"judgment_id": judgment.id, "rule_version_id": version_id, "completion_id": completion.id}
            session.add(RuleJudgment(**row, verdict=verdict))


def test_rates_have_interval_and_n(
    lead: SignedIn, people: dict[str, Person], sign_in: SignIn, database: Database, rule: str
) -> None:
    with database.session() as session:
        ensure_rules(session)
        first = find_version(session, rule, 1)
    assert "no verdicts" in lead.client.get(f"/rules/{rule}").text
    judge(database, first.id, "broken", "broken", "kept", "kept", "kept", "unsure")
    judge(database, newest(database).id, "broken", kind="pairwise")
    said = '<b>40.0\u202f%</b> <span class="interval">11.8\u202f% – 76.9\u202f%, n&nbsp;5</span>'
    assert lead.client.get("/rules").text.count(said) == 1
    assert shown(lead.client.get("/rules?sort=broken").text)[0] == rule
    page = lead.client.get(f"/rules/{rule}").text
    assert page.count(said) == 2  # all versions, and version 1 in the history
    assert "2 broken, 3 kept, 1 unsure" in page
    assert said not in sign_in(people["annotator"]).client.get(f"/rules/{rule}").text
    german = lead.client.get("/rules", headers={"Accept-Language": "de"}).text
    assert "40,0\u202f%" in german


def test_the_list_of_the_most_rules_stays_small(lead: SignedIn, database: Database) -> None:
    words = RuleWords(title="x" * 60, text="word " * 800, refusal_text="No.", category="misinformation", severity=3)
    change = Change(author_id=lead.person.id, login="lead")
    with database.session() as session:
        for number in range(MAX_RULES):
            create_rule(session, words.model_copy(update={"title": f"{number} {words.title}"}), change)
    page = lead.client.get("/rules?state=all")
    assert len(shown(page.text)) == MAX_RULES
    assert len(page.data) < 300_000


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_new_rule(lead: SignedIn, database: Database) -> None:
    answer = lead.client.post("/rules/new", data=FIELDS)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/rules/no_riddles")
    page = lead.client.get("/rules/no_riddles").text
    for words in (
        "No riddles",
        "Do not speak in riddles.",
        "Plainly, then.",
        "It is noon.",
        "A riddle.",
        "Form",
        "medium",
    ):
        assert words in page
    again = lead.client.post("/rules/new", data=FIELDS)  # as by a double click
    assert (again.status_code, again.headers["Location"]) == (303, "/rules/no_riddles")
    other = lead.client.post("/rules/new", data=FIELDS | {"severity": "3"})
    assert other.status_code == 409
    assert "there is a rule &#39;no_riddles&#39; already" in other.text
    assert typed(other.text)["broken_text"] == FIELDS["broken_text"]
    with database.read() as session:
        assert len(session.scalars(select(RuleVersion)).all()) == 1


def test_an_edit_shows_what_it_changed(lead: SignedIn, database: Database, rule: str) -> None:
    page = lead.client.get(f"/rules/{rule}/edit").text
    fields = typed(page)
    assert fields["base"] == ["2"]
    assert 'value="3" required checked' in page
    sent = FIELDS | {
        "base": "2",
        "title": fields["title"],
        "text": "Never speak in long riddles.",
        "note": "longer ones",
    }
    answer = lead.client.post(f"/rules/{rule}/edit", data=sent)
    assert answer.headers["Location"] == f"/rules/{rule}?from=2&to=3#changes"
    page = lead.client.get(answer.headers["Location"]).text
    assert "Saved as version 3." in page
    assert "Never speak in<ins> long</ins> riddles." in page
    assert '<span class="badge badge-bad">high</span> → <span class="badge badge-unsure">medium</span>' in page
    assert "<ins>It is noon.</ins>" in page
    version = newest(database)
    assert (version.version, version.note, version.author_id) == (3, "longer ones", lead.person.id)
    older = lead.client.get(f"/rules/{rule}/versions/2").text
    assert "This is version 2. Version 3 is current." in older
    assert "Never speak in riddles." in older
    assert f"/rules/{rule}/edit" not in older


def test_what_is_wrong_is_said_beside_it_and_all_is_kept(lead: SignedIn, database: Database, rule: str) -> None:
    sent = {
        "base": "2", "title": " ", "text": "x" * (MAX_TEXT + 1), "category": "crimes", "severity": "9", "refusal_text": "r",
        "note": "n" * 501, "kept_text": ["", "a", "  "], "kept_reason": ["", "b" * 301, "why?"],
    }  # fmt: skip
    answer = lead.client.post(f"/rules/{rule}/edit", data=sent)
    assert answer.status_code == 400
    wrong = dict(re.findall(r'id="wrong-([\w.]+)">([^<]+)<', answer.text))
    assert wrong == {
        "title": "Write something here.",
        "text": "At most 4000 characters fit.",
        "category": "Choose one of the list.",
        "severity": "Choose one of the list.",
        "kept_examples.0.reason": "At most 300 characters fit.",
        "kept_examples.1.text": "Write something here.",
    }
    fields = typed(answer.text)
    assert (fields["text"], fields["note"]) == ([sent["text"]], [sent["note"]])
    assert fields["kept_text"] == ["a", "  "]  # what is wholly empty is dropped
    assert newest(database).version == 2
    silent = lead.client.post(f"/rules/{rule}/edit", data=FIELDS | {"base": "2"})
    assert silent.status_code == 400
    assert "say in a few words what is changed" in silent.text
    long = lead.client.post(f"/rules/{rule}/edit", data=FIELDS | {"base": "2", "note": "n" * 501})
    assert re.findall(r'id="wrong-note">([^<]+)<', long.text) == ["At most 500 characters fit."]


def test_saving_without_a_change(lead: SignedIn, database: Database, rule: str) -> None:
    fields = typed(lead.client.get(f"/rules/{rule}/edit").text)
    answer = lead.client.post(f"/rules/{rule}/edit", data=fields | {"category": "other", "severity": "3", "note": "n"})
    assert answer.status_code == 400
    assert "Nothing is changed yet." in answer.text
    assert newest(database).version == 2


@pytest.mark.parametrize("base", ["", "x", "-1", "7", "0", "9" * 30, "²"])
def test_a_base_that_never_was(lead: SignedIn, database: Database, rule: str, base: str) -> None:
    for path in ("edit", "retire"):
        answer = lead.client.post(f"/rules/{rule}/{path}", data=FIELDS | {"base": base, "note": "n"})
        assert 400 <= answer.status_code < 500, path
    assert newest(database).version == 2


def test_examples_are_added_and_removed_without_a_script(lead: SignedIn, database: Database, rule: str) -> None:
    sent: dict[str, Any] = FIELDS | {
        "base": "2",
        "note": "half typed",
        "kept_text": ["one", "two"],
        "kept_reason": ["a", "b"],
    }
    added = lead.client.post(f"/rules/{rule}/edit", data=sent | {"do": "add-broken"})
    assert added.status_code == 200
    assert typed(added.text)["broken_text"] == [*FIELDS["broken_text"], ""]
    dropped = typed(lead.client.post(f"/rules/{rule}/edit", data=sent | {"do": "drop-kept-0"}).text)
    assert (dropped["kept_text"], dropped["note"]) == (["two"], ["half typed"])
    for odd in ("drop-kept-9", "drop-kept-x", "drop-kept"):
        same = typed(lead.client.post(f"/rules/{rule}/edit", data=sent | {"do": odd}).text)
        assert same["kept_text"] == ["one", "two"], odd
    full = sent | {"kept_text": ["x"] * MAX_EXAMPLES, "kept_reason": [""] * MAX_EXAMPLES, "do": "add-kept"}
    assert len(typed(lead.client.post(f"/rules/{rule}/edit", data=full).text)["kept_text"]) == MAX_EXAMPLES
    assert newest(database).version == 2
    new = lead.client.post("/rules/new", data=FIELDS | {"do": "add-kept"}).text
    assert typed(new)["kept_text"] == ["It is noon.", ""]


def test_too_many_examples(lead: SignedIn, database: Database, rule: str) -> None:
    many = {"kept_text": ["x"] * (MAX_EXAMPLES + 5), "kept_reason": [""] * (MAX_EXAMPLES + 5)}
    answer = lead.client.post(f"/rules/{rule}/edit", data=FIELDS | many | {"base": "2", "note": "n"})
    assert answer.status_code == 400
    assert "At most 20 examples fit." in answer.text


def test_the_largest_rule_fits(lead: SignedIn, database: Database, rule: str) -> None:
    big = {
        "text": "🦜" * MAX_TEXT, "refusal_text": "🦜" * MAX_TEXT, "kept_text": ["🦜" * MAX_EXAMPLE] * MAX_EXAMPLES,
        "kept_reason": ["🦜" * 300] * MAX_EXAMPLES, "broken_text": ["🐦" * MAX_EXAMPLE] * MAX_EXAMPLES,
        "broken_reason": ["🐦" * 300] * MAX_EXAMPLES, "base": "2", "note": "🦜" * 500,
    }  # fmt: skip
    answer = lead.client.post(f"/rules/{rule}/edit", data=FIELDS | big, content_type="multipart/form-data")
    assert answer.status_code == 303, answer.text
    assert len(newest(database).broken_examples) == MAX_EXAMPLES
    assert lead.client.get(answer.headers["Location"]).status_code == 200


# Two editors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, settings: Settings) -> tuple[Database, Flask]:
    """A database of either kind, and the app on it."""
    database: Database = request.getfixturevalue("database" if request.param == "sqlite" else "postgres_database")
    app = create_app(settings, database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    return database, app


def test_the_second_of_two_editors_sees_what_changed_and_loses_nothing(both: tuple[Database, Flask]) -> None:
    database, app = both
    with database.session() as session:
        for login in ("ana", "ben"):
            make_person(session, login, "lead")
    ana, ben = app.test_client(), app.test_client()
    for client, login in ((ana, "ana"), (ben, "ben")):
        client.post("/sign-in", data={"login": login, "password": PASSWORD})
    ana.post("/rules/new", data=FIELDS)
    ana_sends, ben_sends = (
        FIELDS | {"base": typed(client.get("/rules/no_riddles/edit").text)["base"], "note": f"by {who}"}
        for client, who in ((ana, "ana"), (ben, "ben"))
    )
    ana_sends |= {"text": "Do not speak in long riddles.", "title": "No long riddles", "severity": "3"}
    ben_sends |= {
        "text": "Do not ever speak in riddles.",
        "refusal_text": "Ben's refusal.",
        "kept_text": "Ben's example.",
    }
    assert ana.post("/rules/no_riddles/edit", data=ana_sends).status_code == 303
    answer = ben.post("/rules/no_riddles/edit", data=ben_sends)
    assert answer.status_code == 409
    assert newest(database).version == 2
    for words in (
        "Not saved yet: version 2 was made while you were writing", "<bdi>ana</bdi>", "by ana",
        "Do not speak in<ins> long</ins> riddles.", "No<ins> long</ins> riddles",
        "You both changed these; below stand your words: <b>Text</b>",
        "You had left these alone; below stand the new words: <b>Title, Severity</b>",
    ):  # fmt: skip
        assert words in answer.text
    fields = typed(answer.text)
    assert fields["text"] == ["Do not ever speak in riddles."]
    assert fields["title"] == ["No long riddles"]
    assert fields["kept_text"] == ["Ben's example."]
    assert fields["refusal_text"] == ["Ben's refusal."]
    assert (fields["note"], fields["base"]) == (["by ben"], ["2"])
    assert 'value="3" required checked' in answer.text
    assert "Save as version 3" in answer.text
    saved = ben.post("/rules/no_riddles/edit", data=ben_sends | fields | {"severity": "3"})
    assert saved.status_code == 303, saved.text
    with database.read() as session:
        versions, _ = history(session, "no_riddles")
        assert [(v.version, v.author.login if v.author else None) for v in versions] == [
            (3, "ben"),
            (2, "ana"),
            (1, "ana"),
        ]
        assert versions[0].title == "No long riddles"
        assert words_of(versions[0]).kept_examples[0].text == "Ben's example."


def test_retiring_what_somebody_has_just_edited(lead: SignedIn, database: Database, rule: str) -> None:
    answer = lead.client.post(f"/rules/{rule}/retire", data={"base": "1", "note": "old"})
    assert answer.status_code == 409
    assert "version 2 of this rule was made by admin after you had opened version 1" in answer.text
    assert newest(database).active


# Retire, restore, try -------------------------------------------------------------------------------------------------


def test_retire_and_restore_ask_once(lead: SignedIn, database: Database, rule: str) -> None:
    assert lead.client.get(f"/rules/{rule}/restore").status_code == 409
    page = lead.client.get(f"/rules/{rule}/retire").text
    assert "Retire this rule?" in page
    assert newest(database).active
    assert lead.client.post(f"/rules/{rule}/retire", data={"base": "2", "note": " "}).status_code == 400
    said = lead.client.post(
        f"/rules/{rule}/retire", data={"base": "2", "note": "nobody riddles"}, follow_redirects=True
    )
    assert "Retired: from their next task on" in said.text
    assert not newest(database).active
    assert shown(lead.client.get("/rules").text) == []
    assert "This rule is retired, and stays so" in lead.client.get(f"/rules/{rule}/edit").text
    assert lead.client.get(f"/rules/{rule}/retire").status_code == 409
    said = lead.client.post(f"/rules/{rule}/restore", data={"base": "3", "note": "they do"}, follow_redirects=True)
    assert "Restored" in said.text
    assert newest(database).active


def test_trying_a_text_stores_nothing(lead: SignedIn, database: Database, rule: str) -> None:
    sent = {
        "turn": "Tell me the time.",
        "reply": "What has  no hands\nand strikes?",
        "quotes": "no hands and\nnot there",
    }
    page = lead.client.post(f"/rules/{rule}/try", data=sent).text
    assert "What has  <mark>no hands\nand</mark> strikes?" in page
    assert re.search(r"These words are not in the reply:.*not there", page)
    assert "Never speak in riddles." in page
    editor = lead.client.post(f"/rules/{rule}/edit", data=sent | {"do": "use-broken"}).text
    assert typed(editor)["broken_text"] == ["User: Tell me the time.\nReply: What has  no hands\nand strikes?"]
    assert typed(editor)["base"] == ["2"]
    assert newest(database).version == 2


def test_what_is_not_there(lead: SignedIn, rule: str) -> None:
    get = lead.client.get
    for path in (
        "/rules/x",
        "/rules/x/edit",
        "/rules/x/try",
        "/rules/x/retire",
        "/rules/x/versions/1",
        f"/rules/{rule}/versions/3",
    ):
        assert get(path).status_code == 404, path
    assert get(f"/rules/{rule}/versions/{2**62}").status_code == 404
    assert get(f"/rules/{rule}?from=1&to=9").status_code == 404
    for query in ("from=x&to=1", "before=1e3", "before=-1"):
        assert get(f"/rules/{rule}?{query}").status_code == 400, query
    assert lead.client.post("/rules/x/edit", data=FIELDS).status_code == 404


def test_history_pages(lead: SignedIn, database: Database, rule: str) -> None:
    with database.session() as session:
        for number in range(3, 31):
            words = RuleWords(title="No riddles", text=f"Take {number}.", refusal_text="Plainly, then.")
            edit_rule(
                session, rule, words, base=number - 1, change=Change(author_id=lead.person.id, login="lead", note="n")
            )
    page = lead.client.get(f"/rules/{rule}").text
    assert len(re.findall(r'name="from"', page)) == 25
    older = lead.client.get(re.search(r'href="([^"]*before=6[^"]*)">Older', page)[1].replace("&amp;", "&")).text  # type: ignore[index]
    assert re.findall(r'name="to" value="(\d+)"', older) == ["5", "4", "3", "2", "1"]
    assert "Older" not in older


# Hostile texts --------------------------------------------------------------------------------------------------------


class Structure(HTMLParser):
    """Elements with the names of their attributes, in order; what came and went of a text is no matter."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("ins", "del"):
            self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("ins", "del"):
            self.found.append(("/", tag))

    def handle_comment(self, data: str) -> None:
        self.found.append(("!", data))


def pages_with(client: FlaskClient, database: Database, text: str) -> list[str]:
    """Every page of a rule that has this text in all its fields, in two versions that differ in all of them."""
    fields = {
        "title": text[:70], "text": text, "category": "format", "severity": "2", "refusal_text": text,
        "kept_text": [text], "kept_reason": [text[:250]], "broken_text": [text], "broken_reason": [text[:250]],
    }  # fmt: skip
    made = client.post("/rules/new", data=fields)
    assert made.status_code == 303, made.text
    path = made.headers["Location"]
    fields = {name: [f"{v} end" for v in value] if isinstance(value, list) else value for name, value in fields.items()}
    fields |= {name: f"{fields[name]} end" for name in ("title", "text", "refusal_text")}
    saved = client.post(f"{path}/edit", data=fields | {"base": "1", "note": text[:400]})
    assert saved.status_code == 303, saved.text
    conflict = client.post(f"{path}/edit", data=fields | {"base": "1", "note": text[:400], "text": f"{text} mine"})
    assert conflict.status_code == 409
    refused = client.post(
        f"{path}/edit", data=fields | {"base": "2", "category": text, "severity": text, "note": text[:400]}
    )
    assert refused.status_code == 400
    tried = client.post(
        f"{path}/try", data={"turn": text, "reply": f"{text} {text}", "quotes": f"absent {text.splitlines()[0]}"}
    )
    assert tried.status_code == 200
    get = ["/rules", f"{path}", f"{path}?from=1&to=2", f"{path}/versions/1", f"{path}/edit", f"{path}/retire"]
    answers = [client.get(one) for one in get]
    assert {answer.status_code for answer in answers} == {200}
    return [answer.text for answer in [*answers, conflict, refused, tried]]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_text_on_every_page(lead: SignedIn, database: Database, name: str) -> None:
    with database.session() as session:
        # the same pages with harmless words, made first and then put out of the list's way
        plain = pages_with(lead.client, database, "harmless words")
        for version in session.scalars(select(RuleVersion)):
            version.active = False
    for harmless, page in zip(plain, pages_with(lead.client, database, HOSTILE[name]), strict=True):
        assert Structure(page).found == Structure(harmless).found
    stored = [v for v in all_versions(database) if v.active]
    assert len(stored) == 2
    expected = HOSTILE[name].replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()
    assert stored[0].text == expected
    assert stored[0].kept_examples[0]["text"] == expected
    page = lead.client.get(f"/rules/{stored[0].rule.slug}/versions/1").text
    assert page.count(str(html.escape(expected)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) >= 3


def all_versions(database: Database) -> list[RuleVersion]:
    with database.read() as session:
        found = list(session.scalars(select(RuleVersion).order_by(RuleVersion.id)))
        assert all(version.rule.slug for version in found)
        return found


def test_categories_have_words(lead: SignedIn) -> None:
    page = lead.client.get("/rules/new").text
    for name in CATEGORIES:
        assert re.search(rf'<option value="{name}"[^>]*>[A-Z]', page), name
