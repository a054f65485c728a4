"""A request's JSON body as a pydantic model, with one clear sentence when it is not."""

from typing import TypeVar

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
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ").replace(" after validation", "")
        raise InvalidInput(f"{where}: {said}" if where else said, param=where or None) from error
