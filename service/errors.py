"""Everything the service refuses, as one tree, and how it looks on the wire.

    HeliotropeError            500  server_error
    ├── GivenUp                500  server_error
    ├── BadRequest             400  invalid_request_error
    ├── Unauthenticated        401  authentication_error
    ├── Forbidden              403  permission_error
    ├── NotFound               404  not_found_error
    ├── Conflict               409  conflict_error
    ├── PreconditionFailed     412  conflict_error
    ├── AdapterRejected        422  invalid_request_error
    ├── TooManyRequests        429  rate_limit_error
    └── Unavailable            503  service_unavailable_error

Every answer that is not a success has OpenAI's shape `{"error": {"message", "type", "param", "code"}}`.
A message says what is wrong and what to do about it; `code` is the stable word for programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class HeliotropeError(Exception):
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        return error_body(self.message, self.type, self.param, self.code)


class GivenUp(HeliotropeError):
    """What a round does not get over, however often it is tried: it ends `failed` with this as its reason."""


class BadRequest(HeliotropeError):
    status = 400
    type = "invalid_request_error"


class Unauthenticated(HeliotropeError):
    status = 401
    type = "authentication_error"


class Forbidden(HeliotropeError):
    status = 403
    type = "permission_error"


class NotFound(HeliotropeError):
    status = 404
    type = "not_found_error"


class Conflict(HeliotropeError):
    """Final: the same call will be refused again, so clients are told not to retry."""

    status = 409
    type = "conflict_error"


class PreconditionFailed(HeliotropeError):
    status = 412
    type = "conflict_error"


class AdapterRejected(HeliotropeError):
    status = 422
    type = "invalid_request_error"


class TooManyRequests(HeliotropeError):
    """`headers` say how much there is, how much of it is left, and when all of it is there again."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_seconds: int, headers: Mapping[str, str]) -> None:
        super().__init__(message, code="rate_limited")
        self.headers = {"retry-after": str(retry_after_seconds), **headers}


class Unavailable(HeliotropeError):
    status = 503
    type = "service_unavailable_error"


LONGEST_FIELD = 100  # characters of a caller's own field name that are repeated to them

TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def error_body(message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error shape. What it repeats of a request may hold half a surrogate pair, which no answer can."""
    return {
        "error": {
            "message": _encodable(message),
            "type": type,
            "param": _encodable(param) if param is not None else None,
            "code": code,
        }
    }


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_faults(faults: Sequence[Mapping[str, Any]]) -> BadRequest:
    """The first of pydantic's faults as one error that names the field and the remedy."""
    fault = faults[0]
    field = ".".join(str(part) for part in fault["loc"])[:LONGEST_FIELD] or None
    if fault["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field '{field}'. Remove it.", param=field, code="unknown_parameter")
    if fault["type"] == "missing":
        what = f"The field '{field}' is required." if field else "A JSON body is required."
        return BadRequest(what, param=field, code="missing_parameter")
    where = f"Field '{field}': " if field else ""
    return BadRequest(f"{where}{fault['msg'].removeprefix('Value error, ')}.", param=field, code="invalid_value")
