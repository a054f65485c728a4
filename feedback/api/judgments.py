"""`/api/v1/judgments` and `/api/v1/export`: what was said, page by page or all of it as a stream, for leads' programs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from access.callers import calling_manager
from access.models import Person
from core.body import parse_query
from core.db import Database
from core.errors import NotFound
from core.openapi import operation
from core.web import runtime
from feedback.api.schemas import ExportQuery, ExportRow, JudgmentAnswer, JudgmentPage, JudgmentQuery
from feedback.exchange.exporting import FORMS, exported
from feedback.judgments import read_said
from feedback.models import Assignment, ImportedJudgment, Judgment, Task

blueprint = Blueprint("api_judgments", __name__, url_prefix="/api/v1")

SCOPE = "manage"
LINES = ("application/jsonl",)
ROWS_AT_A_TIME = 500
COLUMNS = (
    "id", "kind", "task_id", "completion_id", "choice", "strength", "rating", "thumbs", "answer", "note", "latency_s",
    "simulated", "surplus", "supersedes_id",
)  # fmt: skip


@blueprint.get("/judgments")
@operation("Judgments", JudgmentPage, query=JudgmentQuery, scope=SCOPE)
def list_judgments() -> Response:
    """Judgments by id, a page at a time; superseded and surplus ones are among them."""
    query = parse_query(JudgmentQuery)
    with runtime().db.read() as session:
        calling_manager(session)
        return _page(session, query, _wanted(query.simulated))


@blueprint.get("/tasks/<int:task_id>/judgments")
@operation("Judgments", JudgmentPage, query=JudgmentQuery, scope=SCOPE, errors=(404,))
def list_of_task(task_id: int) -> Response:
    """Judgments of one task."""
    query = parse_query(JudgmentQuery)
    with runtime().db.read() as session:
        calling_manager(session)
        if session.get(Task, task_id) is None:
            raise NotFound(f"there is no task {task_id}")
        return _page(session, query, _wanted(query.simulated).where(Judgment.task_id == task_id))


@blueprint.get("/judgments/export")
@operation("Judgments", JudgmentAnswer, query=ExportQuery, scope=SCOPE, media=LINES)
def export_judgments() -> Response:
    """All judgments, one JSON object a line."""
    query = parse_query(ExportQuery)
    with runtime().db.read() as session:
        calling_manager(session)
    return _lines(_all(runtime().db, query.simulated))


@blueprint.get("/export/<form>")
@operation("Export", ExportRow, query=ExportQuery, scope=SCOPE, errors=(404,), media=LINES)
def export(form: str) -> Response:
    """Everything in one of the forms preference, hh-rlhf, unpaired, tasks and label-studio, one JSON object a line."""
    query = parse_query(ExportQuery)
    with runtime().db.read() as session:
        calling_manager(session)
    if form not in FORMS:
        raise NotFound(f"there is no form {form!r}; it is one of {', '.join(FORMS)}")
    return _lines(exported(runtime().db, form, include_simulated=query.simulated))


def _lines(rows: Iterable[dict[str, Any]]) -> Response:
    """A stream of rows; a failure in the middle breaks the connection off, so that nobody takes a part for the whole."""
    return Response((json.dumps(row, ensure_ascii=False) + "\n" for row in rows), mimetype=LINES[0])


def _wanted(simulated: bool) -> Select[Any]:
    query = (
        select(Judgment, Person.login, Assignment.shown_order, ImportedJudgment.judgment_id.label("imported"))
        .outerjoin(Person, Person.id == Judgment.annotator_id)
        .outerjoin(Assignment, Assignment.id == Judgment.assignment_id)
        .outerjoin(ImportedJudgment, ImportedJudgment.judgment_id == Judgment.id)
        .order_by(Judgment.id)
    )
    return query if simulated else query.where(~Judgment.simulated)


def _page(session: Session, query: JudgmentQuery, wanted: Select[Any]) -> Response:
    wanted = wanted.where(Judgment.id > query.after)
    if query.kind is not None:
        wanted = wanted.where(Judgment.kind == query.kind)
    if query.annotator is not None:
        wanted = wanted.where(Person.login == query.annotator)
    rows = session.execute(wanted.limit(query.limit + 1)).all()
    shown = rows[: query.limit]
    after = shown[-1].Judgment.id if len(rows) > len(shown) else None
    return jsonify(data=_told(session, shown), next_after=after)


def _all(db: Database, simulated: bool) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        with db.read() as session:
            rows = session.execute(_wanted(simulated).where(Judgment.id > after).limit(ROWS_AT_A_TIME)).all()
            told = _told(session, rows)
        if not rows:
            return
        yield from told
        after = rows[-1].Judgment.id


def _told(session: Session, rows: Sequence[Any]) -> list[dict[str, Any]]:
    acts = read_said(session, [row.Judgment for row in rows])
    return [
        {name: getattr(row.Judgment, name) for name in COLUMNS}
        | {
            "annotator": row.login,
            "shown_order": row.shown_order,
            "imported": row.imported is not None,
            "findings": [vars(finding) for finding in said.findings],
            "corrections": [{"completion_id": completion_id, "text": text} for completion_id, text in said.edits],
            "created_at": row.Judgment.created_at.isoformat(),
        }
        for row, said in zip(rows, acts, strict=True)
    ]
