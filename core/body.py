"""A request's JSON body as a pydantic model, with one clear sentence when it is not."""

from typing import Any, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import InvalidInput
from core.language import N_, gettext, language

FORMS = {
    "missing": N_("Field required"),
    "extra_forbidden": N_("Extra inputs are not permitted"),
    "literal_error": N_("Input should be %(expected)s"),
    "greater_than_equal": N_("Input should be greater than or equal to %(ge)s"),
    "less_than_equal": N_("Input should be less than or equal to %(le)s"),
    "greater_than": N_("Input should be greater than %(gt)s"),
    "less_than": N_("Input should be less than %(lt)s"),
    "int_type": N_("Input should be a valid integer"),
    "int_parsing": N_("Input should be a valid integer, unable to parse string as an integer"),
    "int_parsing_size": N_("Unable to parse input string as an integer, exceeded maximum size"),
    "int_from_float": N_("Input should be a valid integer, got a number with a fractional part"),
    "float_type": N_("Input should be a valid number"),
    "float_parsing": N_("Input should be a valid number, unable to parse string as a number"),
    "finite_number": N_("Input should be a finite number"),
    "bool_type": N_("Input should be a valid boolean"),
    "bool_parsing": N_("Input should be a valid boolean, unable to interpret input"),
    "string_type": N_("Input should be a valid string"),
    "string_too_short": N_("String should have at least %(min_length)s characters"),
    "string_too_long": N_("String should have at most %(max_length)s characters"),
    "too_short": N_("there should be at least %(min_length)s entries, not %(actual_length)s"),
    "too_long": N_("there should be at most %(max_length)s entries, not %(actual_length)s"),
    "list_type": N_("Input should be a valid list"),
    "dict_type": N_("Input should be a valid dictionary"),
}
"""What pydantic says, by its name for what is wrong; what is not here is said in its own English words."""

Body = TypeVar("Body", bound=BaseModel)


def parse_body(kind: type[Body]) -> Body:
    """The request's JSON body as a model.

    Raises:
        InvalidInput: it is no JSON object, or not of this shape; the first thing that is wrong is named.
    """
    value = request.get_json(force=True, silent=True)
    if not isinstance(value, dict):
        raise InvalidInput(gettext("the body is not a JSON object"))
    return validated(kind, value)


def parse_query(kind: type[Body]) -> Body:
    """The request's query as a model; a name that is given twice counts once, the last time.

    Raises:
        InvalidInput: a name that is not known, or a value that cannot be read.
    """
    return validated(kind, {name: values[-1] for name, values in request.args.lists()})


def validated(kind: type[Body], value: dict[str, Any]) -> Body:
    """A value as a model; errors as of `parse_body`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = _path(value, first["loc"])
        said = wrong_words(first)
        raise InvalidInput(f"{where}: {said}" if where else said, param=where or None) from error


def wrong_words(error: ErrorDetails) -> str:
    """What pydantic found wrong, in the language of this request; validators of ours speak it already."""
    if language() == "en" or error["type"] not in FORMS:
        return error["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return gettext(FORMS[error["type"]], **error.get("ctx", {}))


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
