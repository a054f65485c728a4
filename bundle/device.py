"""A device with an unpacked bundle: the settings that its processes get, and the private database that they work on.

The database is SQLite in the bundle's own folder. It holds what the house's would: the version, active; the rules, each in its
version; the guard's model; a person whose key calls the API. So the gateway is the house's own, and whatever it does there with a
guard that does not answer it does here.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from access.audit import record
from access.keys import create_key, has_keys, is_key
from access.models import Person
from access.names import COMMAND_LINE
from access.people import create_person, find_login
from bundle.contents import BundledPrompt, BundledSettings, read_prompts, read_rules
from bundle.manifest import ADAPTER, ENCODER, GGUF, GUARD, MODEL, Manifest
from core.errors import InvalidInput
from feedback.models import Rule, RuleThreshold, Snapshot
from feedback.system_prompts.models import SystemPrompt, SystemPromptShare, SystemPromptVersion
from policy.models import PolicyVersion
from policy.versions import adopt
from reward.models import RewardModel

LOGIN = "edge"
NOTE = "edge bundle"
LEAST_KEY = 32
"""Characters of an API key that is brought along."""


def environment(manifest: Manifest, settings: BundledSettings, place: Path) -> dict[str, str]:
    """What the processes of a device are told, over whatever is set there: all that the bundle decides, and that nothing is fetched.

    Args:
        place: the bundle's folder, with its files in `artifacts`.
    """
    artifacts = place / "artifacts"
    values: dict[str, Any] = {
        "VAR_DIR": place, "DATABASE_URL": "", "ENGINE_URL": "", "ENGINES__REPLICAS": [], "ENGINES__OVERFLOW": [],
        "ENGINE": "gguf" if manifest.form == "gguf" else "transformers",
        "GGUF__FILE": "", "GGUF__SERVES": "",
        **{name.upper(): value for name, value in settings.chat.items()},
        **{f"GUARD__{name.upper()}": value for name, value in settings.guard.items()},
        **{f"SYSTEM_PROMPTS__{name.upper()}": value for name, value in settings.system_prompts.items()},
    }  # fmt: skip
    if manifest.form == "gguf":
        values |= {
            "BASE_MODEL": artifacts / MODEL,
            "GGUF__FILE": artifacts / GGUF,
            "GGUF__SERVES": manifest.policy.name,
        }
    if manifest.guard.model_sha256 is None:
        values |= {"GUARD__MODEL": "off"}
    else:
        values |= {"GUARD__ENCODER": artifacts / ENCODER}
    told = {
        f"DUNNOCK_{name}": value if isinstance(value, str | Path) else json.dumps(value)
        for name, value in values.items()
    }
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {name: str(value) for name, value in told.items()} | offline


def install(session: Session, manifest: Manifest, artifacts: Path) -> bool:
    """Fill a migrated, empty database with what the bundle says; whether it was not done before.

    Raises:
        BundleRefused: the rules are none that this Dunnock reads.
    """
    policy, guard = manifest.policy, manifest.guard
    if session.scalar(select(PolicyVersion.id).where(PolicyVersion.name == policy.name)) is not None:
        return False
    person = create_person(session, LOGIN, secrets.token_urlsafe(24), "annotator")
    for rule in read_rules(artifacts):
        row = Rule(slug=rule.slug)
        session.add(row)
        session.flush()
        session.add(rule.row(row.id))
        told = {"threshold": rule.threshold, "action": rule.action}
        session.add(RuleThreshold(rule_id=row.id, number=1, author_id=person.id, note=NOTE, **told))
    _add_prompts(session, read_prompts(artifacts), person)
    merged = manifest.form == "gguf" or policy.adapter_sha256 is None
    version = PolicyVersion(
        name=policy.name, state="retired", base_model=policy.base_model, base_sha256=policy.base_sha256,
        adapter_path=None if merged else ADAPTER, adapter_sha256=None if merged else policy.adapter_sha256,
        snapshot_id=_snapshot(session, policy.snapshot_sha256),
    )  # fmt: skip
    adopt(session, version, actor=COMMAND_LINE, reason="edge bundle")
    if guard.model_sha256 is not None:
        session.add(
            RewardModel(
                kind="guard", snapshot_id=_snapshot(session, guard.snapshot_sha256), path=GUARD, sha256=guard.model_sha256,
                evaluation={}, clears_bar=True,
            )
        )  # fmt: skip
    after = {"policy": policy.name, "form": manifest.form, "made_at": manifest.made_at}
    record(session, COMMAND_LINE, "bundle.install", f"policy_version:{version.id}", after=after)
    return True


def ensure_key(session: Session, given: str | None) -> str | None:
    """Have a key of the installed bundle that calls the API: the one that is given, else a new one where there is none yet, which is returned.

    Raises:
        InvalidInput: the given one is too short to be a secret.
    """
    if given is not None and len(given) < LEAST_KEY:
        raise InvalidInput(f"the API key has {len(given)} characters; give at least {LEAST_KEY}, drawn at random")
    person = find_login(session, LOGIN)
    assert person is not None  # `install` came first
    known = has_keys(session, person) if given is None else is_key(session, given)
    if known:
        return None
    key, secret = create_key(session, person, "edge bundle", secret=given)
    record(session, COMMAND_LINE, "key.add", f"api_key:{key.id}", after={"login": LOGIN, "scopes": key.scopes})
    return secret if given is None else None


def _add_prompts(session: Session, prompts: Sequence[BundledPrompt], person: Person) -> None:
    """System prompts and their shares; nothing where there are none."""
    rows: dict[str, SystemPrompt] = {}
    shares: list[dict[str, int | None]] = []
    for each in prompts:
        version_id = None
        if each.name is not None:
            of = rows.setdefault(each.name, SystemPrompt(name=each.name))
            digest = hashlib.sha256(each.text.encode()).hexdigest()
            version = SystemPromptVersion(
                system_prompt=of, version=each.version, text=each.text, sha256=digest, author_id=person.id, note=NOTE
            )
            session.add(version)
            session.flush()
            version_id = version.id
        shares.append({"version_id": version_id, "percent": each.percent})
    if shares:
        session.add(SystemPromptShare(number=1, shares=shares, author_id=person.id, note=NOTE))


def _snapshot(session: Session, sha256: str | None) -> int | None:
    """The row that stands for a snapshot, which stays in the house; its hash is known here."""
    if sha256 is None:
        return None
    found = session.scalar(select(Snapshot).where(Snapshot.content_sha256 == sha256))
    if found is None:
        found = Snapshot(content_sha256=sha256, path="", manifest={"edge bundle": "not in it"})
        session.add(found)
        session.flush()
    return found.id
