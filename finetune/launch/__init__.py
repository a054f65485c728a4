"""How the stages that train are started in several processes: through `accelerate launch`, with a configuration of its own form.

The configurations that come with Dunnock lie beside this file; `DUNNOCK_LAUNCH` names one of them or any other file. Nothing here
is imported by the ranks themselves: see `training.ranks`.
"""

import os
import sys
from pathlib import Path

from core.errors import SettingsError
from core.settings import Settings

FOLDER = Path(__file__).parent
STAGES = ("reward", "update")
"""The stages that train."""

LAUNCHED = "--launched-by"
"""Tells a rank that it is one, with the process that started the launcher."""


def command(settings: Settings, stage: str, call: list[str]) -> list[str]:
    """The command line of a stage; `call` is what follows `python`, `-m` and a module first.

    Raises:
        SettingsError: `DUNNOCK_LAUNCH` names no configuration.
    """
    if not settings.launch or stage not in STAGES:
        return [sys.executable, *call]
    processes = ["--num_processes", str(settings.launch_processes)] if settings.launch_processes else []
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration(settings.launch)),
        "--main_process_port", "0", *processes, *call, LAUNCHED, str(os.getpid()),
    ]  # fmt: skip


def configuration(name: str) -> Path:
    """The file of a configuration: one of ours by its name, or any by its path."""
    ours = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    path = FOLDER / f"{name}.yaml" if name in ours else Path(name).expanduser()
    if not path.is_file():
        raise SettingsError(f"DUNNOCK_LAUNCH={name!r} is neither a file nor one of {', '.join(ours)}")
    return path
