"""Files that stages make: written to a temporary name, synced, renamed, and hashed.

An artifact is a folder. Its hash covers every file's relative path and bytes, so that a changed,
missing or added file is seen. `run.json`-like notes are part of it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from core.errors import ArtifactError


def hash_folder(folder: Path) -> str:
    """sha256 (hex) over the sorted relative paths and contents of all files below `folder`.

    Raises:
        ArtifactError: the folder does not exist or is empty.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if not files:
        raise ArtifactError(f"artifact folder {folder} is missing or empty; it was expected to hold files")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(str(path.stat().st_size).encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def verify_folder(folder: Path, expected: str) -> None:
    """Raise ArtifactError unless the folder hashes to `expected`."""
    found = hash_folder(folder)
    if found != expected:
        raise ArtifactError(
            f"{folder} hashes to {found[:12]}…, but {expected[:12]}… was recorded when it was made; "
            "it was changed or damaged and is not loaded"
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target` when the block ends, all or nothing.

    A half-made folder is removed, also that of an earlier, killed run. An existing `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _finish(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # its space may be what was missing
        raise


def _finish(partial: Path, target: Path) -> None:
    """Sync a folder and give it its name."""
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync(target.parent)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Yield a text file that becomes `path` when the block ends: a reader sees the old or the new text, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, never half."""
    with writing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
