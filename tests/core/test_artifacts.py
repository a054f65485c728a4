"""Artifacts: whole or not there, and a hash that sees every change."""

import json
from pathlib import Path

import pytest

from core.artifacts import hash_folder, new_folder, verify_folder, write_json, write_text
from core.errors import ArtifactError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("one")
    (made / "sub" / "b.txt").write_text("two")
    return made


def change_byte(folder: Path) -> None:
    (folder / "a.txt").write_text("onE")


def rename(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "c.txt")


def move_down(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "sub" / "a.txt")


def remove(folder: Path) -> None:
    (folder / "sub" / "b.txt").unlink()


def add(folder: Path) -> None:
    (folder / "empty").touch()


def shift_border(folder: Path) -> None:
    """The same bytes in the same order, cut elsewhere."""
    (folder / "a.txt").write_text("onet")
    (folder / "sub" / "b.txt").write_text("wo")


@pytest.mark.parametrize("change", [change_byte, rename, move_down, remove, add, shift_border])
def test_every_change_is_seen(folder: Path, change) -> None:
    before = hash_folder(folder)
    verify_folder(folder, before)
    change(folder)
    assert hash_folder(folder) != before
    with pytest.raises(ArtifactError, match=f"{before[:12]}.*changed or damaged"):
        verify_folder(folder, before)


def test_the_hash_hangs_on_contents_alone(folder: Path, tmp_path: Path) -> None:
    before = hash_folder(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "a.txt").unlink()
    (moved / "a.txt").write_text("one")  # another file, another time, the same content
    assert hash_folder(moved) == before


def test_a_missing_or_empty_folder_has_no_hash(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArtifactError, match="missing or empty"):
            hash_folder(path)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapters" / "v1"
    with new_folder(target) as partial:
        (partial / "weights").write_bytes(b"123")
        assert not target.exists()
    assert (target / "weights").read_bytes() == b"123"
    assert [p.name for p in target.parent.iterdir()] == ["v1"]


def test_a_failed_attempt_leaves_the_former_folder_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    target = tmp_path / "v1"
    with new_folder(target) as partial:
        (partial / "old").touch()
    with pytest.raises(RuntimeError, match="power cut"), new_folder(target) as partial:
        (partial / "half").touch()
        raise RuntimeError("power cut")
    assert [p.name for p in target.iterdir()] == ["old"]
    with new_folder(target) as partial:
        assert list(partial.iterdir()) == []
        (partial / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["v1"]


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note.json"
    write_json(path, {"name": "Vögel", "where": Path("x")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Vögel", "where": "x"}
    assert "Vögel" in path.read_text(encoding="utf-8")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["note.json"]


def test_a_value_that_is_no_json_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {(1, 2): "tuples are no keys"})
    assert json.loads(path.read_text()) == {"n": 1}
