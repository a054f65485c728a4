"""The web app beside a live engine: a tiny base that is policy version "base", and "v1", which is active."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask

from access.keys import create_key
from access.models import Person
from core.artifacts import hash_folder
from core.db import Database
from core.settings import Settings
from policy.engine.generation import Piece, Sampling
from serving.chat import close_chat
from serving.deferred import wait
from serving.routing import engine_client
from tests import factories
from tests.policy.engine.live import LiveEngine
from tests.tiny import make_tiny_adapter, make_tiny_base


@dataclass(frozen=True)
class Served:
    """A live engine, the folder of the active adapter, and the headers of a person's API keys."""

    engine: LiveEngine
    adapter: Path
    person: Person
    chat: dict[str, str]
    feedback: dict[str, str]

    def text(self, model: str, prompt: str, max_tokens: int) -> str:
        """What the policy writes, greedily: asked of the decoder itself."""
        decoder = self.engine.decoder
        ids = decoder.base.encode([{"role": "user", "content": prompt}])
        events = decoder.submit(model, ids, Sampling(max_tokens=max_tokens, temperature=0.0))
        return "".join(event.text for event in events if isinstance(event, Piece))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def engine(settings: Settings, tiny_base: Path) -> Iterator[LiveEngine]:
    """A live engine that takes adapters from the test's artifact folder."""
    engine = LiveEngine(tiny_base, settings.artifact_dir).start()
    yield engine
    engine.stop()


@pytest.fixture
def app(settings: Settings, database: Database, engine: LiveEngine) -> Iterator[Flask]:
    """The whole web app, with its engine."""
    from app import create_app

    app = create_app(settings.model_copy(update={"engine_port": engine.port, "max_prompt_tokens": 200}), database)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False)
    yield app
    with app.app_context():
        engine_client(settings).close()
    wait(close_chat(app))


@pytest.fixture
def served(settings: Settings, database: Database, tiny_base: Path, engine: LiveEngine) -> Served:
    """Versions base (retired), v1 (active) and v2 (candidate), and a lead with two keys."""
    adapter = make_tiny_adapter(tiny_base, settings.artifact_dir / "v1")
    recorded = {"adapter_path": "v1", "adapter_sha256": hash_folder(adapter)}
    with database.session() as session:
        factories.make_policy_version(session, "base", "retired")
        factories.make_policy_version(session, "v1", "active", **recorded)
        factories.make_policy_version(session, "v2", "candidate", **recorded)
        person = factories.make_person(session, role="lead")
        keys = {scope: create_key(session, person, scope, scope)[1] for scope in ("chat", "feedback")}
    headers = {scope: {"Authorization": f"Bearer {secret}"} for scope, secret in keys.items()}
    return Served(engine, adapter, person, **headers)
