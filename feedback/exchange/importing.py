"""Import of human preference pairs: HH-RLHF, JSONL and Hugging Face `prompt/chosen/rejected`.

Files may be .jsonl, .json (one array), each also .gz, or .parquet. The form of each row is found from its
fields. A row that does not fit is reported with its line and the rest is imported; a pair that is already
there is counted and not added again, so that an import can be repeated after a crash.
"""

import codecs
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db import Database
from core.errors import ImportRowError, InvalidInput
from core.messages import conversation_hash
from feedback.exchange.columns import MAX_FILE_BYTES, MAX_LINE_BYTES, long_row, parquet_rows
from feedback.models import ImportedPair
from feedback.prompts import add_completion, add_prompt

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
ROWS_PER_TRANSACTION = 500
MAX_TEXT_CHARS = 100_000
MAX_JSON_BYTES = 256 << 20  # parsed at once
MAX_MARGIN = 1e6  # NaN and infinity are refused with it


@dataclass(frozen=True)
class Pair:
    """One row, read: a conversation and the two assistant texts that follow it."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    margin: float | None = None
    simulated: bool = False

    @property
    def sha256(self) -> str:
        """Identity of the pair, over prompt and both texts."""
        return conversation_hash(
            [*self.prompt, {"role": "chosen", "content": self.chosen}, {"role": "rejected", "content": self.rejected}]
        )


@dataclass
class ImportReport:
    """What an import did; `errors` are (line, reason)."""

    imported: int = 0
    already_there: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)


def import_file(db: Database, path: Path, *, limit: int | None = None) -> ImportReport:
    """Import a file of preference pairs, committing every few hundred rows.

    Raises:
        InvalidInput: the file cannot be read at all.
    """
    if not path.is_file():
        raise InvalidInput(f"{path} is not a file; give a .jsonl, .json, .jsonl.gz or .parquet of preference pairs")
    source = f"{path.name}@{_sha256(path)[:12]}"
    report = ImportReport()
    rows = islice(read_rows(path), limit)
    while batch := list(islice(rows, ROWS_PER_TRANSACTION)):
        with db.session() as session:
            _import_batch(session, batch, source, report)
    return report


def _import_batch(session: Session, batch: Iterable[tuple[int, Any]], source: str, report: ImportReport) -> None:
    for line, row in batch:
        try:
            form, pair = read_pair(row, line)
        except ImportRowError as error:
            report.errors.append((error.line, error.reason))
            continue
        if _add(session, pair, source):
            report.imported += 1
            report.forms[form] += 1
        else:
            report.already_there += 1


def _add(session: Session, pair: Pair, source: str) -> bool:
    digest = pair.sha256
    if session.scalar(select(ImportedPair.id).where(ImportedPair.pair_sha256 == digest)) is not None:
        return False
    prompt = add_prompt(session, pair.prompt, "import")
    chosen, rejected = (
        add_completion(session, prompt, text, "import", once=f"import:{digest[:32]}:{side}")
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    )
    session.add(
        ImportedPair(
            pair_sha256=digest, prompt_id=prompt.id, chosen_id=chosen.id, rejected_id=rejected.id,
            source=source, simulated=pair.simulated, margin=pair.margin,
        )
    )  # fmt: skip
    session.flush()
    return True


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, row) of a file, which is UTF-8, with or without a byte-order mark. A line that is no UTF-8, no JSON or longer
    than `MAX_LINE_BYTES` comes as an ImportRowError in the row's place.

    Raises:
        InvalidInput: the file is damaged, is larger than is taken, or is a .json that is no array.
    """
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with cast("BinaryIO", opener(path, "rb")) as file:
            if path.name.removesuffix(".gz").endswith(".json"):
                yield from enumerate(_array(file, path), start=1)
                return
            for line, text in _lines(file, path):
                if text is None:
                    yield line, long_row(line)
                elif text.strip():
                    yield line, _json_or_error(line, text)
    except (OSError, EOFError, zlib.error, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error


def _array(file: BinaryIO, path: Path) -> list[Any]:
    """The rows of a .json file, which is read at once."""
    text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise InvalidInput(f"{path} holds more than {MAX_JSON_BYTES >> 20} MiB; make it a .jsonl, a row a line")
    try:
        rows = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"{path} is not UTF-8: line {line}, {_byte(error)}; save it as UTF-8") from error
    except RecursionError as error:
        raise InvalidInput(f"{path} is nested too deep to be read") from error
    if not isinstance(rows, list):
        raise InvalidInput(f"{path} holds a {type(rows).__name__}; a .json file must be one array of rows")
    return rows


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number, line), with None for a line that is too long, of which no more is kept than one may have."""
    line, total = 0, 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        total += len(text)
        long = len(text) > MAX_LINE_BYTES
        while len(text) > MAX_LINE_BYTES and total <= MAX_FILE_BYTES:  # the rest of a long line, in pieces
            text = b"" if text.endswith(b"\n") else file.readline(MAX_LINE_BYTES + 1)
            total += len(text)
        if total > MAX_FILE_BYTES:
            raise InvalidInput(
                f"{path} holds more than {MAX_FILE_BYTES >> 20} MiB (line {line}); split it. What came before is imported"
            )
        if line == 1:
            text = text.removeprefix(codecs.BOM_UTF8)
        yield line, None if long else text


def _json_or_error(line: int, text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        return ImportRowError(line, f"is not UTF-8 ({_byte(error)}); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return ImportRowError(line, f"is not JSON ({error})")


def _byte(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start}"


def read_pair(row: Any, line: int) -> tuple[str, Pair]:
    """The form of a row ("hh-rlhf" or "preference") and its pair.

    Raises:
        ImportRowError: what is wrong with this row.
    """
    if isinstance(row, ImportRowError):
        raise row
    if not isinstance(row, dict):
        raise ImportRowError(line, f"is a {type(row).__name__}; expected an object with chosen and rejected")
    missing = [name for name in ("chosen", "rejected") if not row.get(name)]
    if missing:
        raise ImportRowError(line, f"lacks {' and '.join(missing)}; found fields {sorted(row)[:8]}")
    if row.get("prompt") is None and isinstance(row["chosen"], str):
        form, (prompt, chosen, rejected) = "hh-rlhf", _read_hh(row, line)
    else:
        form, (prompt, chosen, rejected) = "preference", _read_preference(row, line)
    chosen, rejected = _plain(chosen), _plain(rejected)
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise ImportRowError(line, f"the {name} completion is empty")
        if len(text) > MAX_TEXT_CHARS:
            raise ImportRowError(
                line, f"the {name} completion has {len(text)} characters; at most {MAX_TEXT_CHARS} are taken"
            )
    if chosen.strip() == rejected.strip():
        raise ImportRowError(line, "chosen and rejected are the same text; it says nothing about preference")
    margin = row.get("margin")
    if margin is not None and (
        isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= MAX_MARGIN
    ):
        raise ImportRowError(line, f"margin is {margin!r}; expected a number of at most {MAX_MARGIN:g}")
    return form, Pair(prompt, chosen, rejected, margin, bool(row.get("simulated", False)))


def _read_hh(row: dict[str, Any], line: int) -> tuple[list[dict[str, str]], str, str]:
    sides = []
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], str):
            raise ImportRowError(line, f"{name} is a {type(row[name]).__name__}; expected a text as in HH-RLHF")
        sides.append(parse_hh(_plain(row[name]), line))
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise ImportRowError(line, "chosen and rejected differ before the last assistant turn")
    return prompt, chosen, rejected


def parse_hh(text: str, line: int = 0) -> tuple[list[dict[str, str]], str]:
    """An HH-RLHF text as (prompt messages, last assistant turn).

    Raises:
        ImportRowError: turns that do not alternate from Human to a last Assistant.
    """
    marked = text.replace(HUMAN, "\0user\0").replace(ASSISTANT, "\0assistant\0").split("\0")
    if marked[0].strip() or len(marked) < 5 or len(marked) % 2 == 0:
        raise ImportRowError(line, 'is not in HH-RLHF form: expected "\\n\\nHuman: …\\n\\nAssistant: …"')
    turns = [
        {"role": role, "content": content.strip()} for role, content in zip(marked[1::2], marked[2::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant" or turns[0]["role"] != "user":
        raise ImportRowError(line, "must begin with Human and end with Assistant")
    if any(a["role"] == b["role"] for a, b in pairwise(turns)):
        raise ImportRowError(line, "two turns of the same speaker follow each other")
    if any(not turn["content"] for turn in turns[:-1]):
        raise ImportRowError(line, "a turn is empty")
    return turns[:-1], turns[-1]["content"]


def _read_preference(row: dict[str, Any], line: int) -> tuple[list[dict[str, str]], str, str]:
    """Explicit or implicit prompt, plain or conversational (TRL's dataset formats)."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list) and prompt is None:
        if _messages(chosen[:-1], line) != _messages(rejected[:-1], line):
            raise ImportRowError(line, "chosen and rejected differ before the last turn, and there is no prompt")
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = _messages(prompt, line)
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise ImportRowError(line, "the prompt must end with a user turn that says something")
    return messages, _assistant_text(chosen, "chosen", line), _assistant_text(rejected, "rejected", line)


def _assistant_text(value: Any, name: str, line: int) -> str:
    if isinstance(value, str):
        return value
    turns = _messages(value, line)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise ImportRowError(line, f"{name} must be a text or one assistant turn")
    return turns[0]["content"]


def _messages(value: Any, line: int) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise ImportRowError(line, f"expected a list of messages, found {type(value).__name__}")
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
            raise ImportRowError(line, 'each message needs a role of "system", "user" or "assistant"')
        if not isinstance(turn.get("content"), str):
            raise ImportRowError(line, "each message needs a content text")
    return [{"role": turn["role"], "content": _plain(turn["content"])} for turn in value]


def _plain(text: str) -> str:
    """Text that both databases hold: PostgreSQL refuses NUL, and half a surrogate is no UTF-8."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
