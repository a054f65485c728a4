"""What a stage tells of its training steps, while it runs and afterwards: curves, the newest figures, and all of them as files.

In: the rows that `finetune.cycle.StageRecord` keeps; of rounds that are older than those, the log in the stage's result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from console.curves import Curve, curve_of
from console.figures import Column, Table
from core.errors import NotFound
from core.language import gettext
from finetune.models import StageRun, StageStep

SHOWN = 25
GUESSING = 0.6931  # nats: −log σ(0), the loss of a reward model that knows nothing


@dataclass(frozen=True)
class Steps:
    """The steps of one model that a stage trains: what is drawn, and a table of all figures, the newest step first.

    Attributes:
        name: of its files, and of what is opened on the page: the stage's, with the part where it has several.
    """

    name: str
    curves: list[Curve]
    table: Table

    @property
    def newest(self) -> list[dict[str, Any]]:
        """The rows that the page shows."""
        return self.table.rows[:SHOWN]


def steps_of(session: Session, run: StageRun, log: dict[str, list[dict[str, Any]]] | None = None) -> list[Steps]:
    """The steps of a stage by part.

    Args:
        log: what stands in the result by part, for where no rows are kept.
    """
    query = select(StageStep).where(StageStep.stage_run_id == run.id).order_by(StageStep.part, StageStep.step)
    rows: dict[str, list[dict[str, Any]]] = {}
    for kept in session.scalars(query):
        rows.setdefault(kept.part, []).append({"step": kept.step, **kept.figures})
    return [_steps(run, part, found) for part, found in (rows or log or {}).items() if found]


def counted(session: Session, cycle_id: int) -> dict[str, int]:
    """How many steps each stage of a cycle has told."""
    query = (
        select(StageRun.name, func.count())
        .join(StageStep, StageStep.stage_run_id == StageRun.id)
        .where(StageRun.cycle_id == cycle_id)
        .group_by(StageRun.name)
    )
    return {row[0]: row[1] for row in session.execute(query)}


def find_steps(found: Sequence[Steps], name: str) -> Steps:
    """Those of this name, or NotFound."""
    for steps in found:
        if steps.name == name:
            return steps
    choices = ", ".join(steps.name for steps in found) or "–"
    raise NotFound(gettext("there is no table %(name)r; there are %(choices)s", name=name, choices=choices))


def log_of(name: str, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The logs that stand in a stage's result, by part."""

    def rows(log: Any) -> list[dict[str, Any]]:
        plain = [row for row in log if isinstance(row, dict)] if isinstance(log, list) else []
        return [{"step": i, **row} for i, row in enumerate(plain, 1)]

    if name == "reward":
        return {"preference": rows(result.get("log")), "rules": rows((result.get("rules") or {}).get("log"))}
    return {"": rows(result.get("log"))}


def curves_of(stage: str, part: str, rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """What is drawn of some steps, as far as two of them have it."""
    guess = (GUESSING, gettext("guessing"))
    nats = gettext("loss, %(unit)s", unit=gettext("nats"))
    if stage == "reward":
        title = gettext("Loss of the rule reward model") if part == "rules" else gettext("Loss of the reward model")
        drawn = [curve_of(rows, "loss", title, nats, guide=guess)]
    elif any("reward" in row for row in rows):
        drawn = [
            curve_of(rows, "reward", gettext("Mean reward of the policy's completions"), gettext("reward")),
            curve_of(rows, "kl", gettext("KL to the base"), gettext("nats per completion")),
        ]
    else:
        drawn = [
            curve_of(rows, "loss", gettext("Loss of the update (preference + imitation)"), nats),
            curve_of(rows, "rewards/accuracies", gettext("Pairs of the step ranked as judged"), gettext("share")),
            curve_of(
                rows, "rewards/margins", gettext("Margin between the sides of a pair"), gettext("implicit reward")
            ),
        ]
    return [curve for curve in drawn if curve is not None]


def _steps(run: StageRun, part: str, rows: list[dict[str, Any]]) -> Steps:
    name = f"{run.name}-{part}" if part else run.name
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(
        name,
        gettext("Steps"),
        [Column(key, key, "significant") for key in names],
        rows[::-1],
        filters={"cycle_id": run.cycle_id},
        endpoint="console.steps_file",
    )
    return Steps(name, curves_of(run.name, part, rows), table)
