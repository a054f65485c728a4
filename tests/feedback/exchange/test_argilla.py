"""Argilla's records, in the shapes that argilla 2.8 and 1.29 write them (`to_list`, flattened and not; FeedbackRecord)."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from access.models import Person
from core.db import Database
from feedback.exchange.reading import Wanted
from feedback.models import Judgment, Task
from tests.feedback.exchange.test_loading import take

ANA, BEN = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
PAIR = {"prompt": "Where does it nest?", "response1": "In a hedge.", "response2": "On a cliff."}
NESTED = {
    "id": "r1", "fields": PAIR, "metadata": {}, "vectors": {}, "status": "completed", "_server_id": None,
    "suggestions": {"preference": {"value": "response2", "score": 0.6, "agent": "judge-1"}},
    "responses": {
        "preference": [{"value": "response1", "user_id": ANA}, {"value": "tie", "user_id": BEN}],
        "comment": [{"value": "low down", "user_id": ANA}],
    },
}  # fmt: skip
COLUMNS = {
    "id": "r1", "status": "completed", "_server_id": None, **PAIR, "preference.responses": ["response1", "tie", "tie"],
    "preference.responses.users": [ANA, BEN, "c"], "preference.responses.status": ["submitted", "submitted", "draft"],
    "comment.responses": ["low down"], "comment.responses.users": [ANA], "comment.responses.status": [None],
    "preference.suggestion": "response2", "preference.suggestion.score": 0.6, "preference.suggestion.agent": "judge-1",
}  # fmt: skip
FIRST = {
    "external_id": "r1", "fields": PAIR, "metadata": {},
    "suggestions": [{"question_name": "preference", "value": "response2", "agent": "judge-1", "type": "model"}],
    "responses": [
        {"user_id": ANA, "status": "submitted", "values": {"preference": {"value": "response1"}, "comment": {"value": "low down"}}},
        {"user_id": BEN, "status": "submitted", "values": {"preference": {"value": "tie"}}},
        {"user_id": "c", "status": "discarded", "values": {"preference": {"value": "response2"}}},
    ],
}  # fmt: skip


def take_json(database: Database, tmp_path: Path, *rows: Any, **wanted: Any) -> Any:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows))
    return take(database, path, Wanted(**wanted))


def record(fields: dict[str, Any], **responses: Any) -> dict[str, Any]:
    given = {question: [{"value": value, "user_id": ANA}] for question, value in responses.items()}
    return {"id": "r", "fields": fields, "responses": given, "suggestions": {}}


@pytest.mark.parametrize("row", [NESTED, COLUMNS, FIRST], ids=["2.x", "2.x columns", "1.x"])
def test_each_shape_of_a_record_is_read(database: Database, tmp_path: Path, row: dict[str, Any]) -> None:
    report = take_json(database, tmp_path, row)
    assert (report.errors, report.judgments) == ([], 3)
    with database.read() as session:
        found = session.execute(
            select(Person.login, Judgment.choice, Judgment.note, Judgment.simulated, Judgment.surplus)
            .join(Person, Person.id == Judgment.annotator_id)
            .order_by(Judgment.id)
        ).all()
        assert [tuple(row) for row in found] == [
            (f"ext:argilla/{ANA}", "a", "low down", False, False),
            (f"ext:argilla/{BEN}", "tie", None, False, False),
            ("ext-script:argilla/judge-1", "b", None, True, True),  # a suggestion takes no person's place
        ]
        task = session.scalars(select(Task)).one()
        assert (task.kind, task.required_n, task.state) == ("pairwise", 2, "done")
    again = take_json(database, tmp_path, row)
    assert (again.tasks, again.judgments, again.judgments_there) == (0, 0, 3)


@pytest.mark.parametrize(
    "value",
    [["b", "a", "c"], [{"value": "b", "rank": 1}, {"value": "a", "rank": 2}, {"value": "c", "rank": 3}]],
    ids=["2.x", "1.x"],
)
def test_rankings(database: Database, tmp_path: Path, value: Any) -> None:
    fields = {"prompt": "Where?", "a": "In a hedge.", "b": "On a cliff.", "c": "Nowhere."}
    assert take_json(database, tmp_path, record(fields, rank=value)).errors == []
    with database.read() as session:
        assert session.scalars(select(Judgment.answer)).one() == {"ranks": [2, 1, 3]}


def test_a_ranking_of_two_is_a_choice(database: Database, tmp_path: Path) -> None:
    tied = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]
    take_json(database, tmp_path, record(PAIR, rank=["response2", "response1"]))
    take_json(database, tmp_path, record(PAIR, rank=tied) | {"id": "other"})
    with database.read() as session:
        assert session.scalars(select(Judgment.choice).order_by(Judgment.id)).all() == ["b", "tie"]


def test_ratings_of_one_reply_in_a_conversation(database: Database, tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Hm."},
    ]
    assert take_json(database, tmp_path, record({"chat": chat, "response": "Fine."}, quality=2)).errors == []
    with database.read() as session:
        assert session.scalars(select(Judgment.rating)).one() == 2
        assert session.scalars(select(Task)).one().prompt.messages == chat


@pytest.mark.parametrize(
    "row",
    [
        record(PAIR, preference="purple"),
        record(PAIR, preference={"start": 1}),
        record({"prompt": "Where?", "response": "Here."}, quality=10),
        record(PAIR, rank=["response1", "response9"]),
        record(PAIR) | {"responses": {"preference": 5}},
        record(PAIR) | {"responses": [{"user_id": ANA, "values": 5}]},
        record({"prompt": "Where?"}),
        {"fields": {}, "responses": None},
    ],
)
def test_what_does_not_fit_is_told(database: Database, tmp_path: Path, row: dict[str, Any]) -> None:
    report = take_json(database, tmp_path, row, NESTED)
    assert {line for line, _ in report.errors} == {1}
    assert report.judgments == 3
