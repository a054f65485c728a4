"""Rows of Hugging Face datasets as tasks: prompts with completions in the columns that such datasets usually have.

Two completions (also `chosen` and `rejected`) make a pairwise task, three to six a ranking, one a rating. Which of the two
was chosen is not taken over as a judgment, since a dataset does not say whose it is: `import` takes such rows as pairs.
"""

from collections.abc import Mapping
from typing import Any

from feedback.exchange.foreign import Fields, kind_of
from feedback.exchange.reading import Wanted

TOPICS = ("category", "topic", "harm_category", "subject")


def read(row: Mapping[str, Any], wanted: Wanted) -> tuple[dict[str, Any], list[str]]:
    """A row of a dataset as a row of ours.

    Raises:
        InvalidInput: there is no task in it that we know.
    """
    fields = Fields.of(_with_prompt(row), wanted.fields)
    topic = next((row[name] for name in TOPICS if isinstance(row.get(name), str) and row[name]), None)
    task = {
        "kind": wanted.kind or kind_of(fields, (), wanted.rule), "messages": fields.messages,
        "completions": fields.completions, "category": topic[:60] if topic else None,
    }  # fmt: skip
    return task, []


def _with_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Datasets without a prompt have it in what both sides begin with."""
    chosen = row.get("chosen")
    if isinstance(chosen, list) and len(chosen) > 1 and not row.get("prompt"):
        return {**row, "prompt": chosen[:-1]}
    return row
