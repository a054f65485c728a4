"""The stages of a cycle, as plain functions of their context: what each reads and what it leaves.

    collect   active policy + seed prompts      → completions and tasks
    compare   two policies + seed prompts       → pairs of completions and tasks (when a lead asks for it)
    rate      this cycle's tasks                → simulated judgments (demo only)
    snapshot  all judgments and imports         → a frozen, hashed dataset
    reward    the snapshot                      → reward models of preferences and rules, and the guard's,
                                                  reloaded and compared
    update    the snapshot and the base (PPO: and
              the reward models)                → an adapter, registered as a candidate
    gate      frozen suites, both policies      → a gate report
    promote   the gate report                   → a promotion, or a refusal; the incumbent stays

A stage writes its artifact first and its rows last, in one transaction with its own end: a kill in
between leaves an unused folder, and the next attempt does the same work again. The stages that train may run on several
ranks at once (`training.ranks`), of which only the main one writes.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.artifacts import hash_folder, verify_folder
from core.db import utcnow
from core.errors import Cancelled, StageError
from core.settings import GateSettings, PpoSettings, RewardSettings, SnapshotSettings, UpdateSettings
from evals.suites import frozen_texts
from feedback.dataset import find_snapshot, freeze, load_pairs, load_rule_examples
from feedback.models import Snapshot
from feedback.preferences import Preference
from finetune.collect import collect, rate_scripted
from finetune.compare import compare
from finetune.context import StageContext
from finetune.cycle import finish_cycle
from finetune.events import tell_promoted
from finetune.gate import as_rows, run_gate
from finetune.gate_evidence import gather_evidence
from finetune.guard import make_guard
from finetune.informative import rank_waiting
from finetune.models import StageRun
from finetune.peak import peak_mb
from finetune.rewards import rule_weights
from finetune.smoothing import label_smoothing
from finetune.start import Parent, Start
from policy.base import base_model_name, base_model_path, base_sha256
from policy.client import verify_adapter
from policy.models import GateReport, PolicyVersion
from policy.versions import active_version, ensure_base_version, promote, register_candidate
from reward.models import Kind, RewardModel, bar_words
from reward.rules import why_not
from training import ranks
from training.run import clear_errors, part_of

Stage = Callable[[StageContext], None]


def run_stage(context: StageContext, name: str) -> None:
    """Run a stage to its end; its row is done, with all it made, or failed with the reason."""
    try:
        with clear_errors():
            STAGES[name](context)
    except Cancelled:
        raise  # its row stays as it is: the stage did not fail
    except BaseException as error:
        if not ranks.lost_another(error):
            context.record.failed(f"{type(error).__name__}: {error}")
        raise
    if name == "update" and ranks.is_main():
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
        facts = {k: snapshot.manifest[k] for k in ("n_train", "n_heldout", "n_simulated", "counts", "shares")}
        result = {"snapshot_id": snapshot.id, "sha256": snapshot.content_sha256, **facts}
        context.record.done(session, result, peak_mb())


def _reward(context: StageContext) -> None:
    """The preference reward model and, where there are enough verdicts, that of rules and the guard's, which learns from it.

    Each is registered when it is done.

    A model that this cycle has made already, before it failed or was killed, is not made again.
    """
    settings = RewardSettings(**context.stage_settings("reward"))
    base, _ = _base(context)
    snapshot, train, heldout = _pairs(context, ties=True)
    folder = context.artifact_dir / snapshot.path
    verdicts = [load_rule_examples(folder, split) for split in ("train", "heldout")]
    why = why_not(verdicts[0])
    share = len(train) / max(1, len(train) + (0 if why else 2 * len(verdicts[0])))
    make = partial(_make_reward_model, context, snapshot, base, settings)
    facts = make("preference", (train, heldout), 0.0, share)
    rules = {"undefined": why} if why else make("rules", verdicts, share, 1.0 if settings.guard == "off" else 0.9)
    if settings.require_bar and not facts["clears_bar"]:
        raise StageError(
            f"the reward model is kept, but may train no policy: {bar_words(facts)}; collect more judgments, or set"
            " DUNNOCK_REWARD__REQUIRE_BAR=false"
        )
    if not ranks.is_main():
        return
    guard = make_guard(context, snapshot, base, settings)
    rank_waiting(context)  # by these models from here on
    with context.db.session() as session:
        context.record.done(session, facts | {"rules": rules, "guard": guard}, peak_mb())
    shutil.rmtree(context.work_dir("reward"), ignore_errors=True)


def _make_reward_model(
    context: StageContext,
    snapshot: Snapshot,
    base: Path,
    settings: RewardSettings,
    kind: Kind,
    splits: Sequence[Any],
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
    with ranks.new_folder_of_main(folder) as out:
        facts = work(
            *splits, base, context.work_dir("reward") / kind, out, settings,
            device=context.settings.device, snapshot_sha256=snapshot.content_sha256,
            progress=part_of(context.progress, begin, end, named=kind),
        )  # fmt: skip
    if not ranks.is_main():
        return facts
    with context.db.session() as session:
        session.add(
            RewardModel(
                kind=kind, cycle_id=context.cycle_id, snapshot_id=snapshot.id, path=relative,
                sha256=hash_folder(folder), evaluation=_brief(facts), clears_bar=facts["clears_bar"],
            )
        )  # fmt: skip
    return facts


def _update(context: StageContext) -> None:
    settings = UpdateSettings(**context.stage_settings("update"))
    snapshot, train, _ = _pairs(context, ties=settings.method == "dpo")  # which leaves them out, and counts them
    base, base_digest = _base(context)
    start = _start(context, settings, base_digest)
    relative = f"adapters/v{context.cycle_id}"
    update = _update_by_dpo if settings.method == "dpo" else _update_by_reward
    with ranks.new_folder_of_main(context.artifact_dir / relative) as out:
        facts = {"method": settings.method} | update(context, settings, start, snapshot, train, base, out)
    if not ranks.is_main():
        return
    digest = hash_folder(context.artifact_dir / relative)
    with context.db.session() as session:
        base_version = ensure_base_version(session, base_model_name(context.settings), base_digest)
        version = register_candidate(
            session, base=base_version, cycle_id=context.cycle_id, snapshot_id=snapshot.id,
            adapter_path=relative, adapter_sha256=digest, reference=start.reference,
            parent=start.parent.name if start.parent else None,
        )  # fmt: skip
        context.record.done(session, facts | {"policy_version": version.name, "sha256": digest}, peak_mb())


def _base(context: StageContext) -> tuple[Path, str]:
    """The base's folder and hash; one that this database's versions do not stand on is refused before anything is trained."""
    base = base_model_path(context.settings)
    digest = base_sha256(base)
    if ranks.is_main():
        with context.db.session() as session:
            ensure_base_version(session, base_model_name(context.settings), digest)
    return base, digest


def _start(context: StageContext, settings: UpdateSettings, base_digest: str) -> Start:
    """Where the update begins: for one that continues, at the adapter that is active now, its hash checked."""
    if settings.adapter == "fresh":
        return Start.of(settings, None)
    with context.db.read() as session:
        incumbent = active_version(session)
    folder = verify_adapter(incumbent, context.artifact_dir)
    if folder is None:
        return Start.of(settings, None)
    if incumbent.base_sha256 != base_digest:
        raise StageError(
            f"the adapter of {incumbent.name} was trained on the base {incumbent.base_sha256[:12]}…, and the settings name"
            f" {base_digest[:12]}…; use that base, or DUNNOCK_UPDATE__ADAPTER=fresh"
        )
    return Start.of(settings, Parent(incumbent.name, folder, str(incumbent.adapter_sha256)))


def _update_by_dpo(
    context: StageContext,
    settings: UpdateSettings,
    start: Start,
    snapshot: Snapshot,
    train: list[Preference],
    base: Path,
    out: Path,
) -> dict[str, Any]:
    from finetune.dpo import update_policy

    smoothing, smoothed = label_smoothing(settings, snapshot.manifest)
    return {"label_smoothing": smoothed} | update_policy(
        train, base, context.work_dir("update"), out, settings.model_copy(update={"label_smoothing": smoothing}),
        device=context.settings.device, start=start, snapshot_sha256=snapshot.content_sha256,
        progress=context.progress,
    )  # fmt: skip


def _update_by_reward(
    context: StageContext,
    update: UpdateSettings,
    start: Start,
    snapshot: Snapshot,
    train: list[Preference],
    base: Path,
    out: Path,
) -> dict[str, Any]:
    from finetune import rloo
    from finetune.ppo.rollouts import Rollout
    from finetune.ppo.update import EngineRollouts, update_policy
    from reward.service import RewardService

    settings = PpoSettings(**context.stage_settings("ppo"))
    reward, rules = _reward_models(context, settings)
    with context.db.read() as session:
        weights = rule_weights(session, RewardSettings(**context.stage_settings("reward"))) if rules else []
    service = RewardService.open(context.artifact_dir, base, reward, rules, weights, device=context.settings.device)

    def score(rows: Sequence[Rollout]) -> list[float]:
        """A completion that was cut is scored as if it had ended; that it did not is what the missing-EOS penalty is for."""
        return service.score([([{"role": r, "content": c} for r, c in row.prompt.messages], row.text) for row in rows])

    facts = {
        "snapshot_sha256": snapshot.content_sha256, "reward_sha256": reward.sha256, "reward_model": reward.path,
        "rules_sha256": rules.sha256 if rules else None, "rules": [w.name for w in weights],
    }  # fmt: skip
    given = (train, score, base, context.work_dir("update"), out, settings)
    common: Any = {"start": start, "device": context.settings.device, "facts": facts, "progress": context.progress}
    if update.method in ("rloo", "grpo"):
        return rloo.update_policy(update.method, *given, **common)
    by_engine = settings.rollouts == "engine" or (settings.rollouts == "auto" and context.settings.engine_url)
    name = f"v{context.cycle_id}-ppo"
    engine = EngineRollouts(context.client, name, context.artifact_dir / "rollouts" / name) if by_engine else None
    return update_policy(*given, engine=engine, **common)


def _reward_models(context: StageContext, settings: PpoSettings) -> tuple[RewardModel, RewardModel | None]:
    """The cycle's preference reward model, and that of rules where there is one that clears its bar."""
    with context.db.read() as session:
        of_cycle = select(RewardModel).where(RewardModel.cycle_id == context.cycle_id)
        found = {model.kind: model for model in session.scalars(of_cycle)}
    reward, rules = found.get("preference"), found.get("rules")
    if reward is None:
        raise StageError(
            f"cycle {context.cycle_id} has no reward model to learn from; give the round a reward stage, or use"
            " DUNNOCK_UPDATE__METHOD=dpo"
        )
    if settings.require_bar and not reward.clears_bar:
        raise StageError(
            "the reward model does not clear its bar over the length-only baseline, so a policy may not be trained on it;"
            " collect more judgments, or set DUNNOCK_PPO__REQUIRE_BAR=false for a trial"
        )
    return reward, rules if rules is not None and rules.clears_bar else None


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
    "compare": _simple(compare),
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
