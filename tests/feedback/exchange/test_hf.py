"""Hugging Face datasets as tasks: from folders, Arrow and Parquet files, with the columns that they usually have."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from sqlalchemy import select

from core.db import Database
from core.errors import InvalidInput
from feedback.exchange.reading import Wanted, read_tasks
from feedback.models import Task
from feedback.rules.store import ensure_rules
from tests.feedback.exchange.test_loading import take

ASK = "Where does a dunnock nest?"
TURNS = [{"role": "user", "content": ASK}]


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PREFERENCE = [{"prompt": ASK, "chosen": f"In hedge {n}.", "rejected": f"On cliff {n}."} for n in range(3)]


@pytest.mark.parametrize("how", ["folder", "splits", "arrow", "parquet"])
def test_each_way_of_keeping_a_dataset(database: Database, tmp_path: Path, how: str) -> None:
    dataset, path = Dataset.from_list(PREFERENCE), tmp_path / "found"
    if how == "folder":
        dataset.save_to_disk(str(path))
    elif how == "splits":
        DatasetDict({"train": dataset.select([0, 1]), "test": dataset.select([2])}).save_to_disk(str(path))
    elif how == "arrow":
        dataset.save_to_disk(str(path))
        path = next(path.glob("*.arrow"))
    else:
        path = tmp_path / "found.parquet"
        dataset.to_parquet(str(path))
    report = take(database, path)
    assert (report.tasks, report.errors, dict(report.kinds)) == (3, [], {"pairwise": 3})
    assert take(database, path).tasks == 0


@pytest.mark.parametrize(
    ("row", "kind", "completions"),
    [
        ({"prompt": TURNS, "chosen": [reply("A.")], "rejected": [reply("B.")]}, "pairwise", ["A.", "B."]),
        ({"chosen": [*TURNS, reply("A.")], "rejected": [*TURNS, reply("B.")]}, "pairwise", ["A.", "B."]),
        ({"prompt": TURNS, "completion": [reply("A.")], "label": True}, "rating", ["A."]),
        ({"instruction": ASK, "response_a": "A.", "response_b": "B."}, "pairwise", ["A.", "B."]),
        ({"instruction": ASK, "completions": [{"response": "A."}, {"response": "B."}, {"response": "C."}]}, "ranking", ["A.", "B.", "C."]),
        ({"question": ASK, "responses": ["A.", "B.", "C.", "D."]}, "ranking", ["A.", "B.", "C.", "D."]),
        ({"conversation": [{"from": "human", "value": ASK}], "response": "A."}, "rating", ["A."]),
    ],
)  # fmt: skip
def test_the_columns_that_datasets_have(
    database: Database, tmp_path: Path, row: dict[str, Any], kind: str, completions: list[str]
) -> None:
    Dataset.from_list([row]).to_parquet(str(tmp_path / "found.parquet"))
    assert take(database, tmp_path / "found.parquet").errors == []
    with database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.kind, [completion.text for completion in task.completions]) == (kind, completions)
        assert task.prompt.messages == TURNS


def test_a_topic_and_a_rule(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        ensure_rules(session)
    Dataset.from_list([{"prompt": ASK, "response": "A.", "category": "birds"}]).to_parquet(str(tmp_path / "x.parquet"))
    assert take(database, tmp_path / "x.parquet", Wanted(rule="violence")).errors == []
    with database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.kind, task.category) == ("rule_check", "birds")


def test_a_folder_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no dataset"):
        read_tasks(tmp_path, Wanted())
    (tmp_path / "x.arrow").write_text("no arrow")
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(read_tasks(tmp_path / "x.arrow", Wanted()))
    with pytest.raises(InvalidInput, match="form"):
        read_tasks(tmp_path, Wanted(form="xml"))
