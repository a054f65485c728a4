"""The archive: what is signed comes out again, and whatever is changed in it, anywhere, is refused before it has a place."""

import hashlib
import io
import os
import random
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import archive
from bundle.archive import check, files_of, unpack, verify_unpacked, write_archive
from bundle.manifest import Manifest, read_manifest
from bundle.signing import make_keys, private_key, public_key, sign
from core.errors import ArtifactError, BundleRefused, Conflict

FILES = {"adapter/weights": bytes(range(256)) * 2, "rules.json": b"[]", "settings.json": b"", "model/a-b.c": b"x" * 512}


def manifest_of(folder: Path) -> Manifest:
    fields: dict[str, Any] = {
        "format": 1, "form": "gguf", "quantisation": "q8_0", "made_at": "2026-12-01T00:00:00+00:00", "tenant": None,
        "policy": {
            "name": "v1", "base_model": "tiny", "base_sha256": "1" * 64, "adapter_sha256": "2" * 64,
            "snapshot_sha256": "3" * 64, "gate_passed": True,
        },
        "needs": None, "versions": {"python": "3"}, "files": files_of(folder), "sizes": {}, "quality": {"ä": 0.1},
        "guard": {"model_sha256": None, "encoder_sha256": None, "snapshot_sha256": None, "why": "none was trained"},
    }  # fmt: skip
    return Manifest.model_validate(fields)


class Made:
    """A bundle, its keys and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "files"
        for path, content in FILES.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        make_keys(folder / "private.pem", folder / "public.pem")
        self.private, self.public = private_key(folder / "private.pem"), public_key(folder / "public.pem")
        self.manifest = manifest_of(self.folder)
        self.path = folder / "a.bundle"
        write_archive(self.path, self.folder, self.manifest, self.private)
        self.data = self.path.read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("bundle"))


def refused(made: Made, data: bytes, folder: Path, match: str = ".") -> None:
    """These bytes are refused, and nothing of them has a place."""
    path = folder / "changed.bundle"
    path.write_bytes(data)
    with pytest.raises(BundleRefused, match=match):
        check(path, made.public)
    with pytest.raises(BundleRefused):
        unpack(path, made.public, folder / "places")
    assert not list(folder.glob("places/*/artifacts"))
    assert not list(folder.glob("places/*/.artifacts*"))


def test_what_was_packed_comes_out_and_is_verified_again(made: Made, tmp_path: Path) -> None:
    manifest, place = unpack(made.path, made.public, tmp_path)
    assert manifest == made.manifest == check(made.path, made.public)
    assert place.name == hashlib.sha256(manifest.canonical()).hexdigest()[:32]
    assert {p: (place / "artifacts" / p).read_bytes() for p in FILES} == FILES
    assert unpack(made.path, made.public, tmp_path) == (manifest, place)
    (place / "artifacts" / "rules.json").write_bytes(b"{}")
    with pytest.raises(BundleRefused, match=r"rules\.json was changed since"):
        unpack(made.path, made.public, tmp_path)


def test_any_tar_lists_it_and_the_private_key_is_not_in_it(made: Made) -> None:
    with tarfile.open(made.path) as tar:
        assert tar.getnames() == ["manifest.json", "manifest.sig", *sorted(FILES)]
        assert read_manifest(tar.extractfile("manifest.json").read()) == made.manifest
    assert made.private.private_bytes_raw() not in made.data
    assert b"PRIVATE" not in made.data


def test_every_changed_byte_is_refused(made: Made, tmp_path: Path) -> None:
    """Each byte of the whole archive once, by a bit of its own."""
    path, bits = tmp_path / "changed.bundle", random.Random(0)
    path.write_bytes(made.data)
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(made.data):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bits.randrange(8)]), at)
            with pytest.raises(BundleRefused):
                check(path, made.public)
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert check(path, made.public) == made.manifest


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_bytes_that_are_taken_out_put_in_or_moved_are_refused(
    made: Made, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, len(made.data)))
    end = data.draw(st.integers(begin, min(len(made.data), begin + 2000)))
    changed = made.data[:begin] + data.draw(st.binary(max_size=1100)) + made.data[end:]
    if changed != made.data:
        refused(made, changed, tmp_path_factory.mktemp("changed"))


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_a_bundle_that_is_cut_off_or_goes_on_is_refused(made: Made, tmp_path: Path, blocks: int) -> None:
    refused(made, made.data[: -512 * blocks], tmp_path, "cut off")
    refused(made, made.data + bytes(512 * blocks), tmp_path, "longer than what was signed")


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"\0" * 4096, os.urandom(4096)], ids=["empty", "zip", "zeros", "noise"]
)
def test_what_is_no_bundle_is_refused(made: Made, tmp_path: Path, data: bytes) -> None:
    refused(made, data, tmp_path)


def test_a_manifest_that_is_too_large_is_not_even_read(made: Made, tmp_path: Path) -> None:
    refused(
        made, archive._header("manifest.json", archive.MOST_MANIFEST + 1) + made.data[512:], tmp_path, "does not begin"
    )


def rebuilt(made: Made, change: Any) -> bytes:
    """The archive written anew with `tarfile` after `change(members)`, a list of (TarInfo, bytes)."""
    with tarfile.open(made.path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, len(content)
    return found, content


@pytest.mark.parametrize(
    "more",
    [
        member("extra", content=b"x"),
        member("rules.json", content=b"[]"),
        member("../outside", content=b"x"),
        member("/etc/outside", content=b"x"),
        member("model/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("model/hard", tarfile.LNKTYPE, "rules.json"),
        member("model/device", tarfile.CHRTYPE),
        member("model/pipe", tarfile.FIFOTYPE),
        member("model/folder", tarfile.DIRTYPE),
        member("x" * 200, content=b"x"),
    ],
    ids=["extra", "double", "traversal", "absolute", "symlink", "hardlink", "device", "pipe", "folder", "long name"],
)
@pytest.mark.parametrize("at", [0, 2, 4, 6])
def test_members_that_were_not_signed_are_refused(made: Made, tmp_path: Path, more: Any, at: int) -> None:
    refused(made, rebuilt(made, lambda members: members.insert(at, more)), tmp_path)
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize("change", [lambda m: m.pop(1), lambda m: m.pop(), lambda m: m.reverse(), lambda m: m.pop(0)])
def test_members_that_are_missing_or_elsewhere_are_refused(made: Made, tmp_path: Path, change: Any) -> None:
    refused(made, rebuilt(made, change), tmp_path)


def test_a_link_in_the_place_of_a_file_is_refused(made: Made, tmp_path: Path) -> None:
    def change(members: list[Any]) -> None:
        members[2] = member(members[2][0].name, tarfile.SYMTYPE, "/etc/passwd")

    refused(made, rebuilt(made, change), tmp_path)


def test_another_key_is_told_apart_from_other_bytes(made: Made, tmp_path: Path) -> None:
    make_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    with pytest.raises(BundleRefused, match="signed with the key"):
        check(made.path, public_key(tmp_path / "public.pem"))
    other = tmp_path / "other.bundle"  # signed by a stranger, who names himself as us
    write_archive(other, made.folder, made.manifest, private_key(tmp_path / "private.pem"))
    data = bytearray(other.read_bytes())
    at = data.index(sign(private_key(tmp_path / "private.pem"), made.manifest.canonical())[:32])
    data[at : at + 32] = sign(made.private, b"")[:32]
    refused(made, bytes(data), tmp_path, "signature does not fit")


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a//b", "a/../b", "a/.", ".hidden", "a\\b", "a b", "ä", "a\0", "manifest.json", "x" * 101, ""]
)  # fmt: skip
def test_a_manifest_cannot_name_such_a_path(made: Made, path: str) -> None:
    with pytest.raises(ValueError, match="path|names itself"):
        Manifest.model_validate(
            {**made.manifest.model_dump(), "files": [{"path": path, "bytes": 1, "sha256": "0" * 64}]}
        )


@pytest.mark.parametrize("paths", [["a", "a"], ["b", "a"], ["a", "a/b"], ["A", "a"], ["A", "a/b"]], ids="-".join)
def test_a_manifest_cannot_name_one_place_twice(made: Made, paths: list[str]) -> None:
    files = [{"path": path, "bytes": 1, "sha256": "0" * 64} for path in paths]
    with pytest.raises(ValueError, match="one place"):
        Manifest.model_validate({**made.manifest.model_dump(), "files": files})


@pytest.mark.parametrize(
    ("old", "new"), [(b'"format":1', b'"format":2'), (b'"form":', b'"more":1,"form":'), (b":1,", b": 1,"), (b"{", b"")]
)
def test_a_signed_manifest_of_another_form_is_refused(made: Made, old: bytes, new: bytes) -> None:
    with pytest.raises(BundleRefused):
        read_manifest(made.manifest.canonical().replace(old, new, 1))


@pytest.mark.parametrize("change", ["more", "fewer", "other", "link"])
def test_a_folder_that_was_changed_is_refused(made: Made, tmp_path: Path, change: str) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "artifacts"))
    verify_unpacked(folder, made.manifest)
    file = folder / "model" / "a-b.c"
    if change == "more":
        (folder / "model" / "more").touch()
    if change in ("fewer", "link"):
        file.unlink()
    if change == "other":
        file.write_bytes(b"y" * 512)
    if change == "link":
        file.symlink_to(made.folder / "model" / "a-b.c")
    with pytest.raises(BundleRefused):
        verify_unpacked(folder, made.manifest)


def test_several_may_unpack_at_once(made: Made, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(unpack(made.path, made.public, tmp_path)[1])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [p.name for p in found[0].iterdir()] == ["artifacts"]


def test_a_file_that_changes_while_it_is_packed_leaves_no_bundle(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "files"))
    for content in (b"x" * 511, b"x" * 513, b"y" * 512):
        (folder / "model" / "a-b.c").write_bytes(content)
        with pytest.raises(ArtifactError, match="while it was packed"):
            write_archive(tmp_path / "out.bundle", folder, made.manifest, made.private)
    assert [p.name for p in tmp_path.iterdir()] == ["files"]


def test_keys_are_made_once_and_read_as_what_they_are(tmp_path: Path) -> None:
    private, public = tmp_path / "keys" / "private.pem", tmp_path / "keys" / "public.pem"
    make_keys(private, public)
    assert private.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Conflict, match="is there already"):
        make_keys(private, tmp_path / "other.pem")
    for read, path in ((public_key, private), (private_key, public), (public_key, tmp_path / "none")):
        with pytest.raises(ArtifactError):
            read(path)
