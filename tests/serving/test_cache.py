"""Replies that are given again: to whom, for how long, never past the guard, never to another tenant."""

import datetime as dt
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import delete, func, select, update

from access.keys import create_key
from access.models import TenantUsage
from access.tenants import Agreed, create_tenant, make_key
from core.db import Database, utcnow
from core.messages import user
from core.settings import CacheSettings, SamplingSettings, Settings, TelemetrySettings
from feedback.models import Completion, Task
from feedback.rules.store import create_rule
from feedback.rules.words import RuleWords
from policy.models import PolicyVersion
from serving import cache, observing
from serving.models import CachedReply, GuardReport
from serving.tracing import Tracing
from tests import factories
from tests.serving.test_guarding import INJECTION, SECRET, Installed
from tests.serving.test_metrics import figures, grown

BRIEF = [{"role": "system", "content": "Be brief."}]
HELLO = [{"role": "assistant", "content": "Hello."}]
QUESTION = "How do I boil an egg softly?"
SAME = "Softly, how do I boil an egg?"
PHONE = "How do I call +49 151 23456789 at night?"


class Cached(Installed):
    """The app with a cache."""

    def ask_for(self, *messages: Any, key: Any = None, headers: Any = None, **more: Any) -> Any:
        body = {"model": "dunnock", "messages": list(messages) or user(QUESTION), "temperature": 0, **more}
        headers = {**(key or self.key), **(headers or {})}
        answer = self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def kind(self, *messages: Any, **more: Any) -> str | None:
        """How a call is answered; header, body and whether the engine was asked agree."""
        before = len(self.engine.asked)
        answer = self.ask_for(*messages, **more)
        chunks = (
            [json.loads(c[6:]) for c in answer.text.split("\n\n") if c.startswith("data: {")]
            if more.get("stream")
            else [answer.json]
        )
        found = answer.headers.get("X-Dunnock-Cache")
        assert {chunk["dunnock"].get("cache") for chunk in chunks} == {found}
        assert (len(self.engine.asked) == before) == (found is not None)
        return found

    def entries(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(CachedReply)) or 0


def made(settings: Settings, database: Database, **wanted: Any) -> Cached:
    given = CacheSettings(**{"mode": "semantic", **wanted})
    return Cached(settings.model_copy(update={"cache": given}), database).with_model()  # type: ignore[return-value]


@pytest.fixture
def cached(settings: Settings, database: Database) -> Iterator[Cached]:
    found = made(settings, database)
    yield found
    found.stop()


# --- what is given again


def test_nothing_is_unless_it_is_set(settings: Settings, database: Database) -> None:
    found = made(settings, database, mode="off")
    assert [found.kind(), found.kind()] == [None, None]
    assert found.entries() == 0
    assert found.model.embedded == []
    found.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_gets_the_same_reply(cached: Cached, stream: bool) -> None:
    before = figures(cached)
    assert cached.kind(stream=stream) is None
    cached.engine.pieces = ["something else"]
    again = cached.ask_for(stream=stream, stream_options={"include_usage": True})
    assert again.headers["X-Dunnock-Cache"] == "exact"
    assert "Hello" in again.text
    assert '"total_tokens": 0' in again.text
    with cached.database.read() as session:
        first, second = session.scalars(select(Completion).order_by(Completion.created_at))
        reports = session.scalar(select(func.count()).select_from(GuardReport))
    assert (second.text, second.cached_from, second.finish_reason) == (first.text, first.id, first.finish_reason)
    assert (second.prompt_tokens, second.completion_tokens) == (0, 0)
    assert first.cached_from is None
    assert reports == 2
    for outcome in ("miss", "exact"):
        assert grown(before, figures(cached), "dunnock_cache_total", outcome=outcome) == 1


def test_feedback_is_of_the_reply_that_was_given(cached: Cached) -> None:
    cached.ask_for()
    again = cached.ask_for().json["id"]
    with cached.database.session() as session:
        person = factories.make_person(session, role="lead")
        key = {"Authorization": f"Bearer {create_key(session, person, 'f', 'feedback')[1]}"}
    answer = cached.client.post("/v1/feedback", json={"completion_id": again, "thumbs": "down"}, headers=key)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.001, "seed": 1}, {"max_tokens": 7}, {"stop": ["x"]}, {"top_p": 0.5}, {"presence_penalty": 1},
        {"messages": [*BRIEF, *user(QUESTION)]}, {"messages": user(QUESTION + " ")}, {"seed": 5},
    ],
)  # fmt: skip
def test_another_request_is_another(settings: Settings, database: Database, other: dict[str, Any]) -> None:
    cached = made(settings, database, mode="exact")
    cached.ask_for()
    messages = other.pop("messages", user(QUESTION))
    assert cached.kind(*messages, **other) is None
    assert cached.kind(*messages, **other) == "exact"
    cached.stop()


@pytest.mark.parametrize(
    "unfit",
    [
        {"temperature": 0.5}, {"temperature": None}, {"n": 2}, {"logprobs": True}, {"store": False},
        {"headers": {"Cache-Control": "no-store"}},
    ],
)  # fmt: skip
def test_what_is_not_kept_and_not_looked_up(cached: Cached, unfit: dict[str, Any]) -> None:
    assert [cached.kind(**dict(unfit)), cached.kind(**dict(unfit))] == [None, None]
    assert cached.entries() == 0
    cached.ask_for()
    assert cached.kind(**dict(unfit)) is None


def test_a_reply_is_made_anew_for_who_wants_that(cached: Cached) -> None:
    cached.ask_for()
    cached.engine.pieces = ["new"]
    assert cached.kind(headers={"Cache-Control": "no-cache"}) is None
    assert cached.ask_for().json["choices"][0]["message"]["content"] == "new"
    assert cached.entries() == 1


def test_drawn_replies_are_given_again_where_that_is_set(settings: Settings, database: Database) -> None:
    cached = made(settings, database, sampled=True)
    assert [cached.kind(temperature=1), cached.kind(temperature=1)] == [None, "exact"]
    cached.stop()


def test_the_log_and_the_trace_say_where_a_reply_came_from(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dunnock.request")
    cached = made(settings.model_copy(update={"log_format": "json"}), database)
    spans = InMemorySpanExporter()
    tracing = Tracing(TelemetrySettings(), spans, at_once=True)
    cached.app.extensions[observing.EXTENSION] = tracing
    cached.ask_for()
    cached.ask_for()
    tracing.close()
    cached.stop()
    told = [record.told for record in caplog.records if record.name == "dunnock.request"]  # type: ignore[attr-defined]
    assert [line.get("cache") for line in told] == [None, "exact"]
    roots = [span for span in spans.get_finished_spans() if span.name == "chat dunnock"]
    assert [span.attributes.get("dunnock.cache") for span in roots] == [None, "exact"]
    assert [span.name for span in spans.get_finished_spans()].count("cache") == 2


# --- by meaning


def test_a_question_that_means_the_same(cached: Cached) -> None:
    assert cached.kind(*user(QUESTION)) is None
    assert cached.kind(*user(SAME)) == "semantic"
    assert cached.kind(*user(SAME)) == "semantic"  # it was not kept under this question too
    assert cached.kind(*user("How do I fry an egg in oil?")) is None
    assert cached.entries() == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("May I take 2 pills of it a day?", "May I take 20 pills of it a day?"),
        ("Is it safe to mix bleach and vinegar?", "Is it not safe to mix bleach and vinegar?"),
        ("Is it safe to mix bleach and vinegar?", "Is it unsafe to mix bleach and vinegar?"),
        ("Is the museum open on Sunday?", "Is the museum open on Monday?"),
    ],
)
def test_numbers_negations_and_names_must_be_equal(
    settings: Settings, database: Database, one: str, other: str
) -> None:
    cached = made(settings, database, threshold=0.5)
    cached.ask_for(*user(one))
    assert cached.kind(*user(other)) is None
    assert cached.kind(*user(one.replace("?", "!"))) == "semantic"
    cached.stop()


def test_longer_conversations_and_long_questions_are_the_very_same_or_none(cached: Cached) -> None:
    turns = [*user("Hi"), *HELLO, *user(QUESTION)]
    cached.ask_for(*turns)
    assert cached.kind(*user("Hi"), *HELLO, *user(SAME)) is None
    assert cached.kind(*turns) == "exact"
    long = QUESTION + " word" * 60
    cached.ask_for(*user(long))
    assert cached.kind(*user(long + " word")) is None
    assert cached.kind(*user(long)) == "exact"


@pytest.mark.parametrize("personal", [PHONE, f"What is {SECRET} for?", "Who has ana@example.org as address?"])
def test_what_is_personal_is_no_question_for_others(cached: Cached, personal: str) -> None:
    cached.ask_for(*user(personal))
    assert cached.model.embedded == []
    assert cached.kind(*user(personal + "?")) is None
    assert cached.kind(*user(personal)) == "exact"


def test_a_personal_reply_is_kept_by_its_request_alone(cached: Cached) -> None:
    cached.engine.pieces = ["Write to ana@example.org."]
    cached.ask_for(*user(QUESTION))
    assert cached.kind(*user(SAME)) is None


@pytest.mark.parametrize("mode", ["hangs", "busy", "raves", "dies"])
def test_without_an_embedding_it_is_a_miss(settings: Settings, database: Database, mode: str) -> None:
    given = {"cache": CacheSettings(mode="semantic")}
    cached = Cached(settings.model_copy(update=given), database, timeout_s=0.2)  # no guard's model, so nothing is cut
    cached.ask_for(*user(QUESTION))
    cached.model.mode = mode
    assert cached.kind(*user(SAME)) is None
    assert cached.kind(*user(QUESTION)) == "exact"
    cached.stop()


# --- whose


def test_tenants_never_share(settings: Settings, database: Database) -> None:
    cached = made(settings, database, share="tenant")
    keys = []
    with database.session() as session:
        for name in ("Acme", "Beta"):
            tenant = create_tenant(session, "lead", Agreed(name))
            keys.append({"Authorization": f"Bearer {make_key(session, 'lead', tenant.id, name)[1]}"})
    for key in (*keys, None):
        assert cached.kind(*user(QUESTION), key=key) is None
        assert cached.kind(*user(QUESTION), key=key) == "exact"
        assert cached.kind(*user(SAME), key=key) == "semantic"
    with database.read() as session:
        usage = list(session.scalars(select(TenantUsage)))
    assert [(day.requests, day.prompt_tokens, day.completion_tokens) for day in usage] == [(3, 3, 2)] * 2
    cached.stop()


@pytest.mark.parametrize(("share", "found"), [("person", None), ("tenant", "exact")])
def test_people_share_where_that_is_set(settings: Settings, database: Database, share: str, found: str | None) -> None:
    cached = made(settings, database, share=share)
    cached.ask_for(*user(QUESTION))
    with database.session() as session:
        other = factories.make_person(session, role="lead")
        key = {"Authorization": f"Bearer {create_key(session, other, 'o', 'chat')[1]}"}
    assert cached.kind(*user(SAME), key=key) == (found and "semantic")
    assert cached.kind(*user(QUESTION), key=key) == (found or "semantic")  # of what they asked themselves
    cached.stop()


def test_another_version_has_other_entries_and_a_rollback_its_own(cached: Cached) -> None:
    cached.ask_for(*user(QUESTION))
    with cached.database.session() as session:
        session.execute(update(PolicyVersion).values(state="retired"))
        factories.make_policy_version(session, "v2", "active")
    assert cached.kind(*user(QUESTION)) is None
    assert cached.kind(*user(SAME)) == "semantic"  # of v2
    assert cached.kind(*user(QUESTION), model="v1") == "exact"


# --- the guard


def test_a_rule_that_came_later_holds_for_what_is_given_again(cached: Cached) -> None:
    cached.engine.pieces = ["A dunnock sings."]
    cached.ask_for(*user(QUESTION))
    words = RuleWords(title="No dunnock", text="Never name the dunnock", refusal_text="No dunnock here.")
    with cached.database.session() as session:
        create_rule(session, words, cached.change)
    for question in (QUESTION, SAME):
        for stream in (False, True):
            answer = cached.ask_for(*user(question), stream=stream)
            assert answer.headers["X-Dunnock-Cache"]
            assert "A dunnock sings" not in answer.text
            assert "content_filter" in answer.text
    assert len(cached.engine.asked) == 1


def test_what_was_cut_or_refused_is_not_kept(cached: Cached) -> None:
    cached.engine.pieces = [f"key {SECRET}"]
    cached.ask_for()
    cached.ask_for(*user(INJECTION))
    cached.engine.chunks = [{"choices": [{"index": 0, "delta": {"content": "all is "}}]}, b""]
    cached.ask_for(*user("Another?"), stream=True)
    assert cached.entries() == 0


def test_a_stream_that_was_left_is_not_kept(cached: Cached) -> None:
    cached.engine.pieces = ["word " * 40] * 3
    answer = cached.ask_for(stream=True)
    pieces = iter(answer.response)
    for _ in range(2):
        next(pieces)
    answer.close()
    assert cached.entries() == 0


def test_texts_that_are_stored_redacted_are_not_kept_as_they_were(settings: Settings, database: Database) -> None:
    cached = made(settings.model_copy(update={"sampling": SamplingSettings(redact=True)}), database)
    cached.engine.pieces = ["Write to ana@example.org."]
    assert [cached.kind(), cached.kind()] == [None, None]
    assert cached.entries() == 0
    cached.stop()


def test_what_is_given_again_is_not_drawn_for_annotators_again(settings: Settings, database: Database) -> None:
    cached = made(settings.model_copy(update={"sampling": SamplingSettings(rate=1.0)}), database)
    for _ in range(3):
        cached.ask_for()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Task)) == 1
    cached.stop()


# --- how long and how many


def test_what_was_erased_is_not_given_again(cached: Cached) -> None:
    assert [cached.kind(), cached.kind()] == [None, "exact"]
    with cached.database.session() as session:
        session.execute(update(Completion).values(text=""))
    assert cached.kind() is None


@pytest.mark.parametrize("apart", [{"consent": "service"}, {"user": "u-2"}])
def test_what_is_for_another_use_or_user_is_not_given(cached: Cached, apart: dict[str, Any]) -> None:
    assert cached.kind(consent="training", user="u-1") is None
    assert cached.kind(**{"consent": "training", "user": "u-1", **apart}) is None
    assert cached.kind(consent="training", user="u-1") == "exact"


def test_entries_grow_old(cached: Cached) -> None:
    cached.ask_for(*user(QUESTION))
    assert cached.kind(*user(SAME)) == "semantic"
    with cached.database.session() as session:
        session.execute(update(CachedReply).values(expires_at=utcnow() - dt.timedelta(seconds=1)))
    assert cached.kind(*user(SAME)) is None
    assert cached.kind(*user(QUESTION)) == "semantic"


def test_the_oldest_go_when_there_are_too_many(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TRIM_EVERY", 1)
    cached = made(settings, database, mode="exact", max_entries=2)
    for i in range(4):
        cached.ask_for(*user(f"Question {i}?"))
    assert cached.entries() == 2
    assert cached.kind(*user("Question 3?")) == "exact"
    assert cached.kind(*user("Question 0?")) is None
    cached.stop()


def test_an_entry_goes_with_its_completion(cached: Cached) -> None:
    cached.ask_for(*user(QUESTION))
    assert cached.kind(*user(SAME)) == "semantic"
    with cached.database.session() as session:
        session.execute(delete(GuardReport))
        session.execute(delete(Completion))
    assert cached.entries() == 0
    assert cached.kind(*user(SAME)) is None


def test_on_postgresql_too(settings: Settings, postgres_database: Database) -> None:
    cached = made(settings, postgres_database)
    assert [cached.kind(*user(words)) for words in (QUESTION, QUESTION, SAME)] == [None, "exact", "semantic"]
    assert cached.kind(*user(QUESTION), headers={"Cache-Control": "no-cache"}) is None
    assert cached.entries() == 1
    cached.stop()
