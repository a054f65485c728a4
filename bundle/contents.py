"""What goes into a bundle: a policy version, the rules and settings that hold, the guard's model. In: the database. Out: a folder of files.

The folder is laid out as a device has it, its artifact folder:

    rules.json, settings.json        the rules in force with their words and what leads set for each; the guard's actions and
                                     thresholds, limits of the chat API
    system_prompts.json              the system prompts that conversations get, with their shares
    model/                           form "gguf": base and adapter in one file, with configuration and tokenizer
    adapter/                         form "adapter": the adapter alone; the base is named by its hash and has to be there
    guard/, encoder/                 the guard's model, where one is in force, and the encoder that it works with
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from access.tenants import tenant_id_of
from bundle.manifest import (
    ADAPTER,
    ENCODER,
    GGUF,
    GUARD,
    MODEL,
    PROMPTS,
    RULES,
    SETTINGS,
    Form,
    GuardPart,
    NeededBase,
    Policy,
)
from core import pretrained
from core.artifacts import verify_folder, write_json
from core.errors import ArtifactError, BundleRefused
from core.settings import GuardSettings, Settings, SystemPromptSettings
from core.settings.serving import Action
from feedback.models import RuleVersion, Snapshot
from feedback.rules.store import active_rules
from feedback.rules.thresholds import thresholds
from feedback.rules.words import RuleWords, words_of
from feedback.system_prompts.store import holding, shares_of, versions_by_id
from policy.base import base_model_path
from policy.client import verify_adapter
from policy.models import GateReport, PolicyVersion
from policy.versions import active_version, find_version
from reward.guard.encoder import encoder_path, encoder_sha256
from reward.guard.student import read_record
from reward.models import RewardModel, guard_in_force

if TYPE_CHECKING:
    from policy.gguf.convert import BaseType

GUARD_OF_DEVICE = {"encoder", "port", "threads", "timeout_s", "max_batch", "max_waiting", "refresh_s"}
"""Settings of the guard that say how it is run and not what it lets through: the device's own."""
CHAT = ("default_temperature", "max_prompt_tokens", "max_completion_tokens")
BESIDE_WEIGHTS = (".json", ".jinja", ".txt", ".model")
NOT_OF_THE_MODEL = ("base.json", "model.safetensors.index.json")


class BundledRule(BaseModel):
    """A rule as it is worded in this version of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slug: str
    version: int
    words: dict[str, Any]
    threshold: float | None = None
    action: Action = "block"

    def row(self, rule_id: int) -> RuleVersion:
        """The version as a device has it."""
        return RuleVersion(rule_id=rule_id, version=self.version, active=True, note="edge bundle", **self.words)


class BundledPrompt(BaseModel):
    """A system prompt's version and its percent of the conversations; without a name, that of none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    percent: int
    name: str | None = None
    version: int = 1
    text: str = ""


class BundledSettings(BaseModel):
    """Settings that are the bundle's and not the device's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    guard: dict[str, Any]
    system_prompts: dict[str, Any]
    chat: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What the database says of a bundle."""

    policy: Policy
    version: PolicyVersion
    rules: tuple[BundledRule, ...]
    prompts: tuple[BundledPrompt, ...]
    tenant: str | None
    guard: RewardModel | None
    guard_snapshot_sha256: str | None


def gather(session: Session, settings: Settings, name: str | None, tenant: str | None) -> Contents:
    """What is in force: of a version, else of the active one, and of the house, and of a tenant beside it where one is named.

    Raises:
        NotFound: there is no such version.
        InvalidInput: there is no such tenant.
    """
    version = find_version(session, name) if name else active_version(session)
    report = session.scalar(select(GateReport.passed).where(GateReport.policy_version_id == version.id))
    guard = guard_in_force(session) if settings.guard.model == "auto" else None
    tenant_id, held = tenant_id_of(session, tenant), thresholds(session)
    return Contents(
        Policy(
            name=version.name, base_model=version.base_model, base_sha256=version.base_sha256,
            adapter_sha256=version.adapter_sha256, snapshot_sha256=_sha256_of(session, version.snapshot_id), gate_passed=report,
        ),
        version,
        tuple(
            BundledRule(
                slug=v.rule.slug, version=v.version, words=words_of(v).model_dump(mode="json", warnings=False),
                **dict(zip(("threshold", "action"), held.get(v.rule_id, (None, "block")), strict=True)),
            )
            for v in active_rules(session, tenant_id)
        ),
        _prompts(session, tenant_id), tenant, guard, _sha256_of(session, guard.snapshot_id) if guard else None,
    )  # fmt: skip


def write_contents(
    contents: Contents, settings: Settings, folder: Path, form: Form, kind: "BaseType"
) -> tuple[NeededBase | None, GuardPart]:
    """Write all files of a bundle into an empty folder.

    Args:
        kind: of form "gguf", what the linear layers are stored as.

    Returns:
        What a device needs beside them, and what is said of the guard's model.

    Raises:
        ArtifactError: something is missing or damaged, or GGUF cannot hold this model.
    """
    write_json(folder / RULES, [rule.model_dump() for rule in contents.rules])
    write_json(folder / PROMPTS, [prompt.model_dump() for prompt in contents.prompts])
    write_json(folder / SETTINGS, of_the_bundle(settings).model_dump())
    adapter, base = verify_adapter(contents.version, settings.artifact_dir), base_model_path(settings)
    _require_weights(base, contents.policy.base_sha256)
    needs = None
    if form == "gguf":
        _write_gguf(base, adapter, folder, kind)
    else:
        needs = NeededBase(
            name=contents.policy.base_model, weights_sha256=contents.policy.base_sha256, files=base_files(base)
        )
        if adapter is not None:
            shutil.copytree(adapter, folder / ADAPTER)
    return needs, _write_guard(contents, settings, folder)


def of_the_bundle(settings: Settings) -> BundledSettings:
    """The settings that a bundle takes along."""
    guard = settings.guard.model_dump(mode="json", exclude=GUARD_OF_DEVICE)
    prompts = settings.system_prompts.model_dump(mode="json", exclude={"refresh_s"})
    return BundledSettings(guard=guard, system_prompts=prompts, chat={name: getattr(settings, name) for name in CHAT})


def read_rules(artifacts: Path) -> list[BundledRule]:
    """The rules of an unpacked bundle.

    Raises:
        BundleRefused: this Dunnock cannot read them.
    """
    try:
        rules = TypeAdapter(list[BundledRule]).validate_json((artifacts / RULES).read_text(encoding="utf-8"))
        if any(set(rule.words) != set(RuleWords.model_fields) for rule in rules):
            raise ValueError("their fields are others")
    except (OSError, ValueError) as error:
        raise _unreadable(RULES, error) from error
    return rules


def read_prompts(artifacts: Path) -> list[BundledPrompt]:
    """The system prompts of an unpacked bundle.

    Raises:
        BundleRefused: this Dunnock cannot read them.
    """
    try:
        return TypeAdapter(list[BundledPrompt]).validate_json((artifacts / PROMPTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(PROMPTS, error) from error


def read_settings(artifacts: Path) -> BundledSettings:
    """The settings of an unpacked bundle.

    Raises:
        BundleRefused: this Dunnock has not the same ones, so that some would not hold.
    """
    try:
        found = BundledSettings.model_validate_json((artifacts / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise _unreadable(SETTINGS, error) from error
    ours = {
        "guard": set(GuardSettings.model_fields) - GUARD_OF_DEVICE,
        "system_prompts": set(SystemPromptSettings.model_fields) - {"refresh_s"},
        "chat": set(CHAT),
    }
    for name, known in ours.items():
        if apart := set(getattr(found, name)) ^ known:
            raise BundleRefused(
                f"{SETTINGS} of the bundle and this Dunnock differ in {', '.join(sorted(apart))}; use the version that made it"
            )
    return found


def require_base(base: Path, needs: NeededBase) -> None:
    """Raise ArtifactError unless a folder holds the base model that a bundle needs: its weights, read anew, and its tokenizer."""
    _require_weights(base, needs.weights_sha256)
    if (found := base_files(base)) != needs.files:
        apart = sorted(name for name, _ in found.items() ^ needs.files.items())
        raise ArtifactError(
            f"the base model in {base} has another {apart[0]} than the one that the bundle was made with"
        )


def base_files(base: Path) -> dict[str, str]:
    """sha256 of what stands beside a base's weights and says how texts become tokens, by name."""
    return {path.name: pretrained.file_sha256(path) for path in _beside_weights(base)}


def _prompts(session: Session, tenant_id: int | None) -> tuple[BundledPrompt, ...]:
    shares = shares_of(holding(session, tenant_id))
    versions = versions_by_id(session, [share.version_id for share in shares if share.version_id is not None])
    found = []
    for share in shares:
        if share.version_id is None:
            found.append(BundledPrompt(percent=share.percent))
        else:
            version = versions[share.version_id]
            found.append(
                BundledPrompt(
                    percent=share.percent, name=version.system_prompt.name, version=version.version, text=version.text
                )
            )
    return tuple(found)


def _write_gguf(base: Path, adapter: Path | None, folder: Path, kind: "BaseType") -> None:
    from policy.gguf.base import merge_gguf

    merge_gguf(base, adapter, folder / GGUF, kind)
    for path in _beside_weights(base):
        shutil.copyfile(path, folder / MODEL / path.name)


def _write_guard(contents: Contents, settings: Settings, folder: Path) -> GuardPart:
    model = contents.guard
    if model is None:
        off = "DUNNOCK_GUARD__MODEL is off" if settings.guard.model == "off" else "none was trained that clears its bar"
        why = f"{off}; the rules go along, and no model asks about them, on the device as here"
        return GuardPart(model_sha256=None, encoder_sha256=None, snapshot_sha256=None, why=why)
    source, encoder = settings.artifact_dir / model.path, encoder_path(settings)
    verify_folder(source, model.sha256)
    needed, found = str(read_record(source)["encoder_sha256"]), encoder_sha256(encoder)
    if needed != found:
        raise ArtifactError(
            f"the guard's model was made with the encoder {needed[:12]}…, and {encoder} holds {found[:12]}…; set"
            " DUNNOCK_GUARD__ENCODER to the one of before"
        )
    shutil.copytree(source, folder / GUARD)
    (folder / ENCODER).mkdir()
    for path in [*_beside_weights(encoder), *sorted(encoder.glob("*.safetensors"))]:
        shutil.copyfile(path, folder / ENCODER / path.name)
    return GuardPart(
        model_sha256=model.sha256, encoder_sha256=needed, snapshot_sha256=contents.guard_snapshot_sha256,
        why="in force here when the bundle was made",
    )  # fmt: skip


def _beside_weights(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_file() and path.suffix in BESIDE_WEIGHTS)
    return sorted(path for path in found if not path.name.startswith(".") and path.name not in NOT_OF_THE_MODEL)


def _require_weights(base: Path, expected: str) -> None:
    """Whatever a note beside the weights says, they are read."""
    if (found := pretrained.weights_sha256(base)) != expected:
        raise ArtifactError(
            f"the base model in {base} has weights {found[:12]}…, and the policy version belongs to {expected[:12]}…; set"
            " DUNNOCK_BASE_MODEL to that base"
        )


def _sha256_of(session: Session, snapshot_id: int | None) -> str | None:
    return session.scalar(select(Snapshot.content_sha256).where(Snapshot.id == snapshot_id))


def _unreadable(name: str, error: Exception) -> BundleRefused:
    return BundleRefused(
        f"{name} of the bundle is none that this Dunnock reads ({error}); use the version that made it"
    )
