"""A request's JSON body as a pydantic model, with one clear sentence when it is not."""

from typing import Any, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError

from core.errors import InvalidInput

Body = TypeVar("Body", bound=BaseModel)


def parse_body(kind: type[Body]) -> Body:
    """The request's JSON body as a model.

    Raises:
        InvalidInput: it is no JSON object, or not of this shape; the first thing that is wrong is named.
    """
    value = request.get_json(force=True, silent=True)
    if not isinstance(value, dict):
        raise InvalidInput("the body is not a JSON object")
    return _validated(kind, value)


def parse_query(kind: type[Body]) -> Body:
    """The request's query as a model; a name that is given twice counts once, the last time.

    Raises:
        InvalidInput: a name that is not known, or a value that cannot be read.
    """
    return _validated(kind, {name: values[-1] for name, values in request.args.lists()})


def _validated(kind: type[Body], value: dict[str, Any]) -> Body:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = _path(value, first["loc"])
        said = first["msg"].removeprefix("Value error, ").replace(" after validation", "")
        raise InvalidInput(f"{where}: {said}" if where else said, param=where or None) from error


def _path(value: Any, location: tuple[int | str, ...]) -> str:
    """Where in the body, as its sender wrote it: without the names of the kinds that pydantic chose between."""
    parts = []
    for part in location:
        holder = isinstance(value, dict) or (isinstance(value, list) and isinstance(part, int))
        if isinstance(value, dict) and part not in value and part != location[-1]:
            continue
        parts.append(str(part))
        value = (value.get(part) if isinstance(value, dict) else value[part]) if holder else None
    return ".".join(parts)
