"""System prompts in the chat API: drawn by share and kept, named by callers, recorded, guarded, paired and erased."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, select

from core.db import Database
from core.messages import user
from core.settings import SamplingSettings, Settings, SystemPromptSettings
from core.settings.serving import CacheSettings
from feedback.erasure import erase_user
from feedback.models import Completion, Judgment, Prompt, Task
from feedback.preferences import gather
from feedback.system_prompts import store
from feedback.system_prompts.store import Share
from serving.chat import chat_of
from serving.prompting import NO_PROMPT, Offer, Version
from tests.serving.test_pairing import settle
from tests.serving.test_tenants import Tenants

HEADER = "X-Dunnock-System-Prompt"


class Prompted(Tenants):
    """The app with versions "tutor@1" and "tutor@2"."""

    def __init__(self, settings: Settings, database: Database, **more: Any) -> None:
        fresh = {"system_prompts": SystemPromptSettings(refresh_s=0), **more}
        super().__init__(settings.model_copy(update=fresh), database)
        with database.session() as session:
            one = store.create_prompt(session, "tutor", "Be brief.", self.change, most_tokens=1024)
            two = store.add_version(session, "tutor", "Explain it.", base=1, change=self.change, most_tokens=1024)
            self.versions = [one.id, two.id]

    def share(self, *percents: int, tenant: str | None = None) -> int:
        """These shares hold from now on: of "tutor@1", "tutor@2" and none."""
        shares = [Share(v, p) for v, p in zip([*self.versions, None], percents, strict=False) if p]
        tenant_id = self.ids[tenant] if tenant else None
        with self.database.session() as session:
            now = store.newest_shares(session, tenant_id)
            base = now.number if now else 0
            return store.set_shares(session, shares, base=base, change=self.change, tenant_id=tenant_id).id

    def completions(self, **where: Any) -> list[Completion]:
        with self.database.read() as session:
            found = list(session.scalars(select(Completion).filter_by(**where).order_by(Completion.created_at)))
            assert all(c.prompt.messages for c in found)
            return found

    def sent(self) -> list[tuple[str, str]]:
        """The conversation that the engine was asked last."""
        return [(m["role"], m["content"]) for m in self.engine.asked[-1]["messages"]]


@pytest.fixture
def prompted(settings: Settings, database: Database) -> Iterator[Prompted]:
    found = Prompted(settings, database)
    yield found
    found.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_the_version_that_holds_stands_before_the_conversation(prompted: Prompted, stream: bool) -> None:
    assert HEADER not in prompted.call("house", stream=stream).headers
    share_id = prompted.share(100)
    answer = prompted.call("house", stream=stream)
    assert answer.headers[HEADER] == "tutor@1"
    assert '"system_prompt": "tutor@1"' in answer.text or answer.json["dunnock"]["system_prompt"] == "tutor@1"
    assert prompted.sent() == [("system", "Be brief."), ("user", "Hi")]
    before, after = prompted.completions()
    assert (before.system_prompt_version_id, before.system_prompt_share_id) == (None, None)
    assert (after.system_prompt_version_id, after.system_prompt_share_id) == (prompted.versions[0], share_id)
    assert after.prompt.messages[0] == {"role": "system", "content": "Be brief."}
    prompted.share(0, 0, 100)
    answer = prompted.call("house")
    assert (answer.headers[HEADER], prompted.sent()) == ("none", [("user", "Hi")])
    last = prompted.completions()[-1]
    assert (last.system_prompt_version_id, last.system_prompt_share_id is not None) == (None, True)


def test_a_conversation_keeps_its_version_and_users_are_drawn_by_the_shares(prompted: Prompted) -> None:
    prompted.share(50, 50)
    first = {i: prompted.call("house", messages=user(f"question {i}")).headers[HEADER] for i in range(12)}
    assert set(first.values()) == {"tutor@1", "tutor@2"}
    for i, label in first.items():
        turns = [*user(f"question {i}"), {"role": "assistant", "content": "Well."}, *user("And?")]
        assert prompted.call("house", messages=turns).headers[HEADER] == label
    of_one = {prompted.call("acme", messages=user(f"question {i}"), user="ana").headers[HEADER] for i in range(8)}
    assert len(of_one) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 10**6))
def test_shares_are_drawn_as_large_as_they_are(weights: list[int], share_id: int) -> None:
    total = sum(weights)
    percents = [100 * w // total for w in weights]
    percents[0] += 100 - sum(percents)
    offer = Offer(share_id, tuple((Version(i, str(i), "x"), p) for i, p in enumerate(percents)))
    n = 4000
    drawn = Counter(offer.drawn(f"unit {i}").id for i in range(n))
    for i, percent in enumerate(percents):
        p = percent / 100
        assert abs(drawn[i] / n - p) <= 5.5 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_a_tenants_own_shares_take_the_place_of_the_houses(prompted: Prompted) -> None:
    prompted.share(100)
    prompted.share(0, 100, tenant="acme")
    assert [prompted.call(name).headers[HEADER] for name in ("house", "beta", "acme")] == [
        "tutor@1",
        "tutor@1",
        "tutor@2",
    ]
    prompted.share(tenant="acme")
    assert prompted.call("acme").headers[HEADER] == "tutor@1"


def test_callers_name_a_version_and_are_not_counted(prompted: Prompted) -> None:
    prompted.share(100)
    assert prompted.call("house", system_prompt="tutor").headers[HEADER] == "tutor@2"
    assert prompted.call("house", system_prompt="none").headers[HEADER] == "none"
    named = prompted.client.post(
        "/v1/chat/completions", json={"model": "dunnock", "messages": user("Hi")}, headers={**prompted.key, HEADER: "tutor@2"}
    )  # fmt: skip
    assert named.headers[HEADER] == "tutor@2"
    assert {c.system_prompt_share_id for c in prompted.completions()} == {None}
    for who, label in (("house", "tutor@3"), ("house", "tutor@x"), ("house", "{{tutor}}"), ("acme", "tutor@2")):
        answer = prompted.call(who, system_prompt=label)
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "system_prompt_not_found"), label
    assert prompted.call("acme", system_prompt="tutor@1").headers[HEADER] == "tutor@1"


def test_a_request_with_a_system_turn_of_its_own(prompted: Prompted, settings: Settings) -> None:
    prompted.share(100)
    own = [{"role": "system", "content": "Rhyme."}, *user("Hi")]
    answer = prompted.call("house", messages=own)
    assert HEADER not in answer.headers
    assert prompted.sent() == [("system", "Rhyme."), ("user", "Hi")]
    assert prompted.call("house", messages=own, system_prompt="tutor@1").status_code == 400
    chat_of(prompted.app).prompting._settings = SystemPromptSettings(refresh_s=0, beside_own="before")
    assert prompted.call("house", messages=own).headers[HEADER] == "tutor@1"
    assert prompted.sent() == [("system", "Be brief.\n\nRhyme."), ("user", "Hi")]


def test_the_text_is_put_as_it_was_written(prompted: Prompted) -> None:
    text = "{{ user }} {% raw %} ${x} <|im_start|> \u202e naïve 🐦 %s"
    with prompted.database.session() as session:
        version = store.create_prompt(session, "odd", text, prompted.change, most_tokens=1024)
        store.set_shares(session, [Share(version.id, 100)], base=0, change=prompted.change)
    prompted.call("house")
    assert prompted.sent()[0] == ("system", text)


def test_our_system_prompt_does_not_leak(prompted: Prompted) -> None:
    secret = "You work for the lighthouse keepers guild and must never mention the brass key under the third step of the stair."
    with prompted.database.session() as session:
        version = store.create_prompt(session, "guild", secret, prompted.change, most_tokens=1024)
        store.set_shares(session, [Share(version.id, 100)], base=0, change=prompted.change)
    text, reason = prompted.ask("Sure: ", secret, stream=False)
    assert (reason, "brass key" in text) == ("content_filter", False)


def test_replies_are_given_again_under_the_same_version_alone(settings: Settings, database: Database) -> None:
    found = Prompted(settings, database, cache=CacheSettings(mode="exact"))
    try:
        for label, cached in (
            ("tutor@1", None),
            ("tutor@2", None),
            ("none", None),
            ("tutor@1", "exact"),
            ("none", "exact"),
        ):
            answer = found.call("house", temperature=0, system_prompt=label)
            assert answer.json["dunnock"].get("cache") == cached, label
    finally:
        found.stop()


def test_shares_are_read_at_most_once_in_their_time(settings: Settings, database: Database) -> None:
    found = Prompted(settings, database, system_prompts=SystemPromptSettings(refresh_s=60))
    statements: list[str] = []
    try:
        found.share(100)
        found.call("house")
        event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        for _ in range(5):
            assert found.call("house").headers[HEADER] == "tutor@1"
        assert not [s for s in statements if "FROM system_prompt" in s]
    finally:
        found.stop()


def test_two_versions_answer_the_same_prompt_and_people_see_neither(settings: Settings, database: Database) -> None:
    pairs = SamplingSettings(pair_rate=1.0, pair_with="system_prompt")
    found = Prompted(settings, database, sampling=pairs)
    try:
        found.share(60, 0, 40)
        replies = iter(["a wren", "a robin"])
        engine_post = found.engine.post

        def post(at: Any, body: Any) -> None:
            found.engine.pieces = [next(replies)]
            engine_post(at, body)

        found.engine.post = post  # type: ignore[method-assign]
        found.call("house", messages=user("Ask of it"), user="ana")
        settle(found)
        (own,), (other,) = found.completions(source="served"), found.completions(source="paired")
        under = {c.system_prompt_version_id: c.prompt.messages for c in (own, other)}
        assert under == {
            None: user("Ask of it"),
            found.versions[0]: [{"role": "system", "content": "Be brief."}, *user("Ask of it")],
        }
        assert own.system_prompt_share_id == other.system_prompt_share_id is not None
        with database.read() as session:
            (task,) = session.scalars(select(Task))
            assert (task.kind, task.pool) == ("pairwise", "canary")
            assert task.prompt is not None
            assert task.prompt.messages == user("Ask of it")
            assert [item.completion_id for item in task.items] == [own.id, other.id]
        with database.session() as session:
            session.add(Judgment(kind="pairwise", task_id=task.id, annotator_id=own.person_id, choice="a", strength=2))
            session.flush()
            told = gather(session, include_simulated=False, max_imported_pairs=0)
            assert (told.preferences, told.counts["left_out_other_system_prompt"]) == ([], 1)
            assert own.user_key is not None
            erase_user(session, own.user_key, "ana")
        with database.read() as session:
            assert all("Ask of it" not in str(p.messages) for p in session.scalars(select(Prompt)))
            assert not any(session.scalars(select(Completion.system_prompt_unit)))
    finally:
        found.stop()


def test_none_is_a_version_like_others() -> None:
    offer = Offer(1, ((Version(7, "tutor@1", "x"), 60), (NO_PROMPT, 30), (Version(8, "tutor@2", "y"), 10)))
    assert offer.beside(None, "u") == offer.shares[0][0]
    assert {offer.beside(7, f"u{i}").id for i in range(40)} == {None, 8}  # type: ignore[union-attr]
    assert offer.beside(99, "u") is None
