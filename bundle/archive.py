"""The file of a bundle: a tar archive of which every byte is known beforehand.

    manifest.json   the manifest's canonical bytes
    manifest.sig    who signed them, and the signature
    …               the files that the manifest names, in its order

Each header is the one that `_header` makes, what fills a block up is zero, and two zero blocks end the file. So nothing of an archive has to be
interpreted: it is compared, byte by byte, with what the signed manifest says. Links, devices, doubles, further files, other
paths, other lengths are all the same thing, not the archive that was signed, and so is a changed bit in a header.
`tar xf` opens it too; that verifies nothing.

Whatever is read lies in a folder under another name until the last byte was compared.
"""

import hashlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bundle.manifest import MANIFEST, BundleFile, Manifest, read_manifest
from bundle.signing import SIGNED_BYTES, sign, verify
from core.errors import ArtifactError, BundleRefused
from core.pretrained import file_sha256

SIGNATURE = "manifest.sig"
BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
CHUNK = 1 << 20
MOST_MANIFEST = 4 << 20
"""Bytes of a manifest: all that is read before the signature is known to be good."""

Write = Callable[[bytes], object]


def write_archive(target: Path, folder: Path, manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write the files of `folder` that the manifest names as one signed archive, all or nothing.

    Raises:
        ArtifactError: a file is not the one that the manifest names.
    """
    data = manifest.canonical()
    if len(data) > MOST_MANIFEST:
        raise ArtifactError(f"the manifest has {len(data)} bytes; at most {MOST_MANIFEST} are read again")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as out:
            for name, content in ((MANIFEST, data), (SIGNATURE, sign(key, data))):
                out.write(_header(name, len(content)) + content + _padding(len(content)))
            for file in manifest.files:
                out.write(_header(file.path, file.bytes))
                with (folder / file.path).open("rb") as source:
                    digest = _copy(source, file.bytes, out.write)
                    if digest != file.sha256 or source.read(1):
                        raise ArtifactError(f"{folder / file.path} was changed while it was packed; try again")
                out.write(_padding(file.bytes))
            out.write(END)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
    except BundleRefused as error:  # a file ended before its length
        raise ArtifactError(f"{folder} was changed while it was packed; try again") from error
    finally:
        partial.unlink(missing_ok=True)


def unpack(archive: Path, key: Ed25519PublicKey, places: Path) -> tuple[Manifest, Path]:
    """Verify a bundle and have its files in a folder that is named by its manifest's hash; again, where they are there already.

    Several processes may do so at once. The archive is read once and in whole: what is written is what was verified.

    Returns:
        The manifest, and the folder; the files are in its folder `artifacts`.

    Raises:
        BundleRefused: a byte is not the one that was signed, in the archive or in the folder.
        ArtifactError: the archive cannot be read, or there is no room for it.
    """
    with _opened(archive) as source:
        manifest, data = _read_head(source, archive, key)
        place = places / hashlib.sha256(data).hexdigest()[:32]
        artifacts = place / "artifacts"
        if artifacts.exists():
            _read_files(source, manifest, None)
            verify_unpacked(artifacts, manifest)
            return manifest, place
        place.mkdir(parents=True, exist_ok=True)
        _require_room(place, sum(file.bytes for file in manifest.files))
        partial = place / f".artifacts.{secrets.token_hex(8)}.partial"
        try:
            partial.mkdir()
            _read_files(source, manifest, partial)
            try:
                partial.rename(artifacts)
            except OSError:  # another process was faster
                verify_unpacked(artifacts, manifest)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return manifest, place


def check(archive: Path, key: Ed25519PublicKey) -> Manifest:
    """Verify a bundle, every byte of it, and write nothing. Errors as of `unpack`."""
    with _opened(archive) as source:
        manifest, _ = _read_head(source, archive, key)
        _read_files(source, manifest, None)
    return manifest


def verify_unpacked(artifacts: Path, manifest: Manifest) -> None:
    """Raise BundleRefused unless a folder holds the files of a manifest, and nothing else."""
    there = {p.relative_to(artifacts).as_posix() for p in artifacts.rglob("*") if p.is_symlink() or not p.is_dir()}
    named = {file.path: file for file in manifest.files}
    if apart := sorted(there ^ set(named)):
        state = "is missing" if apart[0] in named else "is there, and was not in the bundle"
        raise BundleRefused(f"{artifacts / apart[0]} {state}; remove {artifacts} and start again")
    for path, file in named.items():
        found = artifacts / path
        if found.is_symlink() or file_sha256(found) != file.sha256:
            raise BundleRefused(f"{found} was changed since it was unpacked; remove {artifacts} and start again")


def files_of(folder: Path) -> tuple[BundleFile, ...]:
    """All files below a folder, as a manifest names them."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return tuple(
        BundleFile(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))
        for name, path in sorted(paths.items())
    )


def _read_head(source: BinaryIO, archive: Path, key: Ed25519PublicKey) -> tuple[Manifest, bytes]:
    """The manifest and its bytes, once its signature and the archive's length are known to be good."""
    header = _take(source, BLOCK)
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 < size <= MOST_MANIFEST or header != _header(MANIFEST, size):
        raise BundleRefused(
            f"{archive.name} does not begin with a manifest; it is no bundle, or its first bytes were changed"
        )
    data = _take(source, size)
    _expect(source, _padding(size), "the manifest's end")
    _expect(source, _header(SIGNATURE, SIGNED_BYTES), "its signature")
    signed = _take(source, SIGNED_BYTES)
    verify(key, signed, data)
    _expect(source, _padding(SIGNED_BYTES), "the signature's end")
    manifest = read_manifest(data)
    expected = sum(BLOCK + _filled(n) for n in (size, SIGNED_BYTES, *(f.bytes for f in manifest.files))) + len(END)
    found = os.fstat(source.fileno()).st_size
    if found != expected:
        state = "cut off" if found < expected else "longer than what was signed"
        raise BundleRefused(f"{archive.name} is {state}: it has {found} bytes, and {expected} were expected")
    return manifest, data


def _read_files(source: BinaryIO, manifest: Manifest, folder: Path | None) -> None:
    """Compare the rest of an archive with its manifest; write its files into `folder`, if there is one."""
    for file in manifest.files:
        _expect(source, _header(file.path, file.bytes), f"the header of {file.path}")
        if folder is None:
            digest = _copy(source, file.bytes, len)
        else:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                digest = _copy(source, file.bytes, out.write)
                out.flush()
                os.fsync(out.fileno())
        if digest != file.sha256:
            raise BundleRefused(f"{file.path} in it is not what was signed: a byte was changed")
        _expect(source, _padding(file.bytes), f"the end of {file.path}")
    _expect(source, END, "its end")
    if source.read(1):
        raise BundleRefused("there is more behind its end")


def _header(name: str, size: int) -> bytes:
    """The one header that a file of this name and length has."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _filled(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _padding(size: int) -> bytes:
    return b"\0" * (_filled(size) - size)


def _copy(source: BinaryIO, size: int, write: Write) -> str:
    """Hand on so many bytes; their sha256 (hex)."""
    digest = hashlib.sha256()
    while size:
        chunk = _take(source, min(size, CHUNK))
        digest.update(chunk)
        write(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _take(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise BundleRefused("it ends too early; it was cut off")
    return data


def _expect(source: BinaryIO, wanted: bytes, what: str) -> None:
    if _take(source, len(wanted)) != wanted:
        raise BundleRefused(f"{what} is not what was signed: the archive was changed")


def _opened(archive: Path) -> BinaryIO:
    try:
        return archive.open("rb")
    except OSError as error:
        raise ArtifactError(f"the bundle {archive} cannot be read: {error}") from error


def _require_room(place: Path, wanted: int) -> None:
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise ArtifactError(f"the bundle takes {wanted} bytes, and {place} has room for {free}")
