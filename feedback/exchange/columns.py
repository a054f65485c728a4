"""Rows of Parquet and Arrow files, within bounds. In: paths of files that others wrote. Out: (line, row), rows as dicts.

These files are packed, and say themselves what they unpack to, which need not be so. So each step of reading may take
`READ_BYTES` of memory and no more, by the system's own limit (Linux; elsewhere what a file says is believed), what was unpacked
is counted, and few rows at a time are made into texts where a value that is stored once may stand in each.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ImportRowError, InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LINE_BYTES = 16 << 20  # several times the longest texts that a row may have
MAX_FILE_BYTES = 4 << 30  # unpacked; a few megabytes of gzip can hold any number of zeros
MAX_GROUP_BYTES = 1 << 30  # of a row group, unpacked: any part of it may be a single page, which is read at once
READ_BYTES = 2 * MAX_GROUP_BYTES  # a page, and what is made of it
BATCH_BYTES, BATCH_ROWS = 256 << 20, 1000
STATM = Path("/proc/self/statm")
ARROW_FILE = b"ARROW1"  # how a file of the random access format begins; others are streams


def parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of a .parquet file. A row that is longer than `MAX_LINE_BYTES` comes as an ImportRowError in its place.

    Raises:
        InvalidInput: the file is damaged, or is larger than is taken.
    """
    return enumerate(_rows(path, _parquet_batches(path)), start=1)


def arrow_rows(paths: list[Path]) -> Iterator[tuple[int, Any]]:
    """(line, row) of .arrow files one after the other, streams or files; else as `parquet_rows`."""
    return enumerate(chain.from_iterable(_rows(path, _arrow_batches(path)) for path in paths), start=1)


def arrow_files(folder: Path) -> list[Path]:
    """The files of a dataset that `datasets` saved to disk, split by split.

    Raises:
        InvalidInput: the folder is no such dataset.
    """
    try:
        whole = folder / "dataset_dict.json"
        splits = json.loads(whole.read_text(encoding="utf-8"))["splits"] if whole.exists() else ["."]
        return [folder / split / name for split in splits for name in _file_names(folder / split / "state.json")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{folder} is no dataset that was saved to disk: {error!r}") from error


def long_row(line: int) -> ImportRowError:
    """What is said of a row that is longer than one may be."""
    return ImportRowError(line, f"is longer than the {MAX_LINE_BYTES >> 20} MiB that a row may have")


def _file_names(state: Path) -> list[str]:
    return [Path(file["filename"]).name for file in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]


def _rows(path: Path, batches: Iterator[tuple["pa.RecordBatch", int]]) -> Iterator[dict[str, Any] | ImportRowError]:
    """Rows of batches, each of which comes with what it unpacks to, in bytes."""
    import pyarrow as pa

    line, total = 0, 0
    try:
        for batch, unpacked in _bounded(batches):
            # Each row may hold a value that is stored once and as long as the whole.
            rows_at_once = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, unpacked)))
            for start in range(0, batch.num_rows, rows_at_once):
                part = _plain(batch.slice(start, rows_at_once))
                total += part.nbytes
                if total > MAX_FILE_BYTES:
                    raise InvalidInput(
                        f"{path} holds more than {MAX_FILE_BYTES >> 20} MiB (row {line + 1}); split it. What came before is"
                        " imported"
                    )
                for row in _made(part):
                    line += 1
                    yield long_row(line) if row is None else row
    except MemoryError as error:  # pyarrow's own is one, too
        raise InvalidInput(
            f"{path} unpacks to more than {READ_BYTES >> 20} MiB at once (after row {line}); write it with smaller row groups"
            " or batches"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error


def _parquet_batches(path: Path) -> Iterator[tuple["pa.RecordBatch", int]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)]
    _refuse_large(path, groups)
    for n, group_bytes in enumerate(groups):
        rows_at_once = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, group_bytes)))
        for batch in file.iter_batches(rows_at_once, row_groups=[n], use_threads=False):
            yield batch, max(group_bytes, 0)


def _refuse_large(path: Path, groups: list[int]) -> None:
    """Raise InvalidInput where row groups of a .parquet, in bytes unpacked as the file says them, are more than is taken."""
    if sum(groups) > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} holds more than {MAX_FILE_BYTES >> 20} MiB unpacked; split it")
    if groups and max(groups) > MAX_GROUP_BYTES:
        raise InvalidInput(
            f"{path} has a row group of {max(groups) >> 20} MiB unpacked; write it with smaller ones (row_group_size), of"
            f" {MAX_GROUP_BYTES >> 20} MiB at most"
        )


def _arrow_batches(path: Path) -> Iterator[tuple["pa.RecordBatch", int]]:
    import pyarrow as pa
    from pyarrow import ipc

    options = ipc.IpcReadOptions(use_threads=False)
    with pa.memory_map(str(path)) as file:
        beginning = file.read(len(ARROW_FILE))
        file.seek(0)
        if beginning == ARROW_FILE:
            reader = ipc.open_file(file, options=options)
            batches: Iterable[pa.RecordBatch] = (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            batches = ipc.open_stream(file, options=options)
        for batch in batches:
            yield batch, batch.get_total_buffer_size()


def _bounded(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, and a MemoryError where a step of reading takes more than `READ_BYTES`."""
    while True:
        with _limit(READ_BYTES):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _limit(more_bytes: int) -> Iterator[None]:
    """This process may take so much more memory within the block, in bytes. Only where Linux counts it."""
    if not STATM.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    in_use = int(STATM.read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in (soft, hard, in_use + more_bytes) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _plain(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """A batch whose columns hold their values themselves, not places in a dictionary that is the whole file's."""
    import pyarrow as pa

    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _made(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | None]:
    """The rows of a batch, with None for one that is longer than a row may be, which is not made into texts."""
    if batch.nbytes <= MAX_LINE_BYTES:
        yield from batch.to_pylist()
        return
    for n in range(batch.num_rows):
        row = batch.slice(n, 1)
        yield None if row.nbytes > MAX_LINE_BYTES else row.to_pylist()[0]
