"""What we are measured beside: installed below the cache folder, outside the clone, on first use.

A tool gets a virtual environment of its own; a package that our own interpreter can load in place of another version, a folder.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from core.settings import get_settings

LABEL_STUDIO = ("label-studio[uwsgi]==1.23.2", "Django==5.2.19", "psycopg[binary]==3.3.9")
POTATO = ("potato-annotation==2.12.1", "Flask==3.1.3", "Werkzeug==3.1.9")


TRL_WITH_PPO = "trl==1.12.0"
"""The last release of TRL that has a PPO trainer."""


class NotDone(Exception):
    """What was to be measured cannot do what was asked of it; the message is for the record."""


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The virtual environment of a tool; a stamp over its requirements tells whether it is there.

    Raises:
        NotDone: it cannot be installed here; the message holds the end of what pip said.
    """
    wanted = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    folder = get_settings().cache_dir / "bench" / f"{name}-{wanted[:8]}"
    stamp = folder / ".installed"
    if not stamp.exists():
        print(f"· {name} into {folder}: {', '.join(requirements)}", file=sys.stderr, flush=True)
        _call([sys.executable, "-m", "venv", "--clear", str(folder)])
        _call([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", *requirements])
        stamp.touch()
    return folder


def package_folder(requirement: str) -> Path:
    """A folder with one package and nothing that it needs: first on PYTHONPATH, it stands before ours.

    Raises:
        NotDone: it cannot be installed here.
    """
    folder = get_settings().cache_dir / "bench" / requirement.replace("==", "-")
    stamp = folder / ".installed"
    if not stamp.exists():
        print(f"· {requirement} into {folder}", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--upgrade"]
        _call([*pip, "--target", str(folder), requirement])
        stamp.touch()
    return folder


def versions(folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """What is installed there."""
    listed = _call(
        [str(folder / "bin" / "python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    )
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    return {name: found[name] for name in packages}


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotDone(f"{' '.join(command[1:4])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
