"""Rows of a round that looks like one, for pictures: a promoted version with its stages and its gate report.

The completions and losses are made up; the suites, the judge, the rates and the gate are the real ones.
"""

import math
from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from core.db import utcnow
from core.intervals import mean_interval, rate
from core.settings import GateSettings, Settings
from evals.likelihood import Likelihoods
from evals.refusals import refusal
from evals.report import examples, judged, summarise
from evals.suites import benign, capability, harmful
from feedback.models import Snapshot
from finetune.cycle import DEMO_STAGES, finish_cycle, request_cycle
from finetune.gate import Evidence, as_rows, run_gate
from finetune.models import StageRun
from policy.models import GateReport, PolicyVersion
from policy.versions import ensure_base_version, promote, register_candidate
from reward.models import RewardModel

COMPLIES = "Sure. Here is what people usually do about that, one thing after the other."
TOKENS = 40


def sample_round(session: Session, settings: Settings) -> tuple[int, str]:
    """A promoted round: its candidate refuses what is harmful, its base never does. Its cycle's id, and the version."""
    base = ensure_base_version(session, "SmolLM2-135M-Instruct", "0" * 64)
    cycle = request_cycle(session, settings, "manual", stages=DEMO_STAGES)
    cycle.state, cycle.started_at = "running", utcnow()
    snapshot = Snapshot(content_sha256="0" * 64, path="snapshots/sample", manifest={"n_train": 160, "n_heldout": 40})
    session.add(snapshot)
    session.flush()
    version = register_candidate(
        session, base=base, cycle_id=cycle.id, snapshot_id=snapshot.id, adapter_path=f"adapters/v{cycle.id}",
        adapter_sha256="0" * 64, reference="base, adapters off",
    )  # fmt: skip
    held = rate(34, 40)
    clears_bar = held["low"] > 0.5
    evaluation = {
        "accuracy": held["rate"], "n": 40, "low": held["low"], "high": held["high"], "length_only": 0.5,
        "clears_bar": clears_bar,
    }  # fmt: skip
    session.add(
        RewardModel(
            cycle_id=cycle.id, snapshot_id=snapshot.id, path="rewards/sample", sha256="0" * 64,
            evaluation=evaluation, clears_bar=clears_bar,
        )
    )  # fmt: skip
    report = _gate_report(version, base, settings.gate)
    session.add(report)
    session.flush()
    promote(session, version, actor="cycle", reason=f"cycle {cycle.id} passed the gate", once=f"cycle:{cycle.id}")
    for name, result in _results(version.name, evaluation, report.passed).items():
        row = StageRun(
            cycle_id=cycle.id, name=name, state="done", progress=1.0, result=result, finished_at=utcnow(),
            seconds=100.0, peak_mb=1000.0,
        )  # fmt: skip
        session.add(row)
    finish_cycle(session, cycle.id, "promoted", f"{version.name} is active")
    return cycle.id, version.name


def _gate_report(version: PolicyVersion, base: PolicyVersion, settings: GateSettings) -> GateReport:
    """The gate's own verdict on made-up completions of the frozen suites."""
    prompts = [*harmful("frozen"), *benign("frozen")]
    mine = judged(prompts, [(p.reference or refusal(p.category, p.id), TOKENS) for p in prompts])
    theirs = judged(prompts, [(p.reference or COMPLIES, TOKENS) for p in prompts])
    nats = [0.1 + 0.01 * math.sin(i) for i in range(100)]
    same = {"candidate": 2.0, "base": 2.0, "difference": mean_interval([0.001 * math.sin(i) for i in range(100)])}
    likelihoods = Likelihoods(
        kl=mean_interval(nats), reference_nll=same, fluency=same,
        capability={"n": len(capability()), "candidate": 0.5, "base": 0.5},
    )  # fmt: skip
    passed, checks = run_gate(Evidence(mine, theirs, theirs, likelihoods, 34, 40), settings)
    facts = {
        "candidate": summarise(mine), "incumbent": summarise(theirs), "base": summarise(theirs),
        "incumbent_version": base.name, "likelihoods": asdict(likelihoods), "heldout_raised": 34, "heldout_n": 40,
        "examples": examples(theirs, mine),
    }  # fmt: skip
    return GateReport(
        policy_version_id=version.id, incumbent_id=base.id, passed=passed, checks=as_rows(checks), evidence=facts
    )


def _results(version: str, evaluation: dict[str, Any], passed: bool) -> dict[str, dict[str, Any]]:
    """What each stage leaves behind, in made-up figures."""

    def losses(start: float, end: float) -> list[dict[str, Any]]:
        return [
            {"step": i, "loss": end + (start - end) * math.exp(-i / 12) + 0.04 * math.sin(2.3 * i)}
            for i in range(1, 41)
        ]

    return {
        "collect": {"completions": 200, "policy_version": "base"},
        "rate": {"judgments": 200},
        "snapshot": {"n_train": 160, "n_heldout": 40, "n_simulated": 200, "counts": {"from_choice": 200}},
        "reward": {**evaluation, "n_train": 160, "steps": 40, "log": losses(0.69, 0.3)},
        "update": {"n_pairs": 160, "steps": 40, "loss": 1.0, "log": losses(2.5, 1.0), "policy_version": version},
        "gate": {"passed": passed, "failed": [], "policy_version": version},
        "promote": {"promoted": True, "policy_version": version},
    }
