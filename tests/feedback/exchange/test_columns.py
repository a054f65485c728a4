"""Packed columns that others wrote: what is really unpacked is bounded, whatever the file says."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from core.errors import ImportRowError, InvalidInput
from feedback.exchange import columns
from feedback.exchange.columns import arrow_files, arrow_rows, parquet_rows

FORMATS = {"stream": ipc.new_stream, "file": ipc.new_file}
BOUND = 64 << 20


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A step of reading may take 64 MiB; memory comes from the system and not from what the pool has kept."""
    whole = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    monkeypatch.setattr(columns, "READ_BYTES", BOUND)
    yield
    pa.set_memory_pool(whole)


def write_arrow(path: Path, table: Any, form: str = "stream") -> Path:
    with FORMATS[form](path, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_a_packed_arrow_is_read(tmp_path: Path, form: str) -> None:
    rows = [{"prompt": f"Question {n}?", "turns": [{"role": "user", "n": n}]} for n in range(2500)]
    path = write_arrow(tmp_path / "p.arrow", pa.Table.from_pylist(rows), form)
    assert list(arrow_rows([path])) == list(enumerate(rows, start=1))


@pytest.mark.parametrize("form", FORMATS)
def test_an_arrow_that_unpacks_to_more_than_a_step_may_take_is_refused(tmp_path: Path, form: str, bound: None) -> None:
    path = write_arrow(tmp_path / "p.arrow", pa.table({"prompt": ["a" * (4 * BOUND)]}), form)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        InvalidInput, match=r"unpacks to more than 64 MiB at once \(after row 0\); write it with smaller"
    ):
        list(arrow_rows([path]))


def test_a_parquet_that_lies_about_what_it_unpacks_to_is_refused(tmp_path: Path, bound: None) -> None:
    """Its footer says a thousandth of it. Sizes in the footer are varints: one of the same length takes the place."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a" * (4 * BOUND)]}), path, compression="zstd", use_dictionary=False)
    said = pq.ParquetFile(path).metadata.row_group(0).total_byte_size
    assert said > 4 * BOUND
    content = path.read_bytes()
    assert varint(said) in content
    path.write_bytes(content.replace(varint(said), varint(said // 1000, len(varint(said)))))
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == said // 1000
    with pytest.raises(InvalidInput, match="unpacks to more than 64 MiB at once"):
        list(parquet_rows(path))


def varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift's compact protocol writes it (zigzag), filled up with empty groups to `length` bytes."""
    number, groups = 2 * number, []
    while number or len(groups) < length:
        groups.append(number & 0x7F)
        number >>= 7
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def test_the_limit_ends_with_the_step(tmp_path: Path, bound: None) -> None:
    path = write_arrow(tmp_path / "p.arrow", pa.Table.from_pylist([{"prompt": "Why?"}] * 3))
    rows = arrow_rows([path])
    assert next(rows) == (1, {"prompt": "Why?"})
    assert len(bytearray(2 * BOUND)) == 2 * BOUND
    assert len(list(rows)) == 2


def test_a_long_value_that_is_stored_once_is_not_made_again_for_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_LINE_BYTES", 1000)
    chosen = pa.DictionaryArray.from_arrays([0, 1, 1], ["Yes.", "a" * 2000])
    path = write_arrow(tmp_path / "p.arrow", pa.table({"chosen": chosen}))
    rows = [row for _, row in arrow_rows([path])]
    assert rows[0] == {"chosen": "Yes."}
    assert [isinstance(row, ImportRowError) for row in rows] == [False, True, True]
    monkeypatch.setattr(columns, "MAX_FILE_BYTES", 3000)
    with pytest.raises(InvalidInput, match=r"more than 0 MiB \(row 1\)"):
        list(arrow_rows([path]))


def test_a_saved_dataset_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}', encoding="utf-8")
    assert arrow_files(tmp_path) == [tmp_path / "secret.arrow"]
    (tmp_path / "state.json").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InvalidInput, match="no dataset"):
        arrow_files(tmp_path)
