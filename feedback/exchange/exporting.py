"""Export: preferences as Hugging Face `prompt/chosen/rejected` and in HH-RLHF form, completions with labels, tasks with all
their judgments in our own form and in Label Studio's.

What comes out as preferences or as tasks can be imported again and gives the same. Simulated rows are marked in the column
`simulated` in all forms, and left out unless asked for.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from core.artifacts import writing
from core.db import Database
from core.errors import InvalidInput
from feedback.exchange import label_studio
from feedback.exchange.importing import ASSISTANT, HUMAN
from feedback.exchange.unpaired import unpaired_rows
from feedback.exchange.writing import as_json, stored_rows
from feedback.preferences import Preference, gather

Form = Literal["preference", "hh-rlhf", "unpaired", "tasks", "label-studio"]
FORMS: tuple[Form, ...] = get_args(Form)


def export_file(db: Database, path: Path, *, form: Form = "preference", include_simulated: bool = False) -> int:
    """Write everything that a form can tell to `path` and return how many rows; the file is whole or not there.

    Args:
        path: ends with .jsonl, or with .json, one array; or with .parquet where rows are alike.

    Raises:
        InvalidInput: an ending that is not known, or that does not go with the form.
    """
    rows = exported(db, form, include_simulated=include_simulated)
    if path.suffix == ".parquet" and form not in ("tasks", "label-studio"):
        from datasets import Dataset

        table = Dataset.from_list(list(rows))
        table.to_parquet(str(path))
        return len(table)
    if path.suffix not in (".jsonl", ".json"):
        raise InvalidInput(f"{path.name}: the ending must be .jsonl, .json or, for preferences and labels, .parquet")
    n = 0
    with writing(path) as file:
        for n, row in enumerate(rows, 1):
            before = "" if path.suffix == ".jsonl" else "[\n" if n == 1 else ",\n"
            file.write(before + json.dumps(row, ensure_ascii=False) + ("\n" if path.suffix == ".jsonl" else ""))
        if path.suffix == ".json":
            file.write("\n]\n" if n else "[]\n")
    return n


def exported(db: Database, form: Form, *, include_simulated: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a form, one after the other."""
    if form == "tasks":
        yield from map(as_json, stored_rows(db, include_simulated=include_simulated))
    elif form == "label-studio":
        yield from label_studio.write(stored_rows(db, include_simulated=include_simulated))
    else:
        with db.read() as session:
            if form == "unpaired":
                yield from unpaired_rows(session, include_simulated=include_simulated)
            else:
                pairs = gather(session, include_simulated=include_simulated, max_imported_pairs=10**9).preferences
                yield from export_rows(pairs, form)


def export_rows(pairs: Iterable[Preference], form: Form) -> Iterator[dict[str, Any]]:
    """Rows of the wanted form. HH-RLHF has no system turns and marks turns within the text: pairs that it cannot
    hold are left out of it."""
    for pair in pairs:
        if form == "preference":
            yield {
                "prompt": pair.prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
                "margin": pair.margin,
                "simulated": pair.simulated,
            }
        elif _fits_hh(pair):
            shared = "".join(f"{HUMAN if t['role'] == 'user' else ASSISTANT} {t['content']}" for t in pair.prompt)
            row: dict[str, Any] = {s: f"{shared}{ASSISTANT} {getattr(pair, s)}" for s in ("chosen", "rejected")}
            yield row | ({"simulated": True} if pair.simulated else {})


def _fits_hh(pair: Preference) -> bool:
    texts = [*(turn["content"] for turn in pair.prompt), pair.chosen, pair.rejected]
    marked = any(mark in text for mark in (HUMAN, ASSISTANT) for text in texts)
    return not marked and all(turn["role"] != "system" for turn in pair.prompt)
