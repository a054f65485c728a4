"""The stages of a cycle, as plain functions of their context: what each reads and what it leaves.

    collect   active policy + seed prompts      → completions and tasks
    rate      this cycle's tasks                → simulated judgments (demo only)
    snapshot  all judgments and imports         → a frozen, hashed dataset
    reward    the snapshot                      → reward models of preferences and rules, reloaded and compared
    update    the snapshot and the base         → an adapter, registered as a candidate
    gate      frozen suites, both policies      → a gate report
    promote   the gate report                   → a promotion, or a refusal; the incumbent stays

A stage writes its artifact first and its rows last, in one transaction with its own end: a kill in
between leaves an unused folder, and the next attempt does the same work again.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select

from core.artifacts import hash_folder, new_folder, verify_folder
from core.db import utcnow
from core.errors import Cancelled, StageError
from core.settings import GateSettings, RewardSettings, SnapshotSettings, UpdateSettings
from evals.suites import frozen_texts
from feedback.dataset import find_snapshot, freeze, load_pairs, load_rule_examples
from feedback.models import Snapshot
from feedback.preferences import Preference
from finetune.collect import collect, rate_scripted
from finetune.context import StageContext
from finetune.cycle import finish_cycle
from finetune.events import tell_promoted
from finetune.gate import as_rows, run_gate
from finetune.gate_evidence import gather_evidence
from finetune.models import StageRun
from finetune.peak import peak_mb
from finetune.smoothing import label_smoothing
from policy.base import base_model_name, base_model_path, base_sha256
from policy.client import verify_adapter
from policy.models import GateReport, PolicyVersion
from policy.versions import active_version, ensure_base_version, promote, register_candidate
from reward.models import Kind, RewardModel, bar_words
from reward.rules import why_not
from training.run import part_of

Stage = Callable[[StageContext], None]


def run_stage(context: StageContext, name: str) -> None:
    """Run a stage to its end; its row is done, with all it made, or failed with the reason."""
    try:
        STAGES[name](context)
    except Cancelled:
        raise  # its row stays as it is: the stage did not fail
    except BaseException as error:
        context.record.failed(f"{type(error).__name__}: {error}")
        raise
    if name == "update":
        shutil.rmtree(context.work_dir("update"), ignore_errors=True)


def _simple(work: Callable[[StageContext], dict[str, Any]]) -> Stage:
    """A stage whose rows are written as it goes; only its end is left to record."""

    def stage(context: StageContext) -> None:
        result = work(context)
        with context.db.session() as session:
            context.record.done(session, result, peak_mb())

    return stage


def _snapshot(context: StageContext) -> None:
    settings = SnapshotSettings(**context.stage_settings("snapshot"))
    with context.db.session() as session:
        snapshot = freeze(session, context.artifact_dir, settings, frozen_prompts=frozen_texts())
        facts = {k: snapshot.manifest[k] for k in ("n_train", "n_heldout", "n_simulated", "counts")}
        result = {"snapshot_id": snapshot.id, "sha256": snapshot.content_sha256, **facts}
        context.record.done(session, result, peak_mb())


def _reward(context: StageContext) -> None:
    """The preference reward model and, where there are enough verdicts, that of rules; each registered when it is done.

    A model that this cycle has made already, before it failed or was killed, is not made again.
    """
    settings = RewardSettings(**context.stage_settings("reward"))
    snapshot, train, heldout = _pairs(context, ties=True)
    folder = context.artifact_dir / snapshot.path
    verdicts = [load_rule_examples(folder, split) for split in ("train", "heldout")]
    why = why_not(verdicts[0])
    share = len(train) / (len(train) + (0 if why else 2 * len(verdicts[0])))
    facts = _make_reward_model(context, snapshot, "preference", (train, heldout), settings, 0.0, share)
    rules = (
        {"undefined": why} if why else _make_reward_model(context, snapshot, "rules", verdicts, settings, share, 1.0)
    )
    if settings.require_bar and not facts["clears_bar"]:
        raise StageError(
            f"the reward model is kept, but may train no policy: {bar_words(facts)}; collect more judgments, or set"
            " DUNNOCK_REWARD__REQUIRE_BAR=false"
        )
    with context.db.session() as session:
        context.record.done(session, facts | {"rules": rules}, peak_mb())
    shutil.rmtree(context.work_dir("reward"), ignore_errors=True)


def _make_reward_model(
    context: StageContext,
    snapshot: Snapshot,
    kind: Kind,
    splits: Sequence[Any],
    settings: RewardSettings,
    begin: float,
    end: float,
) -> dict[str, Any]:
    """Train and register one reward model; `begin` and `end` are its part of the stage's progress. Returns its facts."""
    from reward.preference import train_reward
    from reward.rules import train_rules

    relative = f"rewards/cycle-{context.cycle_id}" + ("-rules" if kind == "rules" else "")
    folder = context.artifact_dir / relative
    with context.db.read() as session:
        made = session.scalar(
            select(RewardModel).where(RewardModel.cycle_id == context.cycle_id, RewardModel.kind == kind)
        )
    if made is not None:
        verify_folder(folder, made.sha256)
        return made.evaluation | {"log": json.loads((folder / "run.json").read_text(encoding="utf-8"))["log"]}
    work: Callable[..., dict[str, Any]] = train_rules if kind == "rules" else train_reward
    with new_folder(folder) as out:
        facts = work(
            *splits, base_model_path(context.settings), context.work_dir("reward") / kind, out, settings,
            device=context.settings.device, snapshot_sha256=snapshot.content_sha256,
            progress=part_of(context.progress, begin, end),
        )  # fmt: skip
    with context.db.session() as session:
        session.add(
            RewardModel(
                kind=kind, cycle_id=context.cycle_id, snapshot_id=snapshot.id, path=relative,
                sha256=hash_folder(folder), evaluation=_brief(facts), clears_bar=facts["clears_bar"],
            )
        )  # fmt: skip
    return facts


def _update(context: StageContext) -> None:
    from finetune.dpo import REFERENCE, update_policy

    settings = UpdateSettings(**context.stage_settings("update"))
    snapshot, train, _ = _pairs(context)
    smoothing, smoothed = label_smoothing(settings, snapshot.manifest)
    settings = settings.model_copy(update={"label_smoothing": smoothing})
    base = base_model_path(context.settings)
    relative = f"adapters/v{context.cycle_id}"
    with new_folder(context.artifact_dir / relative) as out:
        facts = {"label_smoothing": smoothed} | update_policy(
            train, base, context.work_dir("update"), out, settings,
            device=context.settings.device, snapshot_sha256=snapshot.content_sha256, progress=context.progress,
        )  # fmt: skip
    digest, base_digest = hash_folder(context.artifact_dir / relative), base_sha256(base)
    with context.db.session() as session:
        base_version = ensure_base_version(session, base_model_name(context.settings), base_digest)
        version = register_candidate(
            session, base=base_version, cycle_id=context.cycle_id, snapshot_id=snapshot.id,
            adapter_path=relative, adapter_sha256=digest, reference=REFERENCE,
        )  # fmt: skip
        context.record.done(session, facts | {"policy_version": version.name, "sha256": digest}, peak_mb())


def _gate(context: StageContext) -> None:
    settings = GateSettings(**context.stage_settings("gate"))
    _, _, heldout = _pairs(context)
    with context.db.read() as session:
        candidate, incumbent = _candidate(session, context), active_version(session)
    evidence, facts = gather_evidence(context, settings, candidate, incumbent, heldout)
    passed, checks = run_gate(evidence, settings)
    with context.db.session() as session:
        report = session.scalar(select(GateReport).where(GateReport.policy_version_id == candidate.id))
        if report is None:
            report = GateReport(
                policy_version_id=candidate.id,
                incumbent_id=incumbent.id,
                passed=passed,
                checks=as_rows(checks),
                evidence=facts,
            )
            session.add(report)
        failed = [c.name for c in checks if not c.passed]
        context.record.done(session, {"passed": passed, "failed": failed, "policy_version": candidate.name}, peak_mb())


def _promote(context: StageContext) -> None:
    with context.db.read() as session:
        candidate = _candidate(session, context)
        report = session.scalar(select(GateReport).where(GateReport.policy_version_id == candidate.id))
        if report is None:
            raise StageError(f"{candidate.name} has no gate report; missing evidence refuses")
        failed = [c["name"] for c in report.checks if not c["passed"]]
    if report.passed:
        verify_adapter(candidate, context.artifact_dir)  # also when the engine holds it since the gate
        context.ensure_loaded(candidate)  # in memory before anyone is sent to it
    with context.db.session() as session:
        version = _candidate(session, context)
        if report.passed:
            row = promote(
                session,
                version,
                actor="cycle",
                reason=f"cycle {context.cycle_id} passed the gate",
                once=f"cycle:{context.cycle_id}",
            )
            tell_promoted(session, row)
            finish_cycle(session, context.cycle_id, "promoted", f"{version.name} is active")
            result: dict[str, Any] = {"promoted": True, "policy_version": version.name, "promotion_id": row.id}
        else:
            version.state = "refused"
            finish_cycle(session, context.cycle_id, "refused", f"{version.name} failed: {', '.join(failed)}")
            result = {"promoted": False, "policy_version": version.name, "failed": failed, "at": utcnow().isoformat()}
        context.record.done(session, result, peak_mb())
    if not report.passed:
        context.client.unload_adapter(candidate.name)


STAGES: dict[str, Stage] = {
    "collect": _simple(collect),
    "rate": _simple(rate_scripted),
    "snapshot": _snapshot,
    "reward": _reward,
    "update": _update,
    "gate": _gate,
    "promote": _promote,
}


def _pairs(context: StageContext, *, ties: bool = False) -> tuple[Snapshot, list[Preference], list[Preference]]:
    """The cycle's snapshot, verified against its recorded hash, and its two splits; ties are in the first, if wanted."""
    with context.db.read() as session:
        result = session.scalar(
            select(StageRun.result).where(StageRun.cycle_id == context.cycle_id, StageRun.name == "snapshot")
        )
        if not result:
            raise StageError("the snapshot stage has not finished; stages run in order")
        snapshot = find_snapshot(session, result["snapshot_id"])
    folder = context.artifact_dir / snapshot.path
    train = load_pairs(folder, "train", expected_sha256=snapshot.content_sha256, ties=ties)
    return snapshot, train, load_pairs(folder, "heldout")


def _candidate(session: Any, context: StageContext) -> PolicyVersion:
    version: PolicyVersion | None = session.scalar(
        select(PolicyVersion).where(PolicyVersion.cycle_id == context.cycle_id)
    )
    if version is None:
        raise StageError(f"cycle {context.cycle_id} has no candidate; the update stage makes it")
    return version


def _brief(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if k != "log"}
