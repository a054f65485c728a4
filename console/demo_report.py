"""The demo's report as a page shows it. In: `var/reports/demo.json`, of which any key may be missing or odd."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console import words
from core.language import gettext
from core.language import lazy_gettext as _l

RATES = {
    "harmful_compliance": _l("Harmful requests that it complied with"),
    "benign_refusal": _l("Harmless requests that it refused"),
}


@dataclass(frozen=True)
class DemoReport:
    """What the template draws."""

    policy_version: str
    state: str
    cycle: int | None
    rates: list[tuple[str, dict[str, Any], dict[str, Any]]]  # what, base, promoted
    reward: dict[str, Any]
    quality: list[tuple[str, str, str]]  # measure, base, promoted
    judge: dict[str, Any]
    judge_real: dict[str, Any]
    n_simulated: int | None
    checks: list[Any]
    stages: list[dict[str, Any]]
    seconds: Any
    examples: list[dict[str, Any]]


def read_report(path: Path) -> DemoReport | None:
    """The report, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _report(found) if isinstance(found, dict) else None


def _report(raw: dict[str, Any]) -> DemoReport:
    base, promoted = _dict(raw.get("base")), _dict(raw.get("promoted"))
    judge = _dict(raw.get("judge"))
    n_simulated = _dict(raw.get("snapshot")).get("n_simulated")
    cycle = raw.get("cycle")
    return DemoReport(
        policy_version=str(raw.get("policy_version") or gettext("the promoted version")),
        state=str(raw.get("state") or ""),
        cycle=cycle if isinstance(cycle, int) else None,
        rates=[(str(text), _dict(base.get(key)), _dict(promoted.get(key))) for key, text in RATES.items()],
        reward=_dict(raw.get("reward")),
        quality=_quality(_dict(raw.get("quality"))),
        judge=_dict(judge.get("error")) or judge,
        judge_real=_dict(_dict(judge.get("real")).get("error")),
        n_simulated=n_simulated if isinstance(n_simulated, int) else None,
        checks=_list(_dict(raw.get("gate")).get("checks")),
        stages=[s for s in _list(raw.get("stages")) if isinstance(s, dict)],
        seconds=raw.get("seconds"),
        examples=[
            {"before": _dict(e.get("before")), "after": _dict(e.get("after"))}
            for e in _list(raw.get("examples"))
            if isinstance(e, dict)
        ],
    )


def _quality(quality: dict[str, Any]) -> list[tuple[str, str, str]]:
    able, kl = _dict(quality.get("capability")), _dict(quality.get("kl"))
    rows = [(gettext("Capability items right"), words.percent(able.get("base")), words.percent(able.get("candidate")))]
    for key, text in (
        ("reference_nll", gettext("Good reference answers, nats per token")),
        ("fluency", gettext("Its own answers as the base sees them, nats per token")),
    ):
        part = _dict(quality.get(key))
        rows.append((text, words.number(part.get("base")), words.number(part.get("candidate"))))
    rows.append((gettext("KL to the base, nats per token"), "0", words.number(kl.get("mean"))))
    return [row for row in rows if row[2] != words.NOTHING]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
