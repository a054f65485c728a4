"""The demo's report: from the stored rows of a cycle to `demo.json`, a readable page, and a few lines of text."""

from html import escape
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.artifacts import write_json, write_text
from core.errors import NotFound
from evals.judge_error import REAL, judge_error
from finetune.models import Cycle, StageRun
from policy.models import GateReport, PolicyVersion
from reward.models import RewardModel

RATES = (("harmful_compliance", "harmful requests complied with"), ("benign_refusal", "benign requests refused"))


def build_report(session: Session, cycle_id: int) -> dict[str, Any]:
    """All figures of one cycle, as they were recorded when it ran.

    Raises:
        NotFound: the cycle has no candidate or gate report.
    """
    version = session.scalar(select(PolicyVersion).where(PolicyVersion.cycle_id == cycle_id))
    gate = session.scalar(
        select(GateReport).where(GateReport.policy_version_id == (version.id if version is not None else -1))
    )
    reward = session.scalar(
        select(RewardModel).where(RewardModel.cycle_id == cycle_id, RewardModel.kind == "preference")
    )
    if version is None or gate is None or reward is None:
        raise NotFound(f"cycle {cycle_id} has no gate report to tell of")
    stages = session.scalars(select(StageRun).where(StageRun.cycle_id == cycle_id).order_by(StageRun.id)).all()
    snapshot = next((s.result for s in stages if s.name == "snapshot"), None) or {}
    keys = ("accuracy", "n", "low", "high", "length_only", "clears_bar")
    return {
        "cycle": cycle_id,
        "state": session.get_one(Cycle, cycle_id).state,
        "policy_version": version.name,
        "base": _rates(gate.evidence["base"]),
        "promoted": _rates(gate.evidence["candidate"]),
        "reward": {k: reward.evaluation[k] for k in keys},
        "gate": {"passed": gate.passed, "checks": gate.checks},
        "quality": gate.evidence["likelihoods"],
        "judge": judge_error() | {"real": judge_error(*REAL)},
        "snapshot": {k: snapshot.get(k) for k in ("n_train", "n_heldout", "n_simulated", "sha256", "counts")},
        "stages": [
            {"name": s.name, "seconds": round(s.seconds, 1), "peak_mb": round(s.peak_mb), "attempts": s.attempts}
            for s in stages
        ],
        "seconds": round(sum(s.seconds for s in stages), 1),
        "examples": gate.evidence["examples"],
    }


def _rates(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("harmful_compliance", "benign_refusal", "by_category", "by_kind", "mean_benign_tokens", "repetition")
    return {name: summary[name] for name in names}


def write_report(folder: Path, report: dict[str, Any]) -> str:
    """Write `demo.json` and `demo.html`; return the text for the terminal."""
    write_json(folder / "demo.json", report)
    text = as_text(report)
    write_text(folder / "demo.html", as_page(report, text))
    return f"{text}\nReport: {folder / 'demo.json'} and demo.html (or /reports/demo while `make run` is up)"


def percent(rate: dict[str, Any]) -> str:
    """A rate with its interval, e.g. "12.6 % (7.5–20.4, n 103)"."""
    if rate["rate"] is None:
        return "no evidence"
    return f"{rate['rate']:.1%} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f}, n {rate['n']})".replace("%", " %")


def as_text(report: dict[str, Any]) -> str:
    """The figures that matter, in a few lines."""
    quality, reward = report["quality"], report["reward"]
    nll, fluency, able = quality["reference_nll"], quality["fluency"], quality["capability"]
    lines = [f"{report['policy_version']}: {report['state']}", f"{'':34}{'base':>28}   {report['policy_version']}"]
    lines += [
        f"{label:34}{percent(report['base'][key]):>28}   {percent(report['promoted'][key])}" for key, label in RATES
    ]
    lines += [
        f"{'reference answers, nats/token':34}{_number(nll['base']):>28}   {_number(nll['candidate'])}",
        f"{'own answers under base, nats/token':34}{_number(fluency['base']):>28}   {_number(fluency['candidate'])}",
        f"{'capability (share right, n ' + str(able['n']) + ')':34}{_number(able['base']):>28}   {_number(able['candidate'])}",
        f"KL to base {_number(quality['kl']['mean'])} nats/token. Reward accuracy {_number(reward['accuracy'])}"
        f" ({_number(reward['low'])}–{_number(reward['high'])}, n {reward['n']}), length only"
        f" {_number(reward['length_only'])}.",
        f"Judge's own error on real completions: {percent(report['judge']['real']['error'])}; on text written to be"
        f" hard: {percent(report['judge']['error'])}.",
        "  ".join(f"{s['name']} {s['seconds']:.0f} s/{s['peak_mb']:,} MB" for s in report["stages"])
        + f"  = {report['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def as_page(report: dict[str, Any], text: str) -> str:
    """A page that stands alone; all text from models and people is escaped."""
    checks = "".join(
        f"<tr><td>{escape(c['name'])}</td><td>{escape(c['meaning'])}</td><td>{_number(c['value'])}</td>"
        f"<td>{escape(c['rule'])} {_number(c['threshold'])}</td><td>{'passed' if c['passed'] else 'failed'}</td></tr>"
        for c in report["gate"]["checks"]
    )
    rows = "".join(
        f"<tr><td>{escape(e['before']['prompt'])}</td><td><b>{escape(e['before']['verdict'])}</b><br>{escape(e['before']['completion'])}</td>"
        f"<td><b>{escape(e['after']['verdict'])}</b><br>{escape(e['after']['completion'])}</td></tr>"
        for e in report["examples"]
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Dunnock: the demo round</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
        "td,th{border:1px solid #aaa;padding:.4rem;vertical-align:top;text-align:left}pre{overflow:auto}"
        ":root{color-scheme:light dark}</style>"
        f"<h1>The demo round</h1><p>Judgments in this round are simulated: a scripted annotator rated the policy's own"
        f" completions. Rates carry their 95 % Wilson interval.</p><pre>{escape(text)}</pre><h2>Gate</h2>"
        f"<table><tr><th>check<th>meaning<th>value<th>allowed<th>verdict</tr>{checks}</table>"
        f"<h2>Examples from the frozen suites</h2><table><tr><th>request<th>before<th>after</tr>{rows}</table></html>"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
