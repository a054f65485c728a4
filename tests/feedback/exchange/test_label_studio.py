"""Label Studio's JSON: exports of its templates come in, and what goes out holds to its task format."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from access.models import Person
from core.db import Database
from core.errors import InvalidInput
from feedback.exchange import label_studio
from feedback.exchange.exporting import export_file
from feedback.exchange.reading import Wanted
from feedback.exchange.rows import TaskRow
from feedback.models import Gold, Judgment, RuleJudgment, Task
from feedback.rules.store import ensure_rules
from tests.feedback.exchange.test_loading import ONE, PAIR, RANKING, said, take, take_rows

PROMPT = "Where does a dunnock nest?"


def annotation(*results: dict[str, Any], by: Any = 7, **more: Any) -> dict[str, Any]:
    """An annotation as an export has it."""
    return {
        "id": 1, "completed_by": by, "result": list(results), "was_cancelled": False, "ground_truth": False,
        "created_at": "2026-11-24T10:00:00.000000Z", "lead_time": 4.25, "prediction": {},
    } | more  # fmt: skip


def result(kind: str, value: Any, name: str = "answer") -> dict[str, Any]:
    key = {"pairwise": "selected", "textarea": "text"}.get(kind, kind)
    return {"id": "x", "type": kind, "from_name": name, "to_name": "t", "origin": "manual", "value": {key: value}}


def exported(data: dict[str, Any], *annotations: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """A task as an export has it."""
    return {
        "id": number, "project": 3, "data": data, "annotations": list(annotations), "predictions": [], "meta": {},
        "drafts": [], "created_at": "2026-11-24T09:00:00Z", "inner_id": number, "total_annotations": len(annotations),
    }  # fmt: skip


def take_json(database: Database, tmp_path: Path, *rows: Any, **wanted: Any) -> Any:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(rows))
    return take(database, path, Wanted(**wanted))


RLHF = {"prompt": PROMPT, "answer1": "In a hedge.", "answer2": "On a cliff."}
RANKER = {
    "task": "Rank them",
    "prompt": PROMPT,
    "items": [{"id": f"m{n}", "title": "", "body": f"Text {n}"} for n in range(3)],
}


@pytest.mark.parametrize(
    ("results", "choice", "strength"),
    [
        ([result("pairwise", "left")], "a", 1),
        ([result("pairwise", "right")], "b", 1),
        ([result("choices", ["left"])], "a", 1),
        ([result("choices", ["Answer 2"])], "b", 1),
        ([result("choices", ["answer2"])], "b", 1),
        ([result("choices", ["A is much better"])], "a", 3),
        ([result("choices", ["B is slightly better"])], "b", 1),
        ([result("choices", ["Tie"])], "tie", 0),
        ([result("choices", ["Both bad"])], "both_bad", 0),
        ([result("textarea", ["why"], "note"), result("pairwise", "left")], "a", 1),
    ],
)
def test_pairs_are_judged_by_choices_or_pairwise(
    database: Database, tmp_path: Path, results: list[Any], choice: str, strength: int
) -> None:
    report = take_json(database, tmp_path, exported(RLHF, annotation(*results)))
    assert report.errors == []
    with database.read() as session:
        judgment = session.scalars(select(Judgment)).one()
        assert (judgment.choice, judgment.strength, judgment.latency_s) == (choice, strength, 4.25)
        assert judgment.created_at.isoformat() == "2026-11-24T10:00:00+00:00"
        assert session.scalars(select(Person.login)).one() == "ext:label-studio/7"
        task = session.scalars(select(Task)).one()
        assert [completion.text for completion in task.completions] == ["In a hedge.", "On a cliff."]
        assert task.prompt.messages == [{"role": "user", "content": PROMPT}]


@pytest.mark.parametrize(
    "value", [{"rank": ["m2", "m0", "m1"]}, {"good": ["m2"], "bad": ["m0", "m1"]}, ["m2", "m0", "m1"]]
)
def test_rankers_with_and_without_buckets(database: Database, tmp_path: Path, value: Any) -> None:
    assert take_json(database, tmp_path, exported(RANKER, annotation(result("ranker", value)))).errors == []
    with database.read() as session:
        assert session.scalars(select(Judgment.answer)).one() == {"ranks": [2, 3, 1]}


def test_a_ranker_that_leaves_something_out_is_told_and_the_task_stays(database: Database, tmp_path: Path) -> None:
    report = take_json(
        database, tmp_path, exported(RANKER, annotation(result("ranker", {"_": ["m0"], "good": ["m2"]})))
    )
    assert (report.tasks, report.judgments) == (1, 0)
    assert "annotation 1" in report.errors[0][1]


def test_ratings_corrections_and_rule_checks(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        ensure_rules(session)
    graded = {"prompt": PROMPT, "response": "In a hedge."}
    assert take_json(database, tmp_path, exported(graded, annotation(result("rating", 4)))).errors == []
    edit = exported(graded, annotation(result("textarea", ["Low in a hedge."])), number=2)
    assert take_json(database, tmp_path, edit).errors == []
    kept = exported(graded, annotation(result("textarea", ["In a hedge. "])), number=4)
    assert take_json(database, tmp_path, kept, kind="correction").errors == []
    check = exported(graded, annotation(result("choices", ["Unsafe"])), number=3)
    assert take_json(database, tmp_path, check, rule="violence").errors == []
    with database.read() as session:
        assert session.scalars(select(Judgment.kind).order_by(Judgment.id)).all() == [
            "rating",
            "correction",
            "correction",
            "rule_check",
        ]
        assert session.scalars(select(Judgment.choice).order_by(Judgment.id)).all() == [None, None, "fine", None]
        assert session.scalars(select(RuleJudgment.verdict)).one() == "broken"


def test_a_rating_beyond_five_is_told(database: Database, tmp_path: Path) -> None:
    report = take_json(
        database, tmp_path, exported({"prompt": PROMPT, "response": "x"}, annotation(result("rating", 9)))
    )
    assert report.errors == [(1, "annotation 1: the rating is 9; expected a whole number from 1 to 5")]
    assert report.tasks == 1


def test_skipped_ones_are_left_out_and_ground_truth_is_a_known_answer(database: Database, tmp_path: Path) -> None:
    report = take_json(
        database, tmp_path,
        exported(RLHF, annotation(result("pairwise", "left"), was_cancelled=True), annotation(result("pairwise", "right"), by={"id": 2, "email": "a@b.example"}, ground_truth=True)),
    )  # fmt: skip
    assert (report.errors, report.judgments) == ([], 1)
    with database.read() as session:
        assert session.scalars(select(Gold.expected)).one() == {"choice": ["b"]}
        assert session.scalars(select(Person.login)).one() == "ext:label-studio/a@b.example"


def test_a_task_wants_as_many_as_judged_it_and_a_second_import_adds_nothing(database: Database, tmp_path: Path) -> None:
    row = exported(RLHF, annotation(result("pairwise", "left"), by=1), annotation(result("pairwise", "right"), by=2))
    assert take_json(database, tmp_path, row).judgments == 2
    again = take_json(database, tmp_path, row)
    assert (again.tasks, again.tasks_there, again.judgments) == (0, 1, 0)
    with database.read() as session:
        task = session.scalars(select(Task)).one()
        assert (task.required_n, task.done, task.state) == (2, 2, "done")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"image": "x.png"}, "no completions"),
        ({"answer1": "x", "answer2": "y"}, "no prompt"),
        ({"prompt": PROMPT, "a1": "x", "a2": "y", "b1": "x", "b2": "y"}, "may be the completions"),
        ({"prompt": PROMPT, "items": [{"id": 1}, {"id": 2}, {"id": 3}]}, "is no text"),
        ({"prompt": [{"who": "x"}], "answer1": "x", "answer2": "y"}, "cannot be read"),
    ],
)
def test_a_task_that_is_not_ours_is_told(database: Database, tmp_path: Path, data: Any, reason: str) -> None:
    report = take_json(database, tmp_path, exported(data), exported(RLHF))
    assert report.tasks == 1
    assert [line for line, _ in report.errors] == [1]
    assert reason in report.errors[0][1]


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "data": RLHF, "annotations": 5},
        {"id": 1, "data": RLHF, "annotations": [{"result": 5}]},
        {"id": 1, "data": RLHF, "annotations": [{"result": [{"type": "pairwise", "value": {"selected": {"x": 1}}}]}]},
        {"id": 1, "data": RLHF, "annotations": [annotation(result("pairwise", "left"), lead_time="slow")]},
        {"id": 1, "data": RLHF, "annotations": [annotation(result("pairwise", "left"), created_at="once")]},
        {"id": 1, "data": {}, "annotations": None},
    ],
)
def test_a_damaged_task_is_told_and_never_ends_the_import(database: Database, tmp_path: Path, row: Any) -> None:
    report = take_json(database, tmp_path, row, exported(RANKER, number=9))
    assert {line for line, _ in report.errors} == {1}
    assert report.judgments == 0


# Out ------------------------------------------------------------------------------------------------------------------


def test_what_goes_out_holds_to_the_format_and_comes_back(database: Database, tmp_path: Path) -> None:
    with database.session() as session:
        ensure_rules(session)
    check = ONE | {"kind": "rule_check", "rule": "violence"}
    rows = [
        PAIR | {"judgments": [said("ana", choice="left", note="low"), said("ben", choice="tie")], "required_n": 2},
        RANKING | {"judgments": [said("ana", ranks=[2, 1, 3])]},
        ONE | {"kind": "rating", "judgments": [said("ana", rating=4)]},
        check | {"judgments": [said("ana", verdict="kept")]},
        ONE | {"kind": "correction", "judgments": [said("ana", corrections={"0": "Edited."})]},
        {"kind": "probe", "rule": "violence"},
    ]
    assert take_rows(database, tmp_path, *rows).errors == []
    assert export_file(database, tmp_path / "ls.json", form="label-studio") == 5
    tasks = json.loads((tmp_path / "ls.json").read_text())
    for task in tasks:
        assert set(task) == {"data", "annotations", "predictions"}
        config = label_studio.config_of(task["data"]["kind"])
        for name in _variables(config):
            assert isinstance(task["data"][name], str | list), name
        for found in task["annotations"]:
            for part in found["result"]:
                assert f'name="{part["from_name"]}"' in config
                assert f'name="{part["to_name"]}"' in config
    ranked = tasks[1]["annotations"][0]["result"][0]
    assert ranked["value"] == {"ranker": {"answer": ["item-2", "item-1", "item-3"]}}
    assert [len(task["annotations"]) for task in tasks] == [1, 1, 1, 1, 1]  # Pairwise cannot say that two are alike
    assert tasks[0]["data"]["annotators"] == ["ext:ana"]
    back = [label_studio.read({"id": n, **task}, Wanted(kind=task["data"]["kind"])) for n, task in enumerate(tasks)]
    assert [problems for _, problems in back] == [[]] * 5
    assert [row["judgments"][0]["judgment"] for row, _ in back] == [
        {"choice": "left", "note": "low"}, {"ranks": [2, 1, 3]}, {"rating": 4}, {"verdict": "kept"},
        {"corrections": {0: "Edited."}},
    ]  # fmt: skip
    assert [row["completions"] for row, _ in back][:2] == [PAIR["completions"], RANKING["completions"]]
    assert all(row["messages"] == PAIR["messages"] for row, _ in back)


def _variables(config: str) -> list[str]:
    import re

    return re.findall(r'value="\$(\w+)"', config)


def test_what_it_cannot_ask_is_told() -> None:
    with pytest.raises(InvalidInput, match="no counterpart"):
        label_studio.config_of("probe")
    assert list(label_studio.write([TaskRow(kind="probe", rule="violence")])) == []
