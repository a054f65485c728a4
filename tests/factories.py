"""Real rows with small defaults, for tests and for `make seed`. Each function adds, flushes and returns a row."""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Session

from access.models import Person
from access.people import hash_password
from core.messages import user
from feedback.models import Completion, Prompt, Snapshot, Task
from feedback.prompts import add_completion, add_prompt
from feedback.tasks import create_task
from policy.models import PolicyVersion
from reward.models import RewardModel

PASSWORD = "seven small brown birds"
NOUNS = [
    "nest", "hedge", "river", "window", "ladder", "candle", "bridge", "garden", "kettle", "violin", "engine", "harbour", "lantern",
    "saddle", "meadow",
]  # fmt: skip

_numbers = itertools.count(1)


@lru_cache(maxsize=1)
def _password_hash() -> str:
    return hash_password(PASSWORD)


def question(number: int) -> str:
    """Prompts that share no three words in a row, so that each is a cluster of its own."""
    one, two = NOUNS[number % len(NOUNS)], NOUNS[(number * 4 + 1) % len(NOUNS)]
    return f"{one}{number} or {two}{number} for {number} people?"


def make_person(
    session: Session, login: str | None = None, role: str = "annotator", *, scripted: bool = False, active: bool = True
) -> Person:
    """A person who signs in with `PASSWORD`; a scripted one has no password."""
    person = Person(
        login=login or f"person-{next(_numbers)}",
        password_hash=None if scripted else _password_hash(),
        role=role,
        scripted=scripted,
        active=active,
    )
    session.add(person)
    session.flush()
    return person


def make_prompt(
    session: Session,
    text: str | None = None,
    *,
    source: str = "seed",
    category: str | None = None,
    harmful: bool | None = None,
) -> Prompt:
    """A prompt of one user turn."""
    messages = user(text or f"How does bird number {next(_numbers)} build its nest?")
    return add_prompt(session, messages, source, category=category, harmful=harmful)


def make_completion(
    session: Session, prompt: Prompt | None = None, text: str | None = None, source: str = "rollout", **more: Any
) -> Completion:
    """A completion of `prompt`, or of a new one. `more` goes to `add_completion`."""
    text = text or f"It weaves moss and hair, take {next(_numbers)}."
    return add_completion(session, prompt or make_prompt(session), text, source, **more)


def make_task(
    session: Session,
    kind: str = "pairwise",
    prompt: Prompt | None = None,
    texts: Sequence[str | None] = (None, None),
    **more: Any,
) -> Task:
    """A live task of new completions of these texts. `more` goes to `create_task`."""
    prompt = prompt or make_prompt(session)
    more.setdefault("source", f"test:{next(_numbers)}")
    return create_task(session, kind, prompt.id, [make_completion(session, prompt, text).id for text in texts], **more)


def make_pairwise_task(
    session: Session, prompt: Prompt | None = None, a: str | None = None, b: str | None = None, **more: Any
) -> Task:
    """A live pairwise task of two new completions with texts `a` and `b`. `more` goes to `create_task`."""
    return make_task(session, "pairwise", prompt, (a, b), **more)


def make_policy_version(session: Session, name: str = "base", state: str = "active", **more: Any) -> PolicyVersion:
    """A policy version; by default the base itself, active, without an adapter."""
    version = PolicyVersion(
        name=name, state=state, **{"base_model": "tiny", "base_sha256": "0" * 64, "adapter_path": None, **more}
    )
    session.add(version)
    session.flush()
    return version


def make_reward_model(session: Session, kind: str = "preference", **more: Any) -> RewardModel:
    """A registered reward model that clears its bar, with a snapshot of its own; there are no files behind it."""
    n = next(_numbers)
    snapshot = Snapshot(content_sha256=f"{n:064x}", path=f"snapshots/{n}", manifest={})
    session.add(snapshot)
    session.flush()
    given = {"path": f"rewards/{n}", "sha256": f"{n:064x}", "evaluation": {}, "clears_bar": True, **more}
    model = RewardModel(kind=kind, snapshot_id=snapshot.id, **given)
    session.add(model)
    session.flush()
    return model
