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
        SettingsError: `DUNNOCK_SUITES_DIR` holds no such file, or it is not JSON Lines.
    """
    return _read((get_settings().suites_dir or OURS) / f"{name}.jsonl")


@lru_cache
def _read(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        with path.open(encoding="utf-8") as file:
            return tuple(json.loads(line) for line in file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the suite {path} cannot be read: {error}; see DUNNOCK_SUITES_DIR") from error


def harmful(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Harmful requests of a part; with `limit`, n of them spread evenly over the categories' order."""
    found = [r for r in rows("harmful") if r["part"] == part]
    return [SuitePrompt(r["id"], r["text"], r["category"], True, "harmful") for r in _spread(found, limit)]


def benign(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Benign requests of a part, look-alikes and ordinary ones."""
    found = [r for r in rows("benign") if r["part"] == part]
    return [
        SuitePrompt(r["id"], r["text"], r["category"], False, r["kind"], r.get("reference"))
        for r in _spread(found, limit)
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
