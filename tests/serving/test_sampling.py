"""What of the chat is kept, and what annotators are asked about."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database
from core.messages import user
from core.settings import SamplingSettings, Settings
from feedback.models import Completion, Prompt, Task
from feedback.sampled import sampled as sampled_counts
from serving.sampling import drawn
from tests import factories
from tests.serving.test_guarding import Installed

MAIL = "wren@example.org"


@pytest.fixture
def sampled(settings: Settings, database: Database) -> Iterator[Installed]:
    """Every reply is sampled, without personal data."""
    sampling = SamplingSettings(rate=1.0, redact=True)
    found = Installed(settings.model_copy(update={"sampling": sampling}), database)
    yield found
    found.stop()


def rows(installed: Installed) -> tuple[list[Completion], list[Task]]:
    with installed.database.read() as session:
        completions = list(session.scalars(select(Completion)))
        assert all(completion.prompt for completion in completions)
        tasks = list(session.scalars(select(Task)))
        assert all(task.items for task in tasks)
        return completions, tasks


@pytest.mark.parametrize("stream", [False, True])
def test_replies_are_given_to_annotators_without_personal_data(sampled: Installed, stream: bool) -> None:
    said, _ = sampled.ask("Write to ", MAIL, " today", stream=stream, messages=user(f"I am {MAIL}"))
    assert MAIL in said  # the caller reads what was written
    ((reply,), (task,)) = rows(sampled)
    assert (reply.text, reply.prompt.messages) == ("Write to [EMAIL] today", user("I am [EMAIL]"))
    assert (task.kind, task.pool, [item.completion_id for item in task.items]) == ("rating", "uniform", [reply.id])


def test_a_reply_that_was_cut_is_not_rated(sampled: Installed) -> None:
    sampled.with_model().ask("a heron", stream=True)
    _, tasks = rows(sampled)
    assert [task.kind for task in tasks] == ["rule_check"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["a wren", "a heron"])
def test_who_does_not_want_it_kept_leaves_no_text(sampled: Installed, stream: bool, text: str) -> None:
    sampled.with_model().ask(text, stream=stream, store=False)
    ((reply,), tasks) = rows(sampled)
    assert (reply.text, reply.prompt.messages, tasks) == ("", user(""), [])
    assert reply.completion_tokens
    named: Any = [*user("Hi"), {"role": "assistant", "content": "", "completion_id": reply.id}, *user("And?")]
    body = {"model": "dunnock", "messages": named}
    assert sampled.client.post("/v1/chat/completions", json=body, headers=sampled.key).status_code == 404


def test_a_share_is_drawn_by_the_id_alone() -> None:
    ids = [f"cmpl-{i}" for i in range(4000)]
    tenth = {name for name in ids if drawn(name, 0.1)}
    assert 320 < len(tenth) < 480  # four standard deviations
    assert tenth < {name for name in ids if drawn(name, 0.2)}
    assert not any(drawn(name, 0.0) for name in ids)
    assert all(drawn(name, 1.0) for name in ids)


def asked(installed: Installed) -> dict[str, tuple[int, int]]:
    with installed.database.read() as session:
        return {reason: (n, left_out) for reason, n, left_out in sampled_counts(session, 1)}


def test_no_more_than_the_days_budget_is_asked(settings: Settings, database: Database) -> None:
    sampling = SamplingSettings(rate=1.0, tasks_per_day=2, tasks_per_day_of={"withheld": 1})
    installed = Installed(settings.model_copy(update={"sampling": sampling}), database).with_model()
    try:
        for text in ("a wren", "a heron") * 3:
            installed.ask(text, stream=False)
        completions, tasks = rows(installed)
        assert asked(installed) == {"rate": (2, 1), "withheld": (1, 2)}
        assert sorted(task.why for task in tasks) == ["drawn from the chat"] * 2 + ["the guard held this reply back"]
        assert Counter(each.source for each in completions) == {"served": 6, "withheld": 1}
    finally:
        installed.stop()


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_rule_that_is_only_recorded_is_checked_by_people(
    settings: Settings, database: Database, stream: bool
) -> None:
    installed = Installed(settings, database, output_rules="record").with_model()
    try:
        assert installed.ask("a heron", stream=stream) == ("a heron", "stop")
        installed.ask("a wren", stream=stream)
        completions, (task,) = rows(installed)
        assert (task.kind, task.pool, task.why) == ("rule_check", "flagged", "the guard found a rule broken")
        assert task.rule_version_id == installed.rules[1].id
        assert [item.completion_id for item in task.items] == [c.id for c in completions if c.text == "a heron"]
    finally:
        installed.stop()


def test_new_prompts_are_drawn_and_usual_ones_hardly(settings: Settings, database: Database) -> None:
    with database.session() as session:
        for number in range(80):
            factories.make_prompt(session, f"How do I clean bike {number} at home?")
    sampling = SamplingSettings(novelty_rate=0.5)
    installed = Installed(settings.model_copy(update={"sampling": sampling}), database)
    try:
        installed.ask("Well.", stream=False)  # the stored prompts are counted after the first reply
        for attempt in range(40):
            installed.ask("Well.", stream=False, messages=user("How do I clean bike 3 at home?"))
            if attempt % 10 == 0:
                words = " ".join(f"{word}{attempt}" for word in ("why", "do", "dunnocks", "sing"))
                installed.ask("Well.", stream=False, messages=user(words))
        _, tasks = rows(installed)
        with database.read() as session:
            drawn_prompts = [session.get_one(Prompt, task.prompt_id).messages[0]["content"] for task in tasks]
        new = [prompt for prompt in drawn_prompts if "dunnocks" in prompt]
        assert len(new) == 4  # each for sure: what is newer than most is drawn at more than twice the rate
        assert len(drawn_prompts) - len(new) < 20
        assert {task.why for task in tasks} == {"unlike what was asked before"}
    finally:
        installed.stop()
