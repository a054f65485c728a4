"""Energy: readings by hand, and a real meter beside this process."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.settings import EnergySettings
from training.energy import Meter, added, scaled, so_far
from training.run import write_run

READING: dict[str, Any] = {
    "kwh": 0.002, "co2_kg": 0.001, "seconds": 90.0, "cpu": "counters (RAPL)", "gpu": "none", "ram": "by its size",
    "country": "DEU", "estimated_by": "codecarbon",
}  # fmt: skip


def test_the_seconds_before_it_is_up_count_with_the_mean_power() -> None:
    found = scaled(READING, 100.0)
    assert found["kwh"] == pytest.approx(0.002 * 100 / 90)
    assert found["co2_kg"] == pytest.approx(0.001 * 100 / 90)
    assert found["seconds"] == pytest.approx(100)
    assert found["watts"] == pytest.approx(80)  # 0.002 kWh in 90 s
    assert (found["cpu"], found["country"]) == ("counters (RAPL)", "DEU")


def test_attempts_add_up() -> None:
    first, second = scaled(READING, 90.0), scaled(READING, 30.0) | {"cpu": "by hand"}
    total = added(first, second)
    assert total is not None
    assert total["kwh"] == pytest.approx(0.002 * 4 / 3)
    assert (total["seconds"], total["cpu"]) == (pytest.approx(120), "by hand")
    assert total["watts"] == pytest.approx(80)
    assert added(None, second) == second
    assert added(first, None) == first
    assert added(None, None) is None


@pytest.mark.timeout(120)
def test_a_meter_measures_this_machine_and_stands_in_the_record(tmp_path: Path) -> None:
    assert so_far() is None
    meter = Meter(EnergySettings(country="DEU", cpu_watts=40.0))
    try:
        began = time.monotonic()
        while (found := meter.read()) is None and time.monotonic() - began < 90:
            sum(range(100_000))
        assert found is not None
        assert 0 < found["kwh"] < 0.01
        assert 5 < found["watts"] < 200  # of 40 W and memory, by load
        assert 0.2 < found["co2_kg"] / found["kwh"] < 0.6  # kg per kWh in Germany
        assert (found["cpu"], found["country"]) == ("load times nominal power, 40 W", "DEU")
        assert found["seconds"] == pytest.approx(time.monotonic() - began, abs=2)
        write_run(tmp_path, "update", {}, torch.device("cpu"))
        record = json.loads((tmp_path / "run.json").read_text())
        assert record["energy"]["kwh"] >= found["kwh"]
        assert (record["device"], record["dtype"], record["device_name"]) == ("cpu", "float32", "")
    finally:
        meter.close()
    assert so_far() is None


def test_what_is_over_at_once_is_not_measured() -> None:
    meter = Meter(EnergySettings())
    assert meter.read() is None
    began = time.monotonic()
    meter.close()
    assert time.monotonic() - began < 2
    assert meter._sidecar.process.poll() is not None
