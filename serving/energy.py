"""What a reply takes: an estimate of the energy of making it, and of the CO2 that comes of that.

    python -m serving.energy        the power that codecarbon takes this machine's processor for, and g CO2 per kWh

    joules = seconds that the engine computed for the reply x watts of its machine while it computes

The seconds are the reply's own share of steps that several replies had together. Our engines tell them (`compute_seconds` in `usage`): each step's
time is split evenly among the rows in it, reading of prompts among those that were read. Of an engine that does not tell them it is
the time that the call was open, split at each instant among the calls that this web process had open there ("processor sharing"):
more than the truth where other web processes ask the same engine, or where it waits.

The watts are those of the settings, and there is no estimate without them: what is taken as fully busy while the engine computes,
as codecarbon takes a processor whose load is full for its thermal design power. Not in it: the guard's model, the web process,
cooling, and a machine that waits. Where codecarbon does not know a processor it takes 4 W for each of its threads.

The g CO2 per kWh are those of the settings, or else of codecarbon's table of countries (`data/private_infra/global_energy_mix.json`, from Our World in
Data), or without a country the world's average that it has, 475 (IEA, Global Energy & CO2 Status Report 2019).
Sources: codecarbon 3.3.2, `core/cpu.py`, `core/emissions.py`, `data/private_infra/carbon_intensity_per_source.json`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import SettingsError
from core.settings import EnergySettings, get_settings

JOULES_PER_KWH = 3.6e6
PLACES = 6


@dataclass(frozen=True)
class Energy:
    """What seconds of an engine take.

    Attributes:
        watts: of its machine while it computes; 0 where nobody said.
        g_co2_per_kwh: of the electricity there.
    """

    watts: float = 0.0
    g_co2_per_kwh: float = 0.0

    def joules(self, compute_s: float | None) -> float | None:
        """Of so many seconds; None where they, or the watts, are not known."""
        return round(compute_s * self.watts, PLACES) if self.watts and compute_s is not None else None

    def told(self, joules: float | None) -> dict[str, Any] | None:
        """As callers are told; None where there is no estimate."""
        if joules is None:
            return None
        return {"joules": joules, "co2_g": round(joules / JOULES_PER_KWH * self.g_co2_per_kwh, 9), "estimated": True}


@dataclass(frozen=True)
class Metered:
    """What one stream takes.

    Attributes:
        share_s: its part of the engine's time, where that does not tell the seconds.
        tell: whether its caller is told.
    """

    energy: Energy = Energy()
    share_s: Callable[[], float] = float
    tell: bool = False

    def joules(self, compute_s: float | None) -> float | None:
        """What it took.

        Args:
            compute_s: as the engine told it.
        """
        return self.energy.joules(self.share_s() if compute_s is None else compute_s)

    def told(self, joules: float | None) -> dict[str, Any] | None:
        """What its caller is told."""
        return self.energy.told(joules) if self.tell else None


def energy_of(settings: EnergySettings) -> Energy:
    """By these settings.

    Raises:
        SettingsError: codecarbon's table does not have the country.
    """
    watts = (settings.engine_watts or settings.cpu_watts) if settings.measure else 0.0
    if not watts:
        return Energy()
    return Energy(watts, settings.g_co2_per_kwh or carbon_intensity(settings.country))


@cache
def carbon_intensity(country: str) -> float:
    """g CO2 per kWh by codecarbon's tables, which are read without importing it.

    Args:
        country: ISO 3166 alpha-3; empty: the world.

    Raises:
        SettingsError: there is no such country in it.
    """
    found = find_spec("codecarbon")
    assert found is not None  # it is among our requirements
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "data" / "private_infra"
    if not country:
        sources = json.loads((folder / "carbon_intensity_per_source.json").read_text(encoding="utf-8"))
        return float(sources["world_average"])
    mix = json.loads((folder / "global_energy_mix.json").read_text(encoding="utf-8"))
    if country not in mix:
        raise SettingsError(
            f"DUNNOCK_ENERGY__COUNTRY is {country!r}, which codecarbon's table does not have; set DUNNOCK_ENERGY__G_CO2_PER_KWH"
        )
    return float(mix[country]["carbon_intensity"])


def main() -> None:
    """Print what codecarbon takes this machine for."""
    from codecarbon.core.cpu import TDP

    found, settings = TDP(), get_settings().energy
    print(f"DUNNOCK_ENERGY__ENGINE_WATTS={found.tdp or 0:g}   # {found.model}")  # noqa: T201
    print(f"{carbon_intensity(settings.country):g} g CO2 per kWh in {settings.country or 'the world'}")  # noqa: T201


if __name__ == "__main__":
    main()
