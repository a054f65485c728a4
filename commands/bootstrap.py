"""First set-up on a fresh machine: virtual environment, requirements, base model. Standard library only.

    python3 commands/bootstrap.py            what `make setup` calls
    python3 commands/bootstrap.py --dev      with what the tests need, Chromium included

Where torch comes in a CPU and a CUDA build it takes the one that fits this machine: a machine without an
NVIDIA driver does not need gigabytes of CUDA. Everything is done once; a stamp over the requirement files
tells whether it has to be done again.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("DUNNOCK_VENV", ROOT / ".venv"))
PYTHON = VENV / "bin" / "python"
TORCH = "2.13.0"
MIN_PYTHON = (3, 11)


def main() -> None:
    """Bring the virtual environment up to date, then fetch the base model."""
    parser = argparse.ArgumentParser(description="Set up Dunnock on this machine.")
    parser.add_argument("--dev", action="store_true", help="also install what tests and checks need")
    parser.add_argument("--no-base", action="store_true", help="do not fetch the base model")
    options = parser.parse_args()
    if sys.version_info < MIN_PYTHON:
        raise SystemExit(f"Python {sys.version.split()[0]} is too old; Dunnock needs 3.11 or newer")
    files = [ROOT / "requirements.txt"] + ([ROOT / "requirements-dev.txt"] if options.dev else [])
    stamp = VENV / f".dunnock-{'dev' if options.dev else 'run'}"
    wanted = hashlib.sha256(b"".join(f.read_bytes() for f in files) + TORCH.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        install(files)
        stamp.write_text(wanted)
    if options.dev:
        ensure_chromium()
    if not options.no_base:
        call([str(PYTHON), "-m", "policy.base", "--quiet"])
        if not attempt([str(PYTHON), "-m", "reward.guard.encoder", "--quiet"]):
            print("· the guard's encoder could not be fetched; everything else works without (make base)", flush=True)


def install(files: list[Path]) -> None:
    """Make the virtual environment and install into it; torch first, so that nothing pulls another build."""
    if not PYTHON.exists():
        print(f"· virtual environment in {VENV}", flush=True)
        call([sys.executable, "-m", "venv", str(VENV)])
    call([*pip(), "install", "--quiet", "--upgrade", "pip"])
    if not has_torch():
        install_torch(cuda=has_nvidia())
    print("· requirements", flush=True)
    for file in files:
        call([*pip(), "install", "--quiet", "--requirement", str(file)])


def install_torch(cuda: bool) -> None:
    """Install the torch build that fits: the machine's own wheel, else what uv picks for it, else the index's default."""
    print(f"· torch {TORCH} ({'CUDA' if cuda else 'CPU'} build)", flush=True)
    if not cuda and attempt([*pip(), "install", "--quiet", f"torch=={TORCH}+cpu"]):
        return
    backend = "auto" if cuda else "cpu"
    if attempt([*pip(), "install", "--quiet", "uv"]) and attempt(
        [
            str(PYTHON),
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            str(PYTHON),
            f"torch=={TORCH}",
            f"--torch-backend={backend}",
        ]
    ):
        return
    call([*pip(), "install", "--quiet", f"torch=={TORCH}"])


def has_nvidia() -> bool:
    """Whether an NVIDIA driver answers here."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_torch() -> bool:
    """Whether the wanted torch is in the virtual environment already."""
    probe = [str(PYTHON), "-c", "from importlib.metadata import version; print(version('torch'))"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False).stdout.strip()
    return found.split("+")[0] == TORCH


def ensure_chromium() -> None:
    """A Chromium for the browser tests: the setting, the system's, or Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if os.environ.get("DUNNOCK_CHROMIUM") or any(shutil.which(name) for name in names):
        return
    print("· Chromium for the browser tests", flush=True)
    if attempt([str(PYTHON), "-m", "playwright", "install", "--with-deps", "chromium"]):
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        call(["apt-get", "update", "-qq"])
        call(["apt-get", "install", "-y", "-qq", "chromium"])
        return
    raise SystemExit("No Chromium found for the browser tests; install one and set DUNNOCK_CHROMIUM to its path.")


def pip() -> list[str]:
    """pip of the virtual environment."""
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input"]


def attempt(command: list[str]) -> bool:
    """Run a command that may fail; its words are kept for nobody."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def call(command: list[str]) -> None:
    """Run a command that must not fail."""
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    main()
