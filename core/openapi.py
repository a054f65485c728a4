"""The OpenAPI 3.1 document of the app's programming interface, out of what its views say of themselves.

`@operation(…)` puts the schemas of a call on its view and changes nothing of what the view does or costs; `document(app)`
reads them off all routes. Bodies and answers are pydantic models, so the document cannot say another thing than the code.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from typing import Any, Literal, TypeVar

from flask import Flask
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.routing import Rule

from core.db import MAX_ID

View = TypeVar("View", bound=Callable[..., Any])
Key = tuple[type[BaseModel], JsonSchemaMode]
Refs = dict[Any, dict[str, Any]]  # by Key
REF = "#/components/schemas/{model}"
PREFIXES = ("/api/v1", "/v1")
ERRORS = {
    400: "Something of what was sent cannot be used; the detail says what.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key lacks the scope, or its person the role.",
    404: "There is no such thing.",
    405: "No id is so large; the path is another's.",
    409: "The state has moved on; the detail says how.",
    413: "The body is larger than 4 MiB.",
    429: "Over a limit of requests or tokens; the header `Retry-After` has the seconds to wait.",
    503: "The engine does not answer, or nothing is set up yet.",
}


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="`urn:dunnock:CODE`.")
    title: str
    status: int
    detail: str = Field(description="What was found, what was expected, what to do.")


class OpenAIErrorBody(BaseModel):
    """What is wrong, in OpenAI's words."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An error under `/v1`."""

    error: OpenAIErrorBody


@dataclass(frozen=True)
class Operation:
    """What a call takes and gives.

    Attributes:
        scope: what a key must be good for; None where nobody is asked.
        errors: the statuses that it may end with beside 401 and 403 (calls with a scope) and 413 (calls with a body).
        problems: more of them, whose documents have members of their own.
        media: what it answers with; an event stream or JSON lines have rows of `answer`.
    """

    answers: Mapping[int, type[BaseModel] | None]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    scope: str | None = None
    errors: tuple[int, ...] = ()
    problems: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    media: tuple[str, ...] = ("application/json",)
    tag: str = field(default="")


def operation(
    tag: str,
    answers: type[BaseModel] | Mapping[int, type[BaseModel] | None],
    *,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    scope: str | None = None,
    errors: tuple[int, ...] = (),
    problems: Mapping[int, type[BaseModel]] | None = None,
    media: tuple[str, ...] = ("application/json",),
) -> Callable[[View], View]:
    """Decorator of views under `/api/v1` and `/v1`: say what they take and give; see `Operation`."""
    told = answers if isinstance(answers, Mapping) else {200: answers}

    def decorate(view: View) -> View:
        view.__dict__["openapi"] = Operation(told, body, query, scope, errors, problems or {}, media, tag)
        return view

    return decorate


def document(app: Flask) -> dict[str, Any]:
    """The document of all calls that are described."""
    found = sorted(_described(app), key=lambda entry: (not entry[0].rule.startswith("/api"), entry[0].rule, entry[1]))
    refs, schemas = _schemas([operation for _, _, operation in found])
    paths: dict[str, dict[str, Any]] = {}
    for rule, method, described in found:
        view = app.view_functions[rule.endpoint]
        paths.setdefault(_path(rule), {})[method.lower()] = _operation(rule, view, described, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dunnock", "version": "1",
            "description": "Tasks, judgments, rules and people for programs, and the chat API. Errors under `/api` are RFC "
            "9457 problem details; under `/v1` they have OpenAI's shape.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer dk-…`."}
            },
        },
    }  # fmt: skip


def _described(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    for rule in app.url_map.iter_rules():
        described = getattr(app.view_functions[rule.endpoint], "openapi", None)
        if isinstance(described, Operation):
            yield from ((rule, m, described) for m in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}))


def _schemas(operations: list[Operation]) -> tuple[Refs, dict[str, Any]]:
    """A reference for each model as it is taken or given, and the definitions."""
    wanted: list[Key] = [(Problem, "serialization"), (OpenAIError, "serialization")]
    for described in operations:
        wanted += [(model, "validation") for model in (described.body, described.query) if model]
        answers = (*described.answers.values(), *described.problems.values())
        wanted += [(model, "serialization") for model in answers if model]
    refs, definitions = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REF)
    return dict(refs.items()), definitions.get("$defs", {})


def _operation(rule: Rule, view: Any, described: Operation, refs: Refs) -> dict[str, Any]:
    summary, _, more = (getdoc(view) or rule.rule).partition("\n\n")
    told: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [described.tag],
        "summary": " ".join(summary.split()),
        "parameters": [*_path_parameters(rule), *_query_parameters(described.query)],
        "responses": _responses(rule, described, refs),
    }
    if more:
        told["description"] = more
    if described.body is not None:
        schema = refs[described.body, "validation"]
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if described.scope is not None:
        told["security"] = [{"key": [described.scope]}]
    return told


def _responses(rule: Rule, described: Operation, refs: Refs) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, model in described.answers.items():
        said = (model.__doc__ or "Done.").strip().split("\n")[0] if model else "Done."
        schema = refs[model, "serialization"] if model else {}
        found[str(status)] = {"description": said, "content": {media: {"schema": schema} for media in described.media}}
    errors = {
        *described.errors,
        *described.problems,
        *((401, 403) if described.scope else ()),
        *((400, 413) if described.body else ()),
    }
    errors |= {400} if described.query else set()
    errors |= {404, 405} if "<int:" in rule.rule else set()
    openai = rule.rule.startswith("/v1")
    media, usual = ("application/json", OpenAIError) if openai else ("application/problem+json", Problem)
    for status in sorted(errors):
        schema = refs[described.problems.get(status, usual), "serialization"]
        found[str(status)] = {"description": ERRORS[status], "content": {media: {"schema": schema}}}
    return found


def _path(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def _path_parameters(rule: Rule) -> Iterator[dict[str, Any]]:
    for kind, name in re.findall(r"<(?:(\w+):)?(\w+)>", rule.rule):
        whole = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
        schema = whole if kind == "int" else {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(model: type[BaseModel] | None) -> Iterator[dict[str, Any]]:
    schema = model.model_json_schema() if model else {}
    for name, told in schema.get("properties", {}).items():
        plain = {key: value for key, value in told.items() if key not in ("title", "description", "default")}
        # A query has no null: what may be left out is left out.
        choices = [choice for choice in plain.get("anyOf", []) if choice != {"type": "null"}]
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ())}
        parameter["schema"] = choices[0] if len(choices) == 1 else plain
        if "description" in told:
            parameter["description"] = told["description"]
        yield parameter
