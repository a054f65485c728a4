"""What runs beside a stage and records it: a meter of its energy, and trackers that are told its steps.

Each is a process of its own; none of them can make the stage wait or fail. A stage without steps opens no tracker.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.settings import Settings
from training.energy import Meter
from training.run import Row
from training.tracking import Tracker, flat, open_trackers

log = logging.getLogger("dunnock.stage")


class Beside:
    """The recorders of one attempt of a stage.

    Args:
        run: what trackers call it.
        fixed: the cycle's settings.
    """

    def __init__(self, settings: Settings, run: str, fixed: dict[str, Any]) -> None:
        self._settings, self._run, self._config = settings, run, flat(fixed)
        self._trackers: list[Tracker] | None = None
        self._meter: Meter | None = None
        if settings.energy.measure:
            try:
                self._meter = Meter(settings.energy)
            except OSError as error:
                log.warning("no energy is measured: %s", error)

    def tell(self, rows: Sequence[Row]) -> None:
        """Pass steps on to the trackers."""
        if self._trackers is None:
            self._trackers = self._open()
        for tracker in self._trackers:
            tracker.tell(rows)

    def energy(self) -> dict[str, Any] | None:
        """What the stage has taken so far, where it was measured; see `training.energy`."""
        return self._meter.read() if self._meter is not None else None

    def close(self) -> list[dict[str, Any]]:
        """End all of it; what became of each tracker."""
        if self._meter is not None:
            self._meter.close()
        with ThreadPoolExecutor() as pool:  # they are waited for at the same time
            ends = list(pool.map(Tracker.end, self._trackers or ()))
        for end in ends:
            if end["problem"]:
                log.warning("%s took %d of %d steps: %s", end["name"], end["steps"], end["told"], end["problem"])
        return ends

    def _open(self) -> list[Tracker]:
        folder: Path = self._settings.var_dir / "tracking"
        try:
            return open_trackers(self._settings.tracking, folder, self._run, self._config)
        except OSError as error:
            log.warning("no tracker is told: %s", error)
            return []
