"""The suites: prompts of our own writing, split by topic into a seed part and a frozen part.

The seed part may become training data. The frozen part never does: snapshots leave out its prompts and
whatever is nearly the same. `evals/suites/README.md` says what stands in the files.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core.errors import SettingsError
from core.settings import get_settings

OURS = Path(__file__).parent / "suites"
Part = Literal["seed", "frozen"]
FIELDS = {
    "harmful": {"id", "text", "category", "part"},
    "benign": {"id", "text", "category", "part", "kind"},
    "capability": {"id", "question", "right", "wrong"},
}
"""What each row of a suite must have."""


@dataclass(frozen=True)
class SuitePrompt:
    """One request of a suite. `reference` is a good completion; every benign one has it."""

    id: str
    text: str
    category: str
    harmful: bool
    kind: str  # harmful | lookalike | ordinary
    reference: str | None = None


@dataclass(frozen=True)
class CapabilityItem:
    """An easy question with one right and several wrong short answers."""

    id: str
    question: str
    right: str
    wrong: tuple[str, ...]


def rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a suite's file, as they stand in it.

    Raises:
        SettingsError: `DUNNOCK_SUITES_DIR` holds no such file, it is not JSON Lines, or a row lacks a field.
    """
    return _read((get_settings().suites_dir or OURS) / f"{name}.jsonl", frozenset(FIELDS.get(name, ())))


@lru_cache
def _read(path: Path, fields: frozenset[str]) -> tuple[dict[str, Any], ...]:
    try:
        with path.open(encoding="utf-8") as file:
            found = tuple(json.loads(line) for line in file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the suite {path} cannot be read: {error}; see DUNNOCK_SUITES_DIR") from error
    for number, row in enumerate(found, start=1):
        lacking = fields - set(row) if isinstance(row, dict) else fields
        if lacking:
            raise SettingsError(f"the suite {path} lacks {', '.join(sorted(lacking))} in line {number}")
    return found


def _of(name: str, part: Part) -> list[dict[str, Any]]:
    return [row for row in rows(name) if row["part"] == part]


def harmful(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Harmful requests of a part; with `limit`, n of them spread evenly over the categories' order."""
    return [
        SuitePrompt(r["id"], r["text"], r["category"], True, "harmful") for r in _spread(_of("harmful", part), limit)
    ]


def benign(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Benign requests of a part, look-alikes and ordinary ones."""
    return [
        SuitePrompt(r["id"], r["text"], r["category"], False, r["kind"], r.get("reference"))
        for r in _spread(_of("benign", part), limit)
    ]


def capability(limit: int = 0) -> list[CapabilityItem]:
    """The capability items."""
    return [
        CapabilityItem(r["id"], r["question"], r["right"], tuple(r["wrong"]))
        for r in _spread(rows("capability"), limit)
    ]


def frozen_texts() -> list[str]:
    """Every text that must never be trained on."""
    suites = [p.text for p in [*harmful("frozen"), *benign("frozen")]]
    return suites + [item.question for item in capability()]


def _spread(found: "list[dict[str, Any]] | tuple[dict[str, Any], ...]", limit: int) -> list[dict[str, Any]]:
    """All rows, or `limit` of them at even distances."""
    if limit <= 0 or limit >= len(found):
        return list(found)
    return [found[i * len(found) // limit] for i in range(limit)]
