"""A house with something to pack: a tiny version with its adapter, rules, a tenant, and a guard's model, whose weights were drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import finetune.models  # noqa: F401 (the table of policy versions names that of cycles)
from access.tenants import Agreed, create_tenant
from bundle.signing import make_keys
from core.artifacts import hash_folder, write_json
from core.db import Database
from core.settings import Settings, get_settings
from feedback.models import Snapshot
from feedback.rules.store import create_rule, edit_rule, ensure_rules, retire_rule
from feedback.rules.thresholds import set_threshold
from feedback.rules.words import Change, RuleWords
from feedback.system_prompts.store import Share, add_version, create_prompt, set_shares
from policy.base import base_sha256
from reward.guard.encoder import Encoder
from reward.guard.student import Student, thresholds_of
from tests import factories
from tests.conftest import migrate
from tests.policy.engine.live import LiveEngine
from tests.reward.conftest import RULES, make_tiny_encoder
from tests.tiny import make_tiny_adapter, make_tiny_base

REFUSAL = "I would rather not talk about {}."
TENANT = "bakers"


@dataclass(frozen=True)
class House:
    """Where bundles are made, and their keys."""

    settings: Settings
    db: Database
    base: Path
    encoder: Path
    private: Path
    public: Path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Its settings are those of the environment too, for the processes that are started."""
    root = tmp_path_factory.mktemp("house")
    var, base = root / "var", make_tiny_base(root / "base")
    adapter = make_tiny_adapter(base, var / "artifacts" / "adapters" / "v1")
    encoder = make_tiny_encoder(root / "encoder")
    _make_guard(encoder, var / "artifacts" / "rewards" / "guard")
    engine = LiveEngine(base, var / "artifacts").start()
    make_keys(root / "private.pem", root / "public.pem")
    values = {
        "VAR_DIR": var, "CACHE_DIR": root / "cache", "BASE_MODEL": base, "GUARD__ENCODER": encoder, "DEVICE": "cpu",
        "ENGINE_URL": engine.url, "GGUF__THREADS": 1, "MAX_PROMPT_TOKENS": 200, "MAX_COMPLETION_TOKENS": 64,
        "GATE__MAX_TOKENS": 8, "GUARD__TIMEOUT_S": 20, "GUARD__OUTPUT_SECRETS": "record", "GUARD__THRESHOLD": 0.5,
        "BUNDLE__PRIVATE_KEY": root / "private.pem",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"DUNNOCK_{name}", str(value))
        patch.setenv("HF_HUB_OFFLINE", "1")
        get_settings.cache_clear()
        settings = get_settings()
        db = Database(settings.db_url)
        migrate(db)
        _fill(db, base, adapter, var / "artifacts")
        yield House(settings, db, base, encoder, root / "private.pem", root / "public.pem")
        db.dispose()
    engine.stop()
    get_settings.cache_clear()


def _make_guard(encoder_folder: Path, folder: Path) -> None:
    encoder = Encoder(encoder_folder, "cpu")
    drawn, d, h = torch.Generator().manual_seed(0), 16, encoder.width
    shapes = {"U": (d, 3 * h), "u": (d,), "A": (d, h), "V": (d, h), "S": (d, 2), "w": (d,), "b": ()}
    weights = {name: torch.randn(shape, generator=drawn) * 0.3 for name, shape in shapes.items()}
    thresholds = {"common": 0.5, "by_rule": [], "false_hits_frac": 0.1}
    student = Student(encoder, weights, 1.0, thresholds_of(thresholds))
    folder.mkdir(parents=True)
    student.save(folder)
    record = {"stage": "guard", "encoder_sha256": encoder.sha256, "temperature": 1.0, "thresholds": thresholds}
    write_json(folder / "run.json", record | {"probe": student.probe()})


def _fill(db: Database, base: Path, adapter: Path, artifacts: Path) -> None:
    with db.session() as session:
        ensure_rules(session)
        lead = factories.make_person(session, login="lead", role="lead")
        change = Change(author_id=lead.id, login="lead", note="a test")
        create_tenant(session, "lead", Agreed(TENANT), TENANT)
        for rule in RULES:
            words = RuleWords(title=rule.name, text=rule.text, refusal_text=REFUSAL.format(rule.name))
            create_rule(session, words, change)
        words = RuleWords(title="flour", text="Do not talk about flour.", refusal_text=REFUSAL.format("flour"))
        create_rule(session, words, change, TENANT)
        edit_rule(
            session,
            "butter",
            words.model_copy(update={"title": "butter", "text": RULES[1].text}),
            base=1,
            change=change,
        )
        retire_rule(session, "winter", base=1, change=change)
        set_threshold(session, "paris", 0.99, "record", base=0, change=change)
        create_prompt(session, "pip", "You are Pip.", change, most_tokens=500)
        pip = add_version(session, "pip", "You are Pip, and brief.", base=1, change=change, most_tokens=500)
        set_shares(session, [Share(pip.id, 70), Share(None, 30)], base=0, change=change)
        snapshot = Snapshot(content_sha256="5" * 64, path="snapshots/x", manifest={})
        session.add(snapshot)
        session.flush()
        digest = base_sha256(base)
        factories.make_policy_version(session, "base", state="retired", base_sha256=digest)
        factories.make_policy_version(
            session, "v1", base_sha256=digest, adapter_path="adapters/v1", adapter_sha256=hash_folder(adapter),
            snapshot_id=snapshot.id,
        )  # fmt: skip
        factories.make_reward_model(
            session, "guard", path="rewards/guard", sha256=hash_folder(artifacts / "rewards" / "guard")
        )
