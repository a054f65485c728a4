"""`/api/v1/rules`: reading and writing rules by programs, with real keys."""

import datetime as dt
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from access.models import ApiKey, Person
from core.db import Database, utcnow
from feedback.models import RuleVersion
from feedback.rules import store
from tests.conftest import SignedIn
from tests.feedback.api.conftest import ALL, audited

RULE: dict[str, Any] = {
    "title": "No riddles", "text": "Do not speak in riddles.", "category": "format", "severity": 2,
    "refusal_text": "Plainly, then.", "kept_examples": [{"text": "It is noon.", "reason": "plain"}],
    "broken_examples": [{"text": "What has no hands and strikes?", "reason": ""}],
}  # fmt: skip
WRITING: tuple[tuple[str, Any], ...] = (
    ("/rules", RULE),
    ("/rules/no_riddles/versions", {"base": 1, "note": "n", "severity": 3}),
    ("/rules/no_riddles/retire", {"base": 1, "note": "n"}),
    ("/rules/no_riddles/restore", {"base": 1, "note": "n"}),
)


@pytest.fixture
def rule(call: Any) -> dict[str, Any]:
    """A rule that the lead made, as it was answered."""
    made: dict[str, Any] = call("POST", "/rules", json=RULE).json
    return made


def edit(call: Any, base: int, note: str = "clearer", role: str = "lead", **words: Any) -> Any:
    return call("POST", "/rules/no_riddles/versions", role=role, json={"base": base, "note": note, **words})


def versions(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(RuleVersion.version).order_by(RuleVersion.id)))


def audit(database: Database) -> list[tuple[str, str]]:
    return [(entry.actor, entry.action) for entry in audited(database)]


# Reading --------------------------------------------------------------------------------------------------------------


def test_rules_are_read_by_who_annotates(client: FlaskClient, database: Database, key: Any) -> None:
    with database.session() as session:
        store.ensure_rules(session)
        newest = store.active_rules(session)[0]
        newest.active = False
    headers = key("annotator", "annotate")
    rules = client.get("/api/v1/rules", headers=headers).json["data"]
    assert len(rules) == len(store.starter_rules())
    assert all(found["broken_examples"] and found["author"] is None for found in rules)
    off = client.get("/api/v1/rules?active=false", headers=headers).json["data"]
    assert [found["slug"] for found in off] == [newest.rule.slug]
    assert len(client.get("/api/v1/rules?active=true", headers=headers).json["data"]) == len(rules) - 1
    one = client.get(f"/api/v1/rules/{newest.rule.slug}", headers=headers).json
    assert [version["version"] for version in one["versions"]] == [1]
    assert client.get("/api/v1/rules/none", headers=headers).status_code == 404
    assert client.get("/api/v1/rules", headers=key("lead", "chat")).status_code == 403


def test_what_differs_between_two_versions(call: Any, rule: dict[str, Any]) -> None:
    edit(call, 1, text="Do not talk in riddles.", kept_examples=[])
    path = "/rules/no_riddles/diff"
    there = call("GET", f"{path}?from=1&to=2", role="annotator", scopes="annotate").json
    assert (there["slug"], there["from"], there["to"]) == ("no_riddles", 1, 2)
    text, kept = there["changes"]
    assert (text["name"], text["before"], text["after"]) == ("text", RULE["text"], "Do not talk in riddles.")
    runs = {
        kind: "".join(run["text"] for run in text["diffs"][0] if run["kind"] in ("same", kind))
        for kind in ("del", "ins")
    }
    assert runs == {"del": RULE["text"], "ins": "Do not talk in riddles."}
    assert (kept["name"], kept["before"], kept["after"]) == ("kept_examples", RULE["kept_examples"], [])
    back = call("GET", f"{path}?from=2&to=1").json
    assert [(change["before"], change["after"]) for change in back["changes"]] == [
        (change["after"], change["before"]) for change in there["changes"]
    ]
    assert call("GET", f"{path}?from=2&to=2").json["changes"] == []
    assert call("GET", f"{path}?from=1&to=3").status_code == 404
    assert call("GET", "/rules/none/diff?from=1&to=1").status_code == 404
    for query in ("", "from=1", "from=0&to=1", "from=x&to=1", "from=1&to=2&colour=red"):
        assert call("GET", f"{path}?{query}").status_code == 400, query


# Making ---------------------------------------------------------------------------------------------------------------


def test_a_rule_is_made_as_on_the_page(call: Any, lead: SignedIn, database: Database) -> None:
    answer = call("POST", "/rules", json=RULE | {"title": " No\r\nriddles ", "note": "asked for"})
    assert answer.status_code == 201
    made = answer.json
    assert {name: made[name] for name in RULE} == RULE
    assert (made["slug"], made["version"], made["active"]) == ("no_riddles", 1, True)
    assert (made["author"], made["note"]) == ("lead", "asked for")
    assert call("GET", "/rules/no_riddles").json == {"slug": "no_riddles", "versions": [made]}
    assert call("GET", "/rules").json == {"data": [made]}
    assert "Do not speak in riddles." in lead.client.get("/rules/no_riddles").text
    (entry,) = audited(database)
    assert (entry.actor, entry.action, entry.subject) == ("lead", "rule.create", "rule:no_riddles")
    assert entry.after == {"version": 1, "active": True, **RULE}


def test_the_words_that_may_be_left_out_are_those_of_an_empty_form(call: Any) -> None:
    made = call("POST", "/rules", json={name: RULE[name] for name in ("title", "text", "refusal_text")}).json
    assert (made["category"], made["severity"], made["kept_examples"], made["note"]) == ("other", 2, [], "")


def test_the_same_call_again_answers_as_the_first_did(call: Any, rule: dict[str, Any], database: Database) -> None:
    again = call("POST", "/rules", json=RULE)
    assert (again.status_code, again.json) == (201, rule)
    assert edit(call, 1, severity=3).json["version"] == 2
    assert call("POST", "/rules", json=RULE).json == rule  # also when it has been edited since
    for other in (
        call("POST", "/rules", json=RULE | {"severity": 1}),
        call("POST", "/rules", json=RULE | {"note": "another"}),
        call("POST", "/rules", role="admin", json=RULE),
    ):
        assert (other.status_code, other.json["type"]) == (409, "urn:dunnock:conflict")
    assert versions(database) == [1, 2]
    assert audit(database) == [("lead", "rule.create"), ("lead", "rule.edit")]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({name: value for name, value in RULE.items() if name != "title"}, "title"),
        (RULE | {"title": " \n "}, "title"),
        (RULE | {"title": "x" * 81}, "title"),
        (RULE | {"text": 7}, "text"),
        (RULE | {"category": "birds"}, "category"),
        (RULE | {"severity": 4}, "severity"),
        (RULE | {"kept_examples": [{"text": "x"}] * 21}, "kept_examples"),
        (RULE | {"broken_examples": [{"text": ""}]}, "broken_examples.0.text"),
        (RULE | {"note": "x" * 501}, "note"),
        (RULE | {"slug": "mine"}, "slug"),
        ([], "the body"),
    ],
)
def test_what_is_no_rule_is_refused(call: Any, database: Database, body: Any, where: str) -> None:
    answer = call("POST", "/rules", json=body)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert answer.json["detail"].startswith(where)
    assert versions(database) == audit(database) == []


def test_there_is_a_most_of_rules(call: Any, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]) -> None:
    monkeypatch.setattr(store, "MAX_RULES", 1)
    answer = call("POST", "/rules", json=RULE | {"title": "Another"})
    assert (answer.status_code, answer.json["type"]) == (409, "urn:dunnock:conflict")


# Editing --------------------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_it_says_and_nothing_else(call: Any, rule: dict[str, Any], database: Database) -> None:
    answer = edit(call, 1, role="admin", text="Never speak in riddles.", broken_examples=[], severity=None)
    assert answer.status_code == 201
    changed = {"text": "Never speak in riddles.", "broken_examples": []}
    assert {name: answer.json[name] for name in RULE} == RULE | changed
    assert (answer.json["version"], answer.json["author"], answer.json["note"]) == (2, "admin", "clearer")
    assert [found["version"] for found in call("GET", "/rules/no_riddles").json["versions"]] == [2, 1]
    entry = audited(database)[-1]
    assert (entry.actor, entry.action, entry.subject) == ("admin", "rule.edit", "rule:no_riddles")
    assert entry.before == {"version": 1} | {name: RULE[name] for name in changed}
    assert entry.after == {"version": 2, "note": "clearer"} | changed


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"base": 1, "note": " ", "severity": 3}, 400, "what is changed, and why"),
        ({"base": 1, "severity": 3}, 400, "note"),
        ({"base": 1, "note": "n"}, 400, "no word was changed"),
        ({"base": 1, "note": "n", "title": "No  riddles"}, 400, "no word was changed"),
        ({"base": 2, "note": "n", "severity": 3}, 400, "no version 2 of this rule; its newest is 1"),
        ({"base": 0, "note": "n", "severity": 3}, 400, "base"),
        ({"note": "n", "severity": 3}, 400, "base"),
        ({"base": 1, "note": "n", "text": ""}, 400, "text"),
        ({"base": 1, "note": "n", "active": False}, 400, "active"),
    ],
)
def test_what_is_no_edit_is_refused(
    call: Any, rule: dict[str, Any], database: Database, body: Any, status: int, words: str
) -> None:
    answer = call("POST", "/rules/no_riddles/versions", json=body)
    assert answer.status_code == status
    assert words in answer.json["detail"]
    assert versions(database) == [1]
    for path in ("versions", "retire", "restore"):
        assert call("POST", f"/rules/none/{path}", json={"base": 1, "note": "n"}).status_code == 404


def test_who_comes_second_is_told_both_numbers(
    call: Any, rule: dict[str, Any], lead: SignedIn, database: Database
) -> None:
    """One edits in the page, the other by a program."""
    fields = {
        "title": "No riddles", "text": "At all.", "category": "other", "severity": "2", "refusal_text": "No.", "note": "n",
        "base": "1",
    }  # fmt: skip
    assert lead.client.post("/rules/no_riddles/edit", data=fields).status_code == 303
    for answer in (
        edit(call, 1, role="admin", severity=3),
        call("POST", "/rules/no_riddles/retire", json={"base": 1, "note": "n"}),
    ):
        assert (answer.status_code, answer.mimetype) == (409, "application/problem+json")
        told = answer.json
        assert (told["type"], told["base"], told["newest"]) == ("urn:dunnock:edit_conflict", 1, 2)
        assert "made by lead" in told["detail"]
    assert versions(database) == [1, 2]
    assert edit(call, 2, role="admin", severity=3).json["text"] == "At all."


def test_an_edit_that_is_sent_again_is_one_version(call: Any, rule: dict[str, Any], database: Database) -> None:
    first = edit(call, 1, severity=3)
    assert edit(call, 1, severity=3).json == first.json
    edit(call, 2, severity=1, role="admin")
    again = edit(call, 1, severity=3)  # its answer was lost, and others went on meanwhile
    assert (again.status_code, again.json) == (201, first.json)
    for other in (
        edit(call, 1, severity=3, role="admin"),
        edit(call, 1, severity=3, note="other words"),
        edit(call, 1, severity=1),
    ):
        assert (other.status_code, other.json["base"], other.json["newest"]) == (409, 1, 3)
    assert versions(database) == [1, 2, 3]
    assert audit(database) == [("lead", "rule.create"), ("lead", "rule.edit"), ("admin", "rule.edit")]


def test_a_rule_is_retired_and_restored(call: Any, rule: dict[str, Any], database: Database) -> None:
    def switch(act: str, base: int) -> Any:
        return call("POST", f"/rules/no_riddles/{act}", json={"base": base, "note": "why"})

    already = switch("restore", 1)
    assert (already.status_code, already.json["type"]) == (409, "urn:dunnock:conflict")
    assert "newest" not in already.json
    off = switch("retire", 1)
    assert (off.status_code, off.json["version"], off.json["active"]) == (201, 2, False)
    assert switch("retire", 1).json == off.json
    assert switch("retire", 2).status_code == 409
    assert call("GET", "/rules?active=true").json["data"] == []
    assert not edit(call, 2, severity=1).json["active"]  # an edit is no restoring
    assert switch("restore", 3).json["active"]
    assert {name: switch("restore", 3).json[name] for name in RULE} == RULE | {"severity": 1}
    assert call("POST", "/rules/no_riddles/retire", json={"base": 4, "note": ""}).status_code == 400
    assert versions(database) == [1, 2, 3, 4]
    assert [action for _, action in audit(database)] == ["rule.create", "rule.retire", "rule.edit", "rule.restore"]


# Who ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), WRITING)
@pytest.mark.parametrize(
    ("role", "scopes"),
    [(None, ""), ("annotator", ALL), ("reviewer", ALL), ("lead", "annotate people chat feedback")],
)
def test_only_leads_and_admins_write(
    client: FlaskClient,
    rule: dict[str, Any],
    key: Any,
    database: Database,
    path: str,
    body: Any,
    role: Any,
    scopes: str,
) -> None:
    headers = key(role, scopes) if role else {}
    for sent in (body, {"nonsense": 1}):  # who may not is not told what is wrong with what they send
        answer = client.post(f"/api/v1{path}", json=sent, headers=headers)
        assert (answer.status_code, answer.mimetype) == (403 if role else 401, "application/problem+json")
    assert versions(database) == [1]


def demoted(database: Database, lead: Person) -> None:
    with database.session() as session:
        session.get_one(Person, lead.id).role = "reviewer"


def deactivated(database: Database, lead: Person) -> None:
    with database.session() as session:
        session.get_one(Person, lead.id).active = False


def expired(database: Database, lead: Person) -> None:
    with database.session() as session:
        session.execute(update(ApiKey).values(expires_at=utcnow() - dt.timedelta(seconds=1)))


def revoked(database: Database, lead: Person) -> None:
    with database.session() as session:
        session.execute(update(ApiKey).values(revoked_at=utcnow()))


@pytest.mark.parametrize(("happens", "status"), [(demoted, 403), (deactivated, 401), (expired, 401), (revoked, 401)])
def test_a_key_is_as_good_as_its_person_is_now(
    call: Any, rule: dict[str, Any], database: Database, people: dict[str, Person], happens: Any, status: int
) -> None:
    happens(database, people["lead"])
    for path, body in WRITING:
        assert call("POST", path, json=body).status_code == status
    assert versions(database) == [1]


class Slow(io.BytesIO):
    """A body that comes so slowly that something happens meanwhile."""

    def __init__(self, body: Any, meanwhile: Callable[[], None]) -> None:
        super().__init__(json.dumps(body).encode())
        self.meanwhile = meanwhile

    def readinto(self, buffer: Any) -> int:
        self.meanwhile()
        return super().readinto(buffer)


@pytest.mark.parametrize(
    ("path", "body"),
    [*WRITING, ("/tasks", {"kind": "probe", "rule": "no_riddles"})],
)
def test_a_role_that_is_lost_while_the_body_comes(
    call: Any, rule: dict[str, Any], database: Database, people: dict[str, Person], path: str, body: Any
) -> None:
    came = Slow(body, lambda: demoted(database, people["lead"]))
    answer = call("POST", path, input_stream=came)
    assert answer.status_code == 403
    assert versions(database) == [1]
    assert audit(database) == [("lead", "rule.create")]


def test_a_leads_browser_writes_with_its_csrf_token(app: Flask, lead: SignedIn, database: Database) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    assert lead.client.post("/api/v1/rules", json=RULE).status_code == 403
    assert versions(database) == []
    app.config["WTF_CSRF_ENABLED"] = False
    assert lead.client.post("/api/v1/rules", json=RULE).status_code == 201


# At the same time -----------------------------------------------------------------------------------------------------


def at_once(app: Flask, calls: list[tuple[dict[str, str], str, Any]]) -> list[Any]:
    """The answers to POSTs that begin at one time, in their order; each is headers, path, body."""
    barrier = Barrier(len(calls))

    def post(one: tuple[dict[str, str], str, Any]) -> Any:
        headers, path, body = one
        barrier.wait()
        return app.test_client().post(f"/api/v1{path}", json=body, headers=headers)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(post, calls))


def test_of_edits_at_once_on_one_base_exactly_one_wins(either_app: Flask, either: Database, programs: Any) -> None:
    keys = programs(8)
    assert either_app.test_client().post("/api/v1/rules", json=RULE, headers=keys[0]).status_code == 201
    path = "/rules/no_riddles/versions"
    answers = at_once(
        either_app,
        [(key, path, {"base": 1, "note": f"by {n}", "text": f"As {n} says."}) for n, key in enumerate(keys)],
    )
    won = [n for n, answer in enumerate(answers) if answer.status_code == 201]
    assert len(won) == 1, [answer.text for answer in answers]
    for answer in answers:
        if answer.status_code != 201:
            told = answer.json
            assert (answer.status_code, told["type"]) == (409, "urn:dunnock:edit_conflict")
            assert (told["base"], told["newest"]) == (1, 2)
            assert f"made by lead-{won[0]}" in told["detail"]
    with either.read() as session:
        newest = store.find_rule(session, "no_riddles")
        assert (newest.version, newest.note, newest.text) == (2, f"by {won[0]}", f"As {won[0]} says.")
    assert versions(either) == [1, 2]
    assert audit(either) == [("lead-0", "rule.create"), (f"lead-{won[0]}", "rule.edit")]


def test_one_act_that_is_sent_many_times_at_once_is_done_once(
    either_app: Flask, either: Database, programs: Any
) -> None:
    (key,) = programs(1)
    steps: list[tuple[str, Any]] = [
        ("/rules", RULE),
        ("/rules/no_riddles/versions", {"base": 1, "note": "firmer", "severity": 3}),
        ("/rules/no_riddles/retire", {"base": 2, "note": "no more"}),
    ]
    for path, body in steps:
        answers = at_once(either_app, [(key, path, body)] * 6)
        assert [answer.status_code for answer in answers] == [201] * 6, [answer.text for answer in answers]
        assert len({answer.text for answer in answers}) == 1
    assert versions(either) == [1, 2, 3]
    assert [action for _, action in audit(either)] == ["rule.create", "rule.edit", "rule.retire"]


def test_texts_that_not_every_database_takes(either_app: Flask, programs: Any) -> None:
    (key,) = programs(1)
    client = either_app.test_client()
    body = {name: RULE[name] for name in ("refusal_text", "title")} | {"text": "a\0b \ud800 c", "note": "\0"}
    made = client.post("/api/v1/rules", data=json.dumps(body), headers=key)
    assert (made.status_code, made.json["text"], made.json["note"]) == (201, "ab ? c", "")
    for path in ("/rules/a%00b/versions", "/rules/a%00b/retire"):
        answer = client.post(
            f"/api/v1{path}", json={"base": 1, "note": "n", **({"severity": 3} if "ver" in path else {})}, headers=key
        )
        assert answer.status_code in (400, 404), answer.text
