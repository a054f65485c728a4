"""Trackers: MLflow, TensorBoard, Weights & Biases and the like are told the steps of a run, through accelerate's classes.

    python -m training.tracking     what a run starts for each tracker; it is told what to do as lines of JSON

In: rows of steps, as `training.run.Progress` has them. Out: a run in the tracker, whose metrics are named as the rows name
them, `part/name` where a stage trains several models. Each attempt of a stage is a run of its own, and tells the steps of its
checkpoint again. A tracker has a process of its own: it may fail or hang, which is recorded and ends nothing. Where trackers
keep something on this machine, it is below the run's folder.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.settings import TrackingSettings
from training.run import Row
from training.sidecar import Sidecar, leave_with_run, messages, own_output, say

RUN_NAME = {"mlflow": "run_name", "wandb": "name", "trackio": "name", "swanlab": "experiment_name"}
"""What a tracker calls the name of a run, apart from that of its project. Others have one name for both."""

NOT_INSTALLED = "it is not installed"
TOO_SLOW = "it did not take all of it within %(s)s s and was ended"
ENDED = "its process ended by itself"


class Tracker:
    """One tracker of one run, from this side."""

    def __init__(
        self, name: str, settings: TrackingSettings, folder: Path, run: str, config: Mapping[str, Any]
    ) -> None:
        self.name, self.wait_s, self.told = name, settings.wait_s, 0
        self._state: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._sidecar = Sidecar("training.tracking", folder / f"{name}.log")
        asked = {"tracker": name, "project": settings.project, "run": run, "folder": str(folder)}
        self._sidecar.tell({**asked, "config": dict(config), "wait_s": settings.wait_s})

    def tell(self, rows: Sequence[Row]) -> None:
        """Pass steps on; never waits and never fails."""
        self.told += len(rows)
        self._sidecar.tell({"rows": [dict(row) for row in rows]})
        self._hear()

    def end(self) -> dict[str, Any]:
        """Wait until it has taken everything; its name, the steps that it took of those told, and what went wrong or ""."""
        came = self._sidecar.end(self.wait_s)
        self._hear()
        self._sidecar.close()
        problem = self._state.get("problem", "")
        if not problem and not came:
            problem = TOO_SLOW % {"s": f"{self.wait_s:g}"}
        if not problem and not self._state.get("ended"):
            problem = ENDED
        return {"name": self.name, "steps": self._state.get("steps", 0), "told": self.told, "problem": problem}

    def _hear(self) -> None:
        for message in self._sidecar.heard():
            self._state |= message


def open_trackers(settings: TrackingSettings, folder: Path, run: str, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that are to be told of a run; none where none is set.

    Args:
        folder: where they keep what they keep on this machine, and their logs.
        run: the run's name.
        config: its settings, a flat mapping.
    """
    return [Tracker(name, settings, folder, run, config) for name in settings.names]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping: `{"update": {"beta": 0.1}}` is `{"update.beta": 0.1}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


# The tracker's own process --------------------------------------------------------------------------------------------


def main() -> int:
    """Open the tracker that is asked for and log rows to it until there are no more."""
    out, told = own_output(), messages()
    asked = next(told)
    leave_with_run(asked["wait_s"])
    os.chdir(asked["folder"])  # what trackers keep beside the program lands there
    steps = 0
    try:
        accelerator = _open(asked)
        for message in told:
            for row in message["rows"]:
                for tracker in accelerator.trackers:
                    tracker.log(metrics(row), step=int(row["step"]))
                steps += 1
            say(out, {"steps": steps})
        accelerator.end_training()
    except Exception as error:  # noqa: BLE001 (whatever a tracker raises is told and ends nothing)
        say(out, {"steps": steps, "problem": f"{type(error).__name__}: {str(error).strip()[:300]}"})
        return 1
    say(out, {"steps": steps, "ended": True})
    return 0


def metrics(row: Row) -> dict[str, float]:
    """What a tracker is told of a step: its finite numbers, named with their part."""
    prefix = f"{row['part']}/" if row.get("part") else ""
    return {
        f"{prefix}{name}": value
        for name, value in row.items()
        if name not in ("step", "part") and isinstance(value, int | float) and math.isfinite(value)
    }


def _open(asked: Mapping[str, Any]) -> Any:
    """An Accelerator with this tracker alone, opened; it runs no model."""
    from accelerate import Accelerator

    name, keyword = asked["tracker"], RUN_NAME.get(asked["tracker"])
    accelerator = Accelerator(cpu=True, log_with=name, project_dir=asked["folder"])
    project = asked["project"] if keyword else f"{asked['project']}/{asked['run']}"
    more = {name: {keyword: asked["run"]}} if keyword else {}
    accelerator.init_trackers(project, config=asked["config"], init_kwargs=more)
    if not accelerator.trackers:
        raise ModuleNotFoundError(NOT_INSTALLED)
    return accelerator


if __name__ == "__main__":
    sys.exit(main())
