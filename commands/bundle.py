"""Making an edge bundle: its files, what they come to beside the full version, the manifest, the signed archive.

`flask bundle` calls `make_bundle`. Both engines are started for the measurement as they are for serving, one after the other,
on ports of their own; nothing that runs already is asked or disturbed.
"""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from access.audit import record
from access.names import COMMAND_LINE
from bundle.archive import files_of, write_archive
from bundle.contents import BundledSettings, gather, of_the_bundle, write_contents
from bundle.device import environment
from bundle.manifest import ADAPTER, ENCODER, GGUF, GUARD, MODEL, Form, Manifest
from bundle.quality import Answers, ask, compare, logps_of_gguf, logps_of_weights, prompts_of, references_of
from bundle.signing import private_key
from commands import processes
from core.db import Database, utcnow
from core.settings import Settings
from evals.suites import SuitePrompt
from policy.base import base_model_path
from policy.client import EngineClient, ensure_loaded, verify_adapter
from policy.models import PolicyVersion
from training.run import code_revision

if TYPE_CHECKING:
    from policy.gguf.convert import BaseType

LIBRARIES = ("torch", "transformers", "peft", "gguf", "xllamacpp", "safetensors", "cryptography")


@dataclass(frozen=True)
class Wanted:
    """What a bundle is to be.

    Attributes:
        version: a policy version's name; None: the active one.
        tenant: whose rules go along beside the house's.
        quantisation: of form "gguf".
        prompts: of the frozen suites, that quality is measured on; 0: all.
    """

    form: Form
    quantisation: "BaseType"
    prompts: int
    version: str | None = None
    tenant: str | None = None


def make_bundle(db: Database, settings: Settings, wanted: Wanted, target: Path, key_file: Path) -> Manifest:
    """Write a bundle to `target` and note it in the audit log.

    Raises:
        NotFound, InvalidInput: no such version or tenant.
        ArtifactError: something that belongs in it is missing or damaged, or there is no key.
        EngineError: an engine does not start or answer.
    """
    key = private_key(key_file)
    with db.read() as session:
        contents = gather(session, settings, wanted.version, wanted.tenant)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".bundle-") as scratch:
        place = Path(scratch).resolve()
        artifacts = place / "artifacts"
        artifacts.mkdir()
        needs, guard = write_contents(contents, settings, artifacts, wanted.form, wanted.quantisation)
        files = files_of(artifacts)
        draft = Manifest(
            format=1, form=wanted.form, quantisation=wanted.quantisation if wanted.form == "gguf" else None,
            made_at=utcnow().isoformat(timespec="seconds"), tenant=wanted.tenant, policy=contents.policy, needs=needs,
            guard=guard, versions=_versions(), files=files, sizes={}, quality={},
        )  # fmt: skip
        manifest = draft.model_copy(
            update={
                "sizes": _sizes(draft, settings, contents.version),
                "quality": _quality(draft, of_the_bundle(settings), settings, contents.version, place, wanted.prompts),
            }
        )
        write_archive(target, artifacts, manifest, key)
    with db.session() as session:
        after = {"form": wanted.form, "file": target.name, "bytes": target.stat().st_size, "tenant": wanted.tenant}
        record(session, COMMAND_LINE, "bundle.make", f"policy_version:{contents.version.id}", after=after)
    return manifest


def _quality(
    manifest: Manifest, bundled: BundledSettings, settings: Settings, version: PolicyVersion, place: Path, n: int
) -> dict[str, object]:
    prompts, artifacts = prompts_of(n), place / "artifacts"
    full = _answers({}, settings, version, prompts, settings.artifact_dir)
    merged = manifest.form == "gguf"
    there = PolicyVersion(
        name=version.name, adapter_path=None if merged or version.adapter_path is None else ADAPTER,
        adapter_sha256=version.adapter_sha256,
    )  # fmt: skip
    edge = _answers(environment(manifest, bundled, place), settings, there, prompts, artifacts)
    base, items = base_model_path(settings), references_of(prompts)
    full_logps = logps_of_weights(base, verify_adapter(version, settings.artifact_dir), items, settings)
    if merged:
        edge_logps = logps_of_gguf(artifacts / GGUF, artifacts / MODEL, items, settings)
    else:
        edge_logps = logps_of_weights(base, verify_adapter(there, artifacts), items, settings)
    return {
        **compare(prompts, full, edge, full_logps, edge_logps),
        "max_tokens": settings.gate.max_tokens,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "engines": {
            "full": "by URL" if settings.engine_url else settings.engine,
            "edge": "gguf" if merged else "transformers",
        },
    }


def _answers(
    changed: dict[str, str], settings: Settings, version: PolicyVersion, prompts: list[SuitePrompt], artifacts: Path
) -> Answers:
    """The answers of an engine that is started with a changed environment, or of the one that the settings name."""
    with _engine(changed, settings) as client:
        ensure_loaded(client, version, artifacts)
        return ask(client, version.name, prompts, settings.gate.max_tokens)


@contextmanager
def _engine(changed: dict[str, str], settings: Settings) -> Iterator[EngineClient]:
    if settings.engine_url and not changed:
        client = EngineClient(settings.engine_base_url, settings.engine_api_key, settings.engine_timeout_s)
        yield client
        client.close()
        return
    port = processes.free_port()
    kind = "gguf" if changed.get("DUNNOCK_ENGINE", settings.engine) == "gguf" else "transformers"
    own = settings.model_copy(update={"engine": kind, "engine_port": port, "engine_url": ""})
    child = processes.engine(own)
    child.environment |= {"DUNNOCK_VAR_DIR": str(settings.var_dir), **changed, "DUNNOCK_ENGINE_PORT": str(port)}
    child.start()
    client = EngineClient(own.engine_base_url, timeout_s=own.engine_timeout_s)
    try:
        processes.wait_ready(child, processes.engine_health_url(own), processes.ENGINE_START_S)
        yield client
    finally:
        client.close()
        child.stop()


def _sizes(manifest: Manifest, settings: Settings, version: PolicyVersion) -> dict[str, object]:
    """Bytes of the bundle's parts, beside those of the full version: base, adapter and guard as they lie here."""
    parts = dict.fromkeys((MODEL, ADAPTER, GUARD, ENCODER), 0)
    for file in manifest.files:
        folder = file.path.split("/")[0]
        parts[folder] = parts.get(folder, 0) + file.bytes
    base = sum(p.stat().st_size for p in base_model_path(settings).iterdir() if p.is_file())
    adapter = verify_adapter(version, settings.artifact_dir)
    mine = sum(p.stat().st_size for p in adapter.rglob("*") if p.is_file()) if adapter else 0
    full = {"base": base, "adapter": mine, "guard": parts[GUARD], "encoder": parts[ENCODER]}
    total, whole = sum(parts.values()), sum(full.values())
    needed = base if manifest.needs else 0
    return {
        "bundle": {**parts, "total": total},
        "full": {**full, "total": whole},
        "needed_on_the_device": needed,
        "share_of_full": round((total + needed) / whole, 4),
    }


def as_text(manifest: Manifest) -> str:
    """The manifest's figures in a few lines."""
    sizes, quality = manifest.sizes, manifest.quality
    logp, speed = quality["reference_logp"], quality["tokens_per_s"]
    lines = [
        f"{manifest.policy.name} as {manifest.form}{f' {manifest.quantisation}' if manifest.quantisation else ''},"
        f" {len(manifest.files)} files; guard's model: {manifest.guard.why}",
        f"  bytes             {sizes['bundle']['total']:,} of {sizes['full']['total']:,}; beside them {sizes['needed_on_the_device']:,} on the device",
        f"  equal texts       {_share(quality['equal_texts'])}",
    ]
    if logp["difference"]["n"]:  # suites of one's own may have no reference answers
        lines.append(
            f"  reference answers {logp['full']['mean']:.4f} and {logp['edge']['mean']:.4f} nats per token, difference"
            f" {logp['difference']['mean']:+.4f} ({logp['difference']['low']:+.4f} to {logp['difference']['high']:+.4f}, n {logp['difference']['n']})"
        )
    for name, label in (("harmful_compliance", "complies, harmful"), ("benign_refusal", "refuses, benign  ")):
        lines.append(f"  {label} {_share(quality[name]['full'])} full, {_share(quality[name]['edge'])} here")
    lines.append(
        f"  tokens/s          {speed['full']['together']:.1f} full, {speed['edge']['together']:.1f} here, {speed['at_once']} at once;"
        f" {speed['full']['alone']['mean']:.1f} and {speed['edge']['alone']['mean']:.1f} alone"
    )
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    if not found["n"]:
        return "none asked"
    return f"{100 * found['rate']:.1f} % ({100 * found['low']:.1f}–{100 * found['high']:.1f}, n {found['n']})"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**found, "python": platform.python_version(), "dunnock": code_revision()}
