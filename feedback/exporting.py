"""Export of preferences: Hugging Face `prompt/chosen/rejected` as JSONL or Parquet, and HH-RLHF form.

What comes out can be imported again and gives the same pairs. Simulated pairs are marked in the column
`simulated` in both forms, and left out unless asked for.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from core.artifacts import write_text
from core.errors import InvalidInput
from feedback.importing import ASSISTANT, HUMAN
from feedback.preferences import Preference, gather

Form = Literal["preference", "hh-rlhf"]


def export_file(session: Session, path: Path, *, form: Form = "preference", include_simulated: bool = False) -> int:
    """Write all preferences to `path` (.jsonl or .parquet) and return how many.

    Raises:
        InvalidInput: an ending that is not known.
    """
    pairs = gather(session, include_simulated=include_simulated, max_imported_pairs=10**9).preferences
    rows = list(export_rows(pairs, form))
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        raise InvalidInput(f"{path.name}: the ending must be .jsonl or .parquet")
    return len(rows)


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
