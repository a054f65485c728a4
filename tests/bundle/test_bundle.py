"""A bundle is made of a house, and a device without network serves it: the same texts, the same rules, and as shut where a check is away."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from access.keys import authenticate
from access.models import AuditLog
from bundle.archive import unpack
from bundle.contents import gather, of_the_bundle, read_rules, read_settings, require_base, write_contents
from bundle.device import ensure_key, install
from bundle.manifest import Manifest
from bundle.signing import public_key
from commands.bundle import Wanted, as_text, make_bundle
from core.artifacts import hash_folder
from core.db import Database
from core.errors import ArtifactError, BundleRefused, InvalidInput, NotFound
from core.settings import GuardSettings
from feedback.models import Rule, Snapshot
from feedback.rules.store import active_rules
from feedback.rules.thresholds import thresholds
from feedback.rules.words import words_of
from feedback.system_prompts.store import holding, shares_of, versions_by_id
from policy.models import PolicyVersion
from policy.versions import active_version
from reward.guard.encoder import Encoder
from reward.guard.student import Student
from reward.models import RewardModel
from tests.bundle.conftest import TENANT, House
from tests.bundle.device import MODERATED
from tests.conftest import ROOT, migrate
from tests.tiny import make_tiny_base

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def gguf(house: House, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    path = tmp_path_factory.mktemp("out") / "v1.bundle"
    return path, make_bundle(house.db, house.settings, Wanted("gguf", "f32", 6), path, house.private)


def test_the_manifest_tells_what_was_measured(house: House, gguf: tuple[Path, Manifest]) -> None:
    path, manifest = gguf
    quality, sizes = manifest.quality, manifest.sizes
    assert manifest.policy.name == "v1"
    assert quality["prompts"] == quality["equal_texts"]["n"] == 6
    assert quality["equal_texts"]["rate"] > 0.5  # fp32 beside fp32: sums in another order
    assert quality["reference_logp"]["difference"]["n"] == 3
    assert abs(quality["reference_logp"]["difference"]["mean"]) < 0.01
    assert 0 < quality["token_logp_apart"]["mean"] < 0.01  # keys and values are kept in fp16
    assert quality["tokens_per_s"]["edge"]["together"] > 0
    assert quality["tokens_per_s"]["full"]["alone"]["n"] == 6
    assert {
        quality[name][side]["n"] for name in ("harmful_compliance", "benign_refusal") for side in ("full", "edge")
    } == {3}
    assert sizes["bundle"]["total"] < path.stat().st_size
    assert 0 < sizes["share_of_full"] < 2
    assert quality["engines"] == {"full": "by URL", "edge": "gguf"}
    assert "equal texts" in as_text(manifest)


def run_device(house: House, file: Path, var: Path) -> dict[str, Any]:
    """What a device says that serves a bundle; without network where this machine lets us have a network of our own.

    Its own settings would have the guard let everything through.
    """
    alone = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    command = [sys.executable, "-m", "tests.bundle.device", str(file), str(house.public), str(var)]
    command = ["unshare", "-rn", *command, "--alone"] if alone else command
    own = {"DUNNOCK_GUARD__OUTPUT_RULES": "off", "DUNNOCK_GUARD__FAIL_OPEN": '["/v1/chat/completions"]'}
    own |= {"DUNNOCK_BASE_MODEL": "none", "DUNNOCK_GUARD__ENCODER": "none"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | own)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["network"] is not alone
    return found


def test_a_device_without_network_serves_it(house: House, gguf: tuple[Path, Manifest], tmp_path: Path) -> None:
    path, manifest = gguf
    found = run_device(house, path, tmp_path / "var")
    assert (found["status"], found["model"], found["models"]) == (0, "v1", ["dunnock", "v1"])
    assert found["statuses"] == {"/v1/models": 401} | {p: 404 for p in found["statuses"] if p != "/v1/models"}
    assert found["ready"] == {"ready": True, "policy_version": "v1", "reasons": []}
    assert found["stream"] == found["text"]
    # its threshold is one that noise reaches: the reply is cut, and says what the rule says in its place
    rules = read_rules(place_of(tmp_path, manifest) / "artifacts")
    cut = found["guard"]["guard"]
    assert (cut["outcome"], cut["cut"], cut["check"]) == ("hit", True, "rules")
    assert found["text"].endswith(next(rule.words["refusal_text"] for rule in rules if rule.slug == cut["kind"]))
    # the guard's model, the rules in force, and no more of them
    scores = found["moderation"]["results"][0]["category_scores"]
    student = Student.load(house.settings.artifact_dir / "rewards" / "guard", Encoder(house.encoder, "cpu"))
    told = student.p_broken([("", MODERATED)], [rule.words["text"] for rule in rules])[0]
    assert {rule.slug: scores[rule.slug] for rule in rules} == pytest.approx(
        dict(zip((rule.slug for rule in rules), told, strict=True)), abs=1e-3
    )
    assert {"bread", "butter", "paris"} < set(scores)
    assert not {"winter", "bakers_flour"} & set(scores)
    # a guard that does not answer shuts it, whatever the device's own settings say
    assert found["unguarded"]["finish_reason"] == "content_filter"
    assert found["unguarded"]["guard"] == {"outcome": "not_scanned", "cut": True, "check": "rules", "kind": None}
    assert found["unguarded"]["message"]["content"] == house.settings.guard.refusal_text


def place_of(folder: Path, manifest: Manifest) -> Path:
    return folder / "var" / "bundles" / hashlib.sha256(manifest.canonical()).hexdigest()[:32]


@pytest.fixture(scope="module")
def installed(
    house: House, gguf: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Database, Path]]:
    """The database of a device, and its artifacts."""
    manifest, place = unpack(gguf[0], public_key(house.public), tmp_path_factory.mktemp("bundles"))
    db = Database(f"sqlite:///{place}/dunnock.db")
    migrate(db)
    with db.session() as session:
        assert install(session, manifest, place / "artifacts")
    yield db, place / "artifacts"
    db.dispose()


def test_rules_keep_their_names_words_and_versions(house: House, installed: tuple[Database, Path]) -> None:
    with house.db.read() as ours, installed[0].read() as theirs:
        told = [(v.rule.slug, v.version, words_of(v)) for v in active_rules(theirs)]
        assert told == [(v.rule.slug, v.version, words_of(v)) for v in active_rules(ours)]
        assert next(version for slug, version, _ in told if slug == "butter") == 2
        slugs = {rule.id: rule.slug for rule in theirs.scalars(select(Rule))}
        held = {slugs[rule_id]: set_ for rule_id, set_ in thresholds(theirs).items()}
        assert {slug for slug, set_ in held.items() if set_ != (None, "block")} == {"paris"}
        assert held["paris"] == (0.99, "record")
        shares = shares_of(holding(theirs))
        versions = versions_by_id(theirs, [share.version_id for share in shares if share.version_id])
        drawn = [(versions[s.version_id].label if s.version_id else None, s.percent) for s in shares]
        assert drawn == [("pip@2", 70), (None, 30)]
        assert [v.text for v in versions.values()] == ["You are Pip, and brief."]
        assert ours.scalar(select(PolicyVersion.snapshot_id)) != 0
        version = active_version(theirs)
        assert theirs.get_one(Snapshot, version.snapshot_id).content_sha256 == "5" * 64


def test_installing_again_changes_nothing_and_keys_are_made_once(
    gguf: tuple[Path, Manifest], installed: tuple[Database, Path]
) -> None:
    db, artifacts = installed
    with db.session() as session:
        assert not install(session, gguf[1], artifacts)
        secret = ensure_key(session, None)
        assert secret is not None
        assert authenticate(session, secret, "feedback").login == "edge"
        assert ensure_key(session, None) is None
        assert ensure_key(session, "brought-along-" + "k" * 32) is None
        assert authenticate(session, "brought-along-" + "k" * 32, "chat").login == "edge"
        with pytest.raises(InvalidInput, match="at least 32"):
            ensure_key(session, "short")
        assert session.scalar(select(func.count()).select_from(Rule)) == len(read_rules(artifacts))


def test_the_adapter_form_leaves_the_base_out_and_asks_for_the_very_same(house: House, tmp_path: Path) -> None:
    with house.db.read() as session:
        contents = gather(session, house.settings, None, TENANT)
    needs, guard = write_contents(contents, house.settings, tmp_path, "adapter", "q8_0")
    assert needs is not None
    assert guard.model_sha256 == hash_folder(tmp_path / "guard") == contents.guard.sha256
    assert hash_folder(tmp_path / "adapter") == contents.policy.adapter_sha256
    assert not (tmp_path / "model").exists()
    assert "bakers_flour" in [rule.slug for rule in read_rules(tmp_path)]
    base = Path(shutil.copytree(house.base, tmp_path / "base"))
    require_base(base, needs)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 1}))
    with pytest.raises(ArtifactError, match="another tokenizer_config"):
        require_base(base, needs)
    other = make_tiny_base(tmp_path / "other", seed=5)
    (other / "base.json").write_text(json.dumps({"weights_sha256": needs.weights_sha256}))  # a note is not believed
    with pytest.raises(ArtifactError, match="has weights"):
        require_base(other, needs)


def test_what_is_missing_or_damaged_is_not_packed(house: House, tmp_path: Path) -> None:
    with house.db.read() as session:
        contents = gather(session, house.settings, None, None)
        bare = gather(session, house.settings.model_copy(update={"guard": GuardSettings(model="off")}), "base", None)
        with pytest.raises(NotFound):
            gather(session, house.settings, "v9", None)
        with pytest.raises(InvalidInput, match="no tenant"):
            gather(session, house.settings, None, "nobody")
    assert bare.guard is None
    needs, guard = write_contents(bare, house.settings, tmp_path, "adapter", "q8_0")
    assert needs is not None
    assert guard.model_sha256 is None
    assert "no model asks" in guard.why
    for change in (
        {"version": PolicyVersion(name="v1", adapter_path="adapters/v1", adapter_sha256="0" * 64)},
        {"policy": contents.policy.model_copy(update={"base_sha256": "0" * 64})},
        {"guard": RewardModel(path="rewards/guard", sha256="0" * 64)},
    ):
        folder = tmp_path / "-".join(change)
        folder.mkdir()
        with pytest.raises(ArtifactError):
            write_contents(replace(contents, **change), house.settings, folder, "adapter", "q8_0")


def test_settings_that_this_dunnock_does_not_know_are_refused(house: House, tmp_path: Path) -> None:
    told = of_the_bundle(house.settings).model_dump()
    assert (told["guard"]["threshold"], told["guard"]["output_secrets"], told["chat"]["max_prompt_tokens"]) == (
        0.5,
        "record",
        200,
    )
    for change in ({**told["guard"], "more": 1}, {k: v for k, v in told["guard"].items() if k != "threshold"}):
        (tmp_path / "settings.json").write_text(json.dumps(told | {"guard": change}))
        with pytest.raises(BundleRefused, match="differ in"):
            read_settings(tmp_path)


def test_the_command_tells_of_a_changed_bundle(house: House, gguf: tuple[Path, Manifest], tmp_path: Path) -> None:
    data = bytearray(gguf[0].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.bundle").write_bytes(data)
    command = [
        sys.executable,
        "-m",
        "commands.serve_bundle",
        str(tmp_path / "changed.bundle"),
        "--key",
        str(house.public),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DUNNOCK_VAR_DIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "not what was signed: a byte was changed" in done.stderr
    assert not list(tmp_path.glob("bundles/*/artifacts"))


def test_a_bundle_is_in_the_audit_log(house: House, gguf: tuple[Path, Manifest]) -> None:
    with house.db.read() as session:
        entry = session.scalars(select(AuditLog).where(AuditLog.action == "bundle.make")).one()
        assert entry.after["bytes"] == gguf[0].stat().st_size
