"""What of the chat is kept, and what annotators are asked about."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from core.db import Database
from core.messages import user
from core.settings import SamplingSettings, Settings
from feedback.models import Completion, Task
from serving.recorder import drawn
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
