"""What a file or a folder holds: its rows, and for each the form it has. Out: `Read`s, for `loading`.

Files are .jsonl, .json (one array), both also .gz, .parquet, .arrow; folders are what `datasets` saves to disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import ImportRowError, InvalidInput
from feedback.exchange.columns import arrow_files, arrow_rows
from feedback.exchange.importing import read_rows
from feedback.exchange.rows import TaskRow, read_row

FORMS = ("auto", "jsonl", "hf", "label-studio", "argilla")


@dataclass(frozen=True)
class Wanted:
    """What the person who imports says of all rows, where these do not say it."""

    form: str = "auto"
    kind: str | None = None
    rule: str | None = None
    pool: str | None = None
    priority: int | None = None
    required_n: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    def applied(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with these where it has none."""
        given = {"pool": self.pool, "priority": self.priority, "required_n": self.required_n}
        if row.get("kind") in ("rule_check", "probe"):
            given["rule"] = self.rule
        told = {name: value for name, value in row.items() if value is not None}
        return {name: value for name, value in given.items() if value is not None} | told


@dataclass(frozen=True)
class Read:
    """What was read of one row: a task, or why there is none, and what of it does not fit though the rest does."""

    line: int
    row: TaskRow | ImportRowError
    problems: tuple[str, ...] = ()


def read_tasks(path: Path, wanted: Wanted, limit: int | None = None) -> Iterator[Read]:
    """The rows of a file or folder, in order.

    Raises:
        InvalidInput: nothing can be read at all.
    """
    if wanted.form not in FORMS:
        raise InvalidInput(f"form is {wanted.form!r}; it is one of {', '.join(FORMS)}", param="form")
    return (_read(line, value, wanted) for line, value in islice(_rows(path), limit))


def name_of(path: Path) -> str:
    """A file's name and the beginning of its sha256, which judgments out of it are marked with."""
    if path.is_dir():
        return path.name[:180]
    with path.open("rb") as file:
        return f"{path.name[:150]}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _read(line: int, value: Any, wanted: Wanted) -> Read:
    if not isinstance(value, dict):
        found = value if isinstance(value, ImportRowError) else None
        return Read(line, found or ImportRowError(line, f"is a {type(value).__name__}; expected an object"))
    try:
        row, problems = _reader(value, wanted.form)(value, wanted)
        return Read(line, read_row(wanted.applied(row), line), tuple(problems))
    except ImportRowError as error:
        return Read(line, error)
    except (InvalidInput, AttributeError, TypeError, KeyError, IndexError) as error:
        # The rows are other programs' and may have any shape; what is no list or object where one is due ends here.
        why = error.message if isinstance(error, InvalidInput) else f"is not of the shape that is expected ({error})"
        return Read(line, ImportRowError(line, why))


def _reader(row: Mapping[str, Any], form: str) -> Callable[[dict[str, Any], Wanted], tuple[dict[str, Any], list[str]]]:
    from feedback.exchange import argilla, hf, label_studio

    if form == "label-studio" or (form == "auto" and label_studio.is_row(row)):
        return label_studio.read
    if form == "argilla" or (form == "auto" and argilla.is_row(row)):
        return argilla.read
    return hf.read if form == "hf" or (form == "auto" and "kind" not in row) else _own


def _own(row: dict[str, Any], _: Wanted) -> tuple[dict[str, Any], list[str]]:
    return row, []


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.is_dir():
        return arrow_rows(arrow_files(path))
    if not path.is_file():
        raise InvalidInput(f"{path} is not there; give a .jsonl, .json, .parquet or .arrow, or a folder of a dataset")
    return arrow_rows([path]) if path.suffix == ".arrow" else read_rows(path)
