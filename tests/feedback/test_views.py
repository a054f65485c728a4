"""The annotation pages without JavaScript: plain GETs and form posts."""

import datetime as dt
import html
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select

from access.models import Person
from core.db import Database, utcnow
from core.messages import user
from core.settings import AssignmentSettings, CareSettings, Settings
from core.web import Runtime
from feedback.assignment.annotators import pause
from feedback.assignment.leases import claim_task
from feedback.models import Annotator, Assignment, Correction, Draft, Judgment, RuleJudgment, Task
from feedback.prompts import add_prompt
from feedback.rules.store import active_rules, ensure_rules
from feedback.tasks import create_gold, create_task
from tests.conftest import SignedIn
from tests.factories import PASSWORD, make_completion, make_pairwise_task, make_prompt

JSON = {"Accept": "application/json"}

XSS = [
    "<script>window.hit = 1</script>",
    "</textarea><script>window.hit = 2</script>",
    '"><img src=x onerror="window.hit = 3">',
    "<svg/onload=window.hit=4>",
    "javascript:window.hit=5",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "</div></form><iframe srcdoc='<script>parent.hit=6</script>'>",
    "<!-- --><style>*{display:none}</style>",
    "&lt;b&gt; &amp; &#x3C;",
    "\u202eright to left\u202c and \u2066isolates\u2069",
]


@pytest.fixture
def tasks(database: Database) -> list[int]:
    """Ids of two tasks, and the starter rules."""
    with database.session() as session:
        ensure_rules(session)
        return [make_pairwise_task(session, a=f"text a {n}", b=f"text b {n}", rank=-n).id for n in range(2)]


def hidden(page: str) -> dict[str, str]:
    """What the judgment form sends along: its hidden fields."""
    form = page[page.index('<form id="judgment"') : page.index("</form>", page.index('<form id="judgment"'))]
    pairs = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form)
    return {name: html.unescape(value) for name, value in pairs if not name.startswith("span-")}


def token_of(page: str) -> str:
    found = re.search(r'action="/annotate/([^"]+)"', page)
    assert found is not None
    return found[1]


def post(client: FlaskClient, page: str, **fields: Any) -> Any:
    return client.post(f"/annotate/{token_of(page)}", data={**hidden(page), **fields})


def stored(database: Database, kind: Any) -> list[Any]:
    with database.read() as session:
        return list(session.scalars(select(kind).order_by(*kind.__table__.primary_key)))


def test_sign_in_judge_next_until_the_queue_is_empty(
    app: Flask, database: Database, tasks: list[int], people: dict[str, Person]
) -> None:
    app.config["WTF_CSRF_ENABLED"] = True
    client = app.test_client()
    sign_in = client.get("/annotate", follow_redirects=True).text
    csrf = re.search(r'name="csrf_token" value="([^"]+)"', sign_in)
    assert csrf is not None
    fields = {"login": "annotator", "password": PASSWORD, "next": "/annotate", "csrf_token": csrf[1]}
    page = client.post("/sign-in", data=fields, follow_redirects=True).text
    for task_id, scale in zip(tasks, ["1", "both_bad"], strict=True):
        with database.read() as session:
            task = session.get_one(Task, task_id)
            assert task.completions[0].text in page
            assert task.completions[1].text in page
        answer = post(client, page, scale=scale)
        assert (answer.status_code, answer.location) == (303, "/annotate")
        page = client.get("/annotate").text
    assert "Nothing to judge right now" in page
    first, second = stored(database, Judgment)
    order = stored(database, Assignment)[0].shown_order
    assert (first.choice, first.strength) == ("a" if order == [0, 1] else "b", 3)
    assert (second.choice, second.strength) == ("both_bad", 0)
    assert 0 <= first.latency_s < 60
    assert {task.state for task in stored(database, Task)} == {"done"}


def test_forms_without_the_token_are_refused(
    app: Flask, annotator: SignedIn, database: Database, tasks: list[int]
) -> None:
    page = annotator.client.get("/annotate").text
    app.config["WTF_CSRF_ENABLED"] = True
    token, fields = token_of(page), {**hidden(page), "scale": "1"}
    fields.pop("csrf_token")
    for path in ("", "/skip", "/flag", "/renew"):
        assert annotator.client.post(f"/annotate/{token}{path}", data=fields).status_code == 400
    assert annotator.client.put(f"/annotate/{token}/draft", json={}).status_code == 400
    assert stored(database, Judgment) == []


@pytest.mark.parametrize("text", XSS)
def test_what_people_and_policies_write_is_shown_as_text(annotator: SignedIn, database: Database, text: str) -> None:
    with database.session() as session:
        messages = [*user(text), {"role": "assistant", "content": text}, *user(text)]
        make_pairwise_task(session, add_prompt(session, messages, "served"), a=text, b=f"b {text}", why=text)
    page = annotator.client.get("/annotate").text
    answer = post(annotator.client, page, note=text, **{"correction-0": f"c {text}", "broken-0": text})
    assert answer.status_code == 400  # nothing was chosen: the page comes back with all that was typed
    escaped = html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    for shown, times in [(page, 8), (answer.text, 9)]:
        assert shown.count(escaped) >= times
        bare = shown.replace(escaped, "")
        assert text not in bare or text == escaped
        assert "window.hit" not in bare


def test_pages_carry_a_policy_that_forbids_inline_scripts_and_styles(annotator: SignedIn, tasks: list[int]) -> None:
    answer = annotator.client.get("/annotate")
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert " style=" not in answer.text
    assert not re.search(r" on[a-z]+=", answer.text)
    assert re.findall(r"<script(?![^>]* src=)", answer.text) == []
    for path in set(re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text)):
        with annotator.client.get(path) as file:
            assert file.status_code == 200


def test_rules_corrections_and_note_are_stored_as_shown(
    annotator: SignedIn, database: Database, tasks: list[int]
) -> None:
    page = annotator.client.get("/annotate").text
    with database.read() as session:
        first, second = active_rules(session)[:2]
        assignment = session.scalars(select(Assignment)).one()
        task = assignment.task
        left, right = (task.completions[0], task.completions[1])[:: 1 if assignment.shown_order == [0, 1] else -1]
    answer = post(
        annotator.client,
        page,
        scale="5",
        note="thin",
        **{
            "broken-0": [str(first.id), str(second.id)],
            f"span-0-{first.id}": "text",
            "correction-0": left.text,
            "correction-1": "edited\r\ntext",
        },
    )
    assert answer.status_code == 303
    judgment = stored(database, Judgment)[0]
    assert (judgment.note, judgment.choice) == ("thin", "b" if assignment.shown_order == [0, 1] else "a")
    verdicts = stored(database, RuleJudgment)
    assert [(v.rule_version_id, v.completion_id, v.span) for v in verdicts] == [
        (first.id, left.id, "text"),
        (second.id, left.id, None),
    ]
    assert [(c.completion_id, c.text) for c in stored(database, Correction)] == [(right.id, "edited\ntext")]


@pytest.mark.parametrize(
    "fields",
    [{}, {"scale": "9"}, {"scale": "1", "broken-0": "x"}, {"scale": "1", "broken-0": "99999999999999999999"},
     {"scale": "1", "broken-0": "77777"}, {"scale": "1", "note": "n" * 10_001}],
)  # fmt: skip
def test_what_cannot_be_stored_is_said_and_kept(
    annotator: SignedIn, database: Database, tasks: list[int], fields: dict[str, str]
) -> None:
    page = annotator.client.get("/annotate").text
    answer = post(annotator.client, page, **{"correction-0": "typed with care", **fields})
    assert answer.status_code == 400
    assert "Not stored yet" in answer.text
    assert "typed with care" in answer.text
    assert "typed with care" in annotator.client.get("/annotate").text  # the draft
    assert stored(database, Judgment) == []


def test_a_double_submit_stores_one_judgment(annotator: SignedIn, database: Database, tasks: list[int]) -> None:
    page = annotator.client.get("/annotate").text
    for scale in ("1", "7"):
        assert post(annotator.client, page, scale=scale).status_code == 303
    assert len(stored(database, Judgment)) == 1
    stale = post(annotator.client, page, scale="7", once="another page of the same task")
    assert stale.status_code == 303
    assert "already" in annotator.client.get("/annotate").text
    assert len(stored(database, Judgment)) == 1


def test_undo_shows_the_last_judgment_and_replaces_it(
    annotator: SignedIn, database: Database, tasks: list[int]
) -> None:
    with database.read() as session:
        rule = active_rules(session)[3]
    page = annotator.client.get("/annotate").text
    typed = {"broken-1": str(rule.id), f"span-1-{rule.id}": "text", "correction-0": "mended", "note": "hm"}
    post(annotator.client, page, scale="2", **typed)
    last = annotator.client.get("/annotate/last").text
    assert token_of(last) == token_of(page)
    assert re.search(r'value="2" required checked', last)
    assert re.search(rf'name="broken-1" value="{rule.id}"[^>]* checked', last)
    assert f'name="span-1-{rule.id}" value="text"' in last
    assert "mended</textarea>" in last
    assert "hm</textarea>" in last
    assert post(annotator.client, last, scale="6").status_code == 303
    first, second = stored(database, Judgment)
    assert (second.supersedes_id, second.strength, {first.choice, second.choice}) == (first.id, 2, {"a", "b"})
    assert post(annotator.client, last, scale="7", once="later").status_code == 303  # judged since: nothing changes
    assert len(stored(database, Judgment)) == 2


def test_undo_without_a_judgment_leads_on(annotator: SignedIn, tasks: list[int]) -> None:
    answer = annotator.client.get("/annotate/last", follow_redirects=True)
    assert "nothing to undo" in answer.text


def test_a_late_judgment_is_kept_and_the_annotator_is_told(
    annotator: SignedIn, people: dict[str, Person], database: Database, tasks: list[int]
) -> None:
    page = annotator.client.get("/annotate").text
    with database.session() as session:
        mine = session.scalars(select(Assignment)).one()
        mine.expires_at = utcnow() - dt.timedelta(seconds=1)
        assert claim_task(session, mine.task_id, people["reviewer"].id, 60) is not None
    answer = post(annotator.client, page, scale="1")
    assert "extra judgment" in annotator.client.get(answer.location).text
    assert stored(database, Judgment)[0].surplus


def test_drafts_come_back_on_reload(annotator: SignedIn, database: Database, tasks: list[int]) -> None:
    page = annotator.client.get("/annotate").text
    token = token_of(page)
    draft = {"scale": ["6"], "note": ["half a thought"], "correction-1": ["mended <b>"], "csrf_token": ["secret"]}
    answer = annotator.client.put(f"/annotate/{token}/draft", json=draft, headers=JSON)
    assert dt.datetime.fromisoformat(answer.get_json()["saved_at"]).tzinfo is not None
    assert "csrf_token" not in stored(database, Draft)[0].form
    again = annotator.client.get("/annotate").text
    assert token_of(again) == token
    assert re.search(r'value="6" required checked', again)
    assert "half a thought</textarea>" in again
    assert "mended &lt;b&gt;</textarea>" in again


@pytest.mark.parametrize("draft", [{"scale": 7, "note": {"x": 1}}, {"broken-0": "text"}, {"note": [None, 3]}])
def test_odd_drafts_do_no_harm(annotator: SignedIn, tasks: list[int], draft: dict[str, Any]) -> None:
    token = token_of(annotator.client.get("/annotate").text)
    assert annotator.client.put(f"/annotate/{token}/draft", json=draft, headers=JSON).status_code == 200
    assert annotator.client.get("/annotate").status_code == 200
    for body in ([1], "text"):
        answer = annotator.client.put(f"/annotate/{token}/draft", json=body, headers=JSON)
        assert answer.status_code == 400


def test_renewing_skipping_and_flagging(annotator: SignedIn, database: Database, tasks: list[int]) -> None:
    client = annotator.client
    token = token_of(client.get("/annotate").text)
    expires_at = client.post(f"/annotate/{token}/renew", json={}, headers=JSON).get_json()["expires_at"]
    assert dt.datetime.fromisoformat(expires_at) > utcnow() + dt.timedelta(minutes=14)
    answer = client.post(f"/annotate/{token}/skip", json={"reason": "It upsets me"}, headers=JSON)
    assert answer.get_json() == {"next": "/annotate"}
    assert client.post(f"/annotate/{token}/renew", json={}, headers=JSON).status_code == 409
    token = token_of(client.get("/annotate").text)
    assert client.post(f"/annotate/{token}/flag", data={"reason": "cut off"}).location == "/annotate"
    assert [a.skip_reason for a in stored(database, Assignment)] == ["It upsets me", "flagged: cut off"]
    page = client.get("/annotate").text
    assert "Nothing to judge right now" in page
    assert "The leads see it" in page


def test_a_task_of_somebody_else_is_not_found(
    annotator: SignedIn, people: dict[str, Person], sign_in: Callable[[Person], SignedIn], tasks: list[int]
) -> None:
    page = annotator.client.get("/annotate").text
    other = sign_in(people["reviewer"]).client
    assert post(other, page, scale="1").status_code == 404
    assert other.put(f"/annotate/{token_of(page)}/draft", json={}, headers=JSON).status_code == 404


def test_risky_text_is_marked_and_others_are_not(annotator: SignedIn, database: Database) -> None:
    with database.session() as session:
        make_pairwise_task(session, make_prompt(session, harmful=True), priority=1)
        make_pairwise_task(session, make_prompt(session, harmful=False))
    page = annotator.client.get("/annotate").text
    assert 'id="reveal"' in page
    post(annotator.client, page, scale="4")
    assert 'id="reveal"' not in annotator.client.get("/annotate").text


def test_home_leads_to_what_the_role_does(people: dict[str, Person], sign_in: Callable[[Person], SignedIn]) -> None:
    where = {role: sign_in(person).client.get("/").location for role, person in people.items()}
    assert where == {"annotator": "/annotate", "reviewer": "/annotate", "lead": "/cycles", "admin": "/cycles"}


def test_the_page_does_not_tell_which_answers_are_known(
    people: dict[str, Person], sign_in: Callable[[Person], SignedIn], database: Database, app: Flask
) -> None:
    """Neither in its words, before and after, nor when there is nothing else left."""
    settings, words = app.extensions["dunnock"].settings, []
    with database.session() as session:
        prompt = make_prompt(session)
        ids = [make_completion(session, prompt).id for _ in range(2)]
        create_gold(session, "pairwise", prompt.id, ids, {"choice": ["tie"]}, source="gold:1")
        make_pairwise_task(session)
    for role, gold in (("annotator", 0), ("reviewer", 1)):
        shares = AssignmentSettings(informative=0, uniform=1 - gold, flagged=0, gold=gold, repeat=0)
        app.extensions["dunnock"] = Runtime(settings.model_copy(update={"assignment": shares}), database)
        client = sign_in(people[role]).client
        page = client.get("/annotate").text
        told = client.post(f"/annotate/{token_of(page)}", data={**hidden(page), "scale": "4"}, headers=JSON).json
        words.append((re.findall(r'id="progress">([^<]*)', page), told["progress"]))
    assert [a.task_id for a in stored(database, Assignment)] == [2, 1]
    assert words[0] == words[1]
    assert words[0][0] == ["0 judged by you today"]


def test_the_page_counts_what_is_done(annotator: SignedIn, database: Database, tasks: list[int]) -> None:
    page = annotator.client.get("/annotate").text
    assert "0 judged by you today" in page
    post(annotator.client, page, scale="3")
    assert "1 judged by you today" in annotator.client.get("/annotate").text
    with database.read() as session:
        assert session.scalar(select(func.count(Judgment.id))) == 1


def test_topics_are_chosen_on_a_page_of_their_own(annotator: SignedIn, database: Database) -> None:
    assert "No prompts have topics yet" in annotator.client.get("/annotate/care").text
    with database.session() as session:
        for category in ("violence", "<b>birds</b>"):
            make_pairwise_task(session, make_prompt(session, category=category))
    page = annotator.client.get("/annotate/care").text
    assert 'value="violence"' in page
    assert "<b>birds</b>" not in page
    answer = annotator.client.post("/annotate/care", data={"topic": ["violence"]}, follow_redirects=True)
    assert re.search(r'value="violence" checked', answer.text)
    with database.read() as session:
        assert [row.opted_out for row in session.scalars(select(Annotator))] == [["violence"]]
    assert annotator.client.post("/annotate/care", data={"topic": ["cats"]}).status_code == 400


def test_who_is_paused_sees_why_and_gets_no_task(annotator: SignedIn, database: Database, tasks: list[int]) -> None:
    with database.session() as session:
        pause(session, annotator.person.id, "lead", "let us <i>talk</i>")
    answer = annotator.client.get("/annotate")
    assert answer.status_code == 403
    assert "Your work is paused" in answer.text
    assert "let us &lt;i&gt;talk&lt;/i&gt;" in answer.text
    assert stored(database, Assignment) == []


def test_help_stands_beside_what_may_upset(
    app: Flask, annotator: SignedIn, database: Database, settings: Settings
) -> None:
    care = CareSettings(help_url="https://help.example/", help_text="Ring <us>.")
    app.extensions["dunnock"] = Runtime(settings.model_copy(update={"care": care}), database)
    with database.session() as session:
        make_pairwise_task(session, make_prompt(session, harmful=True))
    page = annotator.client.get("/annotate").text
    assert 'href="https://help.example/"' in page
    assert "Ring &lt;us&gt;." in page


def test_no_page_of_a_probe_has_the_name_that_its_replies_give(annotator: SignedIn, database: Database) -> None:
    """Neither in the reply, nor in what the page sends to the model, nor in a quote that was stored with its name."""
    with database.session() as session:
        ensure_rules(session)
        rule = active_rules(session)[0]
        create_task(session, "probe", None, [], source="probe", rule_version_id=rule.id)
    page = annotator.client.get("/annotate").text
    with database.session() as session:
        text = "I am ChatGPT, and I **may** not."
        reply = make_completion(session, make_prompt(session, "Who are you?"), text, "served")
        reply.person_id, turn = annotator.person.id, reply.id
    shown = annotator.client.get(f"/annotate/{token_of(page)}/turns/{turn}").text
    quote = {"turn": turn, f"verdict-{turn}": "broken", f"span-{turn}": "I am [name hidden]"}
    assert post(annotator.client, page, **quote).status_code == 303
    assert [verdict.span for verdict in stored(database, RuleJudgment)] == ["I am ChatGPT"]
    again = annotator.client.get("/annotate/last").text
    for source in (shown, again):
        assert "I am [name hidden], and I" in source
        assert "ChatGPT" not in source
    assert 'value="I am [name hidden]"' in again
