"""Rows of every form that are spoilt in one place: each is taken or reported, and none ends the import."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from core.db import Database
from feedback.exchange.loading import load
from feedback.exchange.reading import Wanted, _read
from feedback.rules.store import ensure_rules

TALK = [{"role": "user", "content": "Where?"}]
VERDICT = {"rule": "made_up_facts", "item": 1, "verdict": "broken", "span": "Cliff"}
ROWS: dict[str, dict[str, Any]] = {
    "pair": {
        "kind": "pairwise", "messages": TALK, "completions": ["Hedge.", "Cliff."], "category": "birds", "harmful": False,
        "pool": "uniform", "priority": 0, "required_n": 2, "source": "mine", "why": "asked",
        "judgments": [{
            "annotator": "ana", "judgment": {"choice": "left", "strength": 3, "rule_verdicts": [VERDICT], "corrections": {"0": "A hedge."}},
            "latency_s": 1, "created_at": "2026-11-24T12:00:00Z", "shown_order": [0, 1],
        }],
    },
    "probe": {
        "kind": "probe", "rule": "violence",
        "judgments": [{
            "annotator": "ana", "judgment": {"turns": [{"completion_id": "r", "verdict": "broken"}]},
            "replies": {"r": {"messages": TALK, "text": "No."}},
        }],
    },
    "known answer": {
        "kind": "ranking", "messages": TALK, "completions": ["Hedge.", "Cliff.", "Moss."], "gold": {"best": [0]},
        "judgments": [{"annotator": "ben", "judgment": {"ranks": [1, 2, 3]}}],
    },
    "label studio": {
        "id": 1, "project": 2, "data": {"prompt": "Where?", "response1": "Hedge.", "response2": "Cliff."},
        "annotations": [{
            "completed_by": {"id": 1}, "lead_time": 2.0, "created_at": "2026-11-24T12:00:00Z", "ground_truth": True,
            "result": [{"type": "pairwise", "from_name": "p", "value": {"selected": "left"}}],
        }],
    },
    "label studio, ranker": {
        "id": 1, "data": {"prompt": "Where?", "items": [{"id": n, "body": f"In {n}."} for n in "xyz"]},
        "annotations": [{"completed_by": 1, "result": [{"type": "ranker", "value": {"ranker": {"_": ["x"], "r": ["y", "x", "z"]}}}]}],
    },
    "label studio, choices": {
        "id": 1, "data": {"prompt": "Where?", "text": "Hedge."},
        "annotations": [{"completed_by": 1, "result": [{"type": "choices", "value": {"choices": ["4"]}}]}],
    },
    "argilla 2": {
        "id": "u", "fields": {"prompt": "Where?", "response1": "Hedge.", "response2": "Cliff."},
        "responses": {"p": [{"user_id": "u1", "value": "response1"}]}, "suggestions": {"p": {"value": "response1", "agent": "a"}},
    },
    "argilla 1": {
        "id": "u", "fields": {"prompt": "Where?", "response": "Hedge."},
        "responses": [{"user_id": "u", "status": "submitted", "values": {"r": {"value": 4}}}],
        "suggestions": [{"question_name": "r", "value": 3, "agent": "a"}],
    },
    "argilla, columns": {
        "prompt": "Where?", "response1": "Hedge.", "response2": "Cliff.", "p.responses": ["response1"],
        "p.responses.users": ["u"], "p.responses.status": ["submitted"], "p.suggestion": "response1", "p.suggestion.agent": "a",
    },
    "hugging face": {
        "prompt": "Where?", "category": "birds", "chosen": [*TALK, {"role": "assistant", "content": "Hedge."}],
        "rejected": [*TALK, {"role": "assistant", "content": "Cliff."}],
    },
}  # fmt: skip
SPOILT = (
    None, True, -1, 1e308, float("nan"), "", "\0", "\ud800", "x" * 200_001, [], {}, [[]], [{}], [None], {"a": 1}, 2**63,
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "violence@99999999999999999999", "٣", "1" * 5000,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def spoilt(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in places(row):
        for value in SPOILT:
            found = copy.deepcopy(row)
            holder: Any = found
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            yield found


@pytest.mark.parametrize("form", ROWS)
def test_a_spoilt_row_ends_no_import(database: Database, form: str) -> None:
    with database.session() as session:
        ensure_rules(session)
    rows = [ROWS[form], *spoilt(ROWS[form])]
    report = load(database, (_read(line, row, Wanted()) for line, row in enumerate(rows, 1)), "f@1", dry_run=True)
    good = report.tasks + report.tasks_there
    assert good > 1
    lines = {line for line, _ in report.errors}
    assert 1 not in lines  # as it is, it goes in
    assert len(lines) > len(rows) / 4
    assert good + len(lines) >= len(rows)
