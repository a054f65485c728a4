"""The error tree. Domain code raises these; only `app.py` turns them into HTTP.

    DunnockError
    ├── SettingsError            a setting is missing, unsafe or contradicts another
    ├── InvalidInput             what was sent cannot be used (400)
    │   ├── PromptTooLong        more prompt tokens than the policy takes (400)
    │   └── ImportRowError       one row of an import; carries its line
    ├── NotFound                 an id or name that does not exist (404)
    ├── Forbidden                signed in, but not allowed (403)
    ├── Unauthenticated          nobody is signed in, or the key is not valid (401)
    ├── TooManyRequests          too often within a while (429)
    │   └── RateLimited          over a limit of requests or tokens; says when to come back (429)
    ├── ProviderError            the OpenID provider is away, or says what does not hold (503)
    ├── Conflict                 the state has moved on: lease lost, already promoted (409)
    ├── EngineError              the engine failed or cannot be reached (503)
    ├── ArtifactError            a file is missing, or its hash is not the recorded one
    │   └── BundleRefused        an edge bundle is not the one that was signed, or not by the key that was given
    └── StageError               a training stage cannot go on; the cycle is marked failed
        └── LeaseLost            another worker holds the cycle now

A message says what was found, what was expected and what to do.
"""


class DunnockError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        status: the HTTP status that `app.py` answers with.
        code: a stable machine-readable word, as in the OpenAI error object.
        param: the request field at fault, if there is one.
        members: what else a program may want to know, by name: members of the problem document (RFC 9457, section 3.2).
    """

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.members: dict[str, int | str] = {}


class SettingsError(DunnockError):
    code = "settings_error"


class InvalidInput(DunnockError):
    status = 400
    code = "invalid_request"


class PromptTooLong(InvalidInput):
    code = "context_length_exceeded"


class ImportRowError(InvalidInput):
    code = "import_row"

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.reason = message


class NotFound(DunnockError):
    status = 404
    code = "not_found"


class Forbidden(DunnockError):
    status = 403
    code = "forbidden"


class Unauthenticated(DunnockError):
    status = 401
    code = "invalid_api_key"


class Conflict(DunnockError):
    status = 409
    code = "conflict"


class TooManyRequests(DunnockError):
    status = 429
    code = "too_many_requests"


class RateLimited(TooManyRequests):
    """Attributes:
    retry_after_s: whole seconds until the next request may go through; answers have it as `Retry-After`.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: int, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.members = {"retry_after_s": retry_after_s}


class ProviderError(DunnockError):
    status = 503
    code = "provider_error"


class EngineError(DunnockError):
    status = 503
    code = "engine_unavailable"


class ArtifactError(DunnockError):
    status = 503
    code = "artifact_error"


class BundleRefused(ArtifactError):
    code = "bundle_refused"


class StageError(DunnockError):
    code = "stage_failed"


class Cancelled(DunnockError):
    """Somebody cancelled the cycle that this belongs to."""

    status, code = 409, "cancelled"


class LeaseLost(StageError):
    code = "lease_lost"


def openai_error(error: DunnockError) -> tuple[int, dict[str, dict[str, str | None]]]:
    """Status and body of an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return error.status, {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
