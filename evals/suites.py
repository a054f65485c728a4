"""The suites: prompts of our own writing, split by topic into a seed part and a frozen part.

The seed part may become training data. The frozen part never does: snapshots leave out its prompts and
whatever is nearly the same. `evals/suites/README.md` says what stands in the files.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "suites"
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


@lru_cache
def _rows(name: str) -> tuple[dict[str, Any], ...]:
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
        return tuple(json.loads(line) for line in file)


def harmful(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Harmful requests of a part; with `limit`, n of them spread evenly over the categories' order."""
    rows = [r for r in _rows("harmful") if r["part"] == part]
    return [SuitePrompt(r["id"], r["text"], r["category"], True, "harmful") for r in _spread(rows, limit)]


def benign(part: Part, limit: int = 0) -> list[SuitePrompt]:
    """Benign requests of a part, look-alikes and ordinary ones."""
    rows = [r for r in _rows("benign") if r["part"] == part]
    return [
        SuitePrompt(r["id"], r["text"], r["category"], False, r["kind"], r.get("reference"))
        for r in _spread(rows, limit)
    ]


def capability(limit: int = 0) -> list[CapabilityItem]:
    """The capability items."""
    return [
        CapabilityItem(r["id"], r["question"], r["right"], tuple(r["wrong"]))
        for r in _spread(_rows("capability"), limit)
    ]


def frozen_texts() -> list[str]:
    """Every text that must never be trained on."""
    suites = [p.text for p in [*harmful("frozen"), *benign("frozen")]]
    return suites + [item.question for item in capability()]


def _spread(rows: "list[dict[str, Any]] | tuple[dict[str, Any], ...]", limit: int) -> list[dict[str, Any]]:
    """All rows, or `limit` of them at even distances."""
    if limit <= 0 or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]
