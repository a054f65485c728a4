"""`/api/v1/tasks`: making, finding, cancelling tasks and raising their priority, for leads' programs."""

import contextlib
from typing import Any

from flask import Blueprint, Response, jsonify
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload, selectinload

from access.audit import record
from access.callers import calling_manager, managers_body
from access.tenants import tenant_id_of, tenant_keys
from core.body import parse_query
from core.errors import Conflict, NotFound
from core.openapi import operation
from core.web import runtime
from feedback.api.schemas import PriorityBody, TaskAnswer, TaskBody, TaskDetail, TaskPage, TaskQuery
from feedback.exchange.loading import load_task
from feedback.models import Gold, Prompt, Task, TaskItem

blueprint = Blueprint("api_tasks", __name__, url_prefix="/api/v1")

SCOPE = "manage"
TRIES = 3
COLUMNS = tuple(TaskAnswer.model_fields)


@blueprint.post("/tasks")
@operation("Tasks", {201: TaskDetail, 200: TaskDetail}, body=TaskBody, scope=SCOPE, errors=(409,))
def create() -> tuple[Response, int]:
    """Make a task. Equal contents under one `source` are one task: a second call answers 200 with the first."""
    body = managers_body(TaskBody)
    for _ in range(TRIES):
        with contextlib.suppress(
            IntegrityError
        ):  # somebody made the same task or prompt at the same moment: it is there now
            return _create(body)
    raise Conflict("others make the same task at the same moment; send it again")


def _create(body: TaskBody) -> tuple[Response, int]:
    with runtime().db.session() as session:
        manager = calling_manager(session)
        task, new = load_task(session, body)
        if new:
            after = {"kind": task.kind, "pool": task.pool, "required_n": task.required_n, "priority": task.priority}
            record(session, manager.login, "task.create", f"task:{task.id}", after=after)
        return jsonify(_detail(session, task)), 201 if new else 200


@blueprint.get("/tasks")
@operation("Tasks", TaskPage, query=TaskQuery, scope=SCOPE)
def list_tasks() -> Response:
    """Tasks by id, a page at a time."""
    query = parse_query(TaskQuery)
    with runtime().db.read() as session:
        calling_manager(session)
        wanted = select(Task).where(Task.id > query.after)
        for name in ("kind", "pool", "state"):
            if (value := getattr(query, name)) is not None:
                wanted = wanted.where(getattr(Task, name) == value)
        if query.tenant is not None:
            own = select(Prompt.id).where(Prompt.tenant_id == tenant_id_of(session, query.tenant))
            wanted = wanted.where(Task.prompt_id.in_(own))
        tasks = session.scalars(wanted.order_by(Task.id).limit(query.limit + 1)).all()
    shown = tasks[: query.limit]
    return jsonify(data=[_row(task) for task in shown], next_after=shown[-1].id if len(tasks) > len(shown) else None)


@blueprint.get("/tasks/<int:task_id>")
@operation("Tasks", TaskDetail, scope=SCOPE, errors=(404,))
def show(task_id: int) -> Response:
    """One task with its texts and, where it has one, its known answer."""
    with runtime().db.read() as session:
        calling_manager(session)
        return jsonify(_detail(session, _find(session, task_id)))


@blueprint.patch("/tasks/<int:task_id>")
@operation("Tasks", TaskDetail, body=PriorityBody, scope=SCOPE, errors=(404,))
def set_priority(task_id: int) -> Response:
    """Set a task's priority. Who works on it goes on; the order of the others follows."""
    body = managers_body(PriorityBody)
    with runtime().db.session() as session:
        manager = calling_manager(session)
        task = _find(session, task_id)
        before, task.priority = task.priority, body.priority
        session.flush()
        if before != body.priority:
            changed = ({"priority": before}, {"priority": body.priority})
            record(session, manager.login, "task.priority", f"task:{task_id}", *changed)
        return jsonify(_detail(session, task))


@blueprint.post("/tasks/<int:task_id>/cancel")
@operation("Tasks", TaskDetail, scope=SCOPE, errors=(404, 409))
def cancel(task_id: int) -> Response:
    """Ask for no more judgments of a task. What is being typed may still come in, and is kept as surplus."""
    with runtime().db.session() as session:
        manager = calling_manager(session)
        task = _find(session, task_id)
        # By one conditional UPDATE: its last judgment may come in at the same moment.
        stopped = (
            update(Task).where(Task.id == task_id, Task.state == "live").values(state="cancelled").returning(Task.id)
        )
        if session.scalar(stopped) is not None:
            session.refresh(task)
            record(session, manager.login, "task.cancel", f"task:{task_id}", {"state": "live"}, {"state": "cancelled"})
        elif task.state != "cancelled":
            raise Conflict(f"task {task_id} is done; there is nothing to cancel")
        return jsonify(_detail(session, task))


def _find(session: Session, task_id: int) -> Task:
    items = selectinload(Task.items).joinedload(TaskItem.completion)
    task = session.scalar(select(Task).options(joinedload(Task.prompt), items).where(Task.id == task_id))
    if task is None:
        raise NotFound(f"there is no task {task_id}")
    return task


def _row(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in COLUMNS} | {"created_at": task.created_at.isoformat()}


def _detail(session: Session, task: Task) -> dict[str, Any]:
    gold = session.get(Gold, task.id)
    completions = [
        {"id": c.id, "text": c.text, "source": c.source, "policy_version_id": c.policy_version_id}
        for c in task.completions
    ]
    return _row(task) | {
        "messages": task.prompt.messages if task.prompt else [],
        "tenant": next(iter(tenant_keys(session, [task.prompt.tenant_id if task.prompt else None]).values()), None),
        "completions": completions,
        "gold": {"expected": gold.expected, "explanation": gold.explanation} if gold else None,
    }
