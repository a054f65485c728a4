"""What the processes of models have in common as ASGI apps: bodies that are read no further than they may be long, and errors."""

from collections.abc import Collection
from typing import TypeVar

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core.errors import ArtifactError, DunnockError, InvalidInput

MOST_BYTES = 1_000_000

Body = TypeVar("Body", bound=pydantic.BaseModel)


class TooLarge(InvalidInput):
    status = 413


async def body_of(request: Request, kind: type[Body]) -> Body:
    """The body as a model.

    Raises:
        TooLarge: it is longer than `MOST_BYTES`.
        InvalidInput: it is of another shape.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > MOST_BYTES:
            raise TooLarge(f"the body is longer than {MOST_BYTES} bytes")
    try:
        return kind.model_validate_json(bytes(found))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{where}: {first['msg']}" if where else first["msg"], param=where or None) from error


def refusal(error: Exception, busy: Collection[str]) -> Response:
    """A `DunnockError` as an answer, in the engine's shape.

    Args:
        busy: codes that mean that the process has no room now: 503, and not the caller's fault.
    """
    assert isinstance(error, DunnockError)  # the handler is registered for no other
    status = 400 if isinstance(error, ArtifactError) else error.status  # the caller named that folder
    status = 503 if error.code in busy else status
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}, status
    )
