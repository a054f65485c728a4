"""The energy that a stage takes and the CO2 of making it: estimates by codecarbon, which works without a network.

    python -m training.energy     what a stage starts beside itself; it is told what to do as lines of JSON

Out: a reading, `{"kwh", "co2_kg", "seconds", "watts", "country", "cpu", "gpu", "ram", "estimated_by"}`. It is of the whole machine, since
stages let the engine work too, and whatever else runs on it is counted as well. Where the processor has counters (RAPL) and
the GPU does (NVML), those are read; in most virtual machines there are none, and the processor's power is taken to be its
nominal one by how busy it is. The reading says which it was. The first seconds, before codecarbon is up, are counted with the
mean power of the rest. Nothing here makes a stage fail: where there is no reading, there is none.
"""

import select
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from core.settings import EnergySettings
from training.sidecar import Sidecar, leave_with_run, messages, own_output, say

AFTER_S = 5.0
"""A stage that is over sooner is not measured: to get ready would cost more than it."""
EVERY_S = 5.0
SUMMED = ("kwh", "co2_kg", "seconds")
CPU_MODES = {
    "intel_rapl": "counters (RAPL)",
    "windows_emi": "counters (EMI)",
    "intel_power_gadget": "counters (Power Gadget)",
    "cpu_load": "load times nominal power, %(watts)s W",
    "constant": "half the nominal power, %(watts)s W",
}
UNKNOWN = "not told by codecarbon"


class Meter:
    """The meter of this process. `read` while it runs, `close` at the end."""

    running: "Meter | None" = None

    def __init__(self, settings: EnergySettings) -> None:
        self._began = time.monotonic()
        self._last: dict[str, Any] | None = None
        self._sidecar = Sidecar("training.energy")
        self._sidecar.tell(settings.model_dump())
        Meter.running = self

    def read(self) -> dict[str, Any] | None:
        """What was taken from the beginning to now; None as long as nothing was measured."""
        for message in self._sidecar.heard():
            self._last = message
        return scaled(self._last, time.monotonic() - self._began) if self._last else None

    def close(self) -> None:
        """End it."""
        self._sidecar.end(0.2)
        self._sidecar.close()
        if Meter.running is self:
            Meter.running = None


def so_far() -> dict[str, Any] | None:
    """The reading of this process's meter; None where it has none or nothing was measured."""
    return Meter.running.read() if Meter.running is not None else None


def scaled(reading: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A reading of some of a time as one of all of it, at its mean power."""
    factor = seconds / reading["seconds"]
    found = dict(reading) | {name: reading[name] * factor for name in SUMMED}
    return found | {"watts": 3.6e6 * found["kwh"] / seconds}


def added(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Two readings as one: amounts added, what was measured how as the later one says. None is no reading."""
    if before is None or now is None:
        found = before if now is None else now
        return dict(found) if found is not None else None
    total = dict(now) | {name: before[name] + now[name] for name in SUMMED}
    return total | {"watts": 3.6e6 * total["kwh"] / total["seconds"]}


# The meter's own process ----------------------------------------------------------------------------------------------


def main() -> int:
    """Measure until there is nobody to tell."""
    out = own_output()
    asked = EnergySettings(**next(messages()))
    leave_with_run(EVERY_S)
    if _over(AFTER_S):
        return 0
    read, first = _start(asked), True
    while not _over(1.0 if first else EVERY_S):
        reading = read()
        if reading is not None:
            say(out, reading)
            first = False
    return 0


def _over(wait_s: float) -> bool:
    """Wait; whether the run is over before that."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _start(asked: EnergySettings) -> Any:
    """Start codecarbon; a function that reads it."""
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.base_output import BaseOutput

    class Latest(BaseOutput):  # type: ignore[misc]
        total: Any = None

        def out(self, total: Any, delta: Any) -> None:
            self.total = total

    latest = Latest()
    tracker = OfflineEmissionsTracker(
        country_iso_code=asked.country or None, tracking_mode="machine", measure_power_secs=EVERY_S, log_level="error",
        output_methods=[], output_handlers=[latest], force_cpu_power=asked.cpu_watts or None,
        force_mode_cpu_load=bool(asked.cpu_watts), electricitymaps_api_token=None, emissions_endpoint=None,
    )  # fmt: skip
    tracker.start()
    how = {
        **_methods(getattr(tracker, "_hardware", [])),
        "country": asked.country,
        "estimated_by": f"codecarbon {version('codecarbon')}",
    }

    def read() -> dict[str, Any] | None:
        tracker.flush()
        total = latest.total
        if total is None or not total.duration > 0:
            return None
        return {"kwh": total.energy_consumed, "co2_kg": total.emissions, "seconds": total.duration, **how}

    return read


def _methods(hardware: Any) -> dict[str, str]:
    """How codecarbon learns the power of each part; it has no public word for it."""
    found = {"cpu": UNKNOWN, "gpu": "none", "ram": UNKNOWN}
    for part in hardware:
        kind = type(part).__name__.lower()
        if kind == "cpu":
            form = CPU_MODES.get(getattr(part, "_mode", ""), UNKNOWN)
            found["cpu"] = form % {"watts": f"{getattr(part, '_tdp', None) or 0:g}"} if "%(" in form else form
        elif kind == "gpu":
            found["gpu"] = "counters of its driver"
        elif kind == "ram":
            found["ram"] = "by its size"
    return found


if __name__ == "__main__":
    sys.exit(main())
