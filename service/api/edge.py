"""What every application of ours has in common: limits, and one error shape for whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from service.api.limits import BodyLimit
from service.errors import TYPE_OF_STATUS, BadRequest, HeliotropeError, TooManyRequests, error_body, from_faults
from serving.errors import DeadlineExceeded, NoRoom, Overloaded, RequestRefused, UnknownModel

log = logging.getLogger(__name__)

FINAL = {"x-should-retry": "false"}  # the openai client retries 408, 409, 429 and 5xx unless told not to


def application(
    title: str,
    *,
    max_body_bytes: int,
    larger: Mapping[str, int] | None = None,
    outermost: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> FastAPI:
    """An empty application whose every error has OpenAI's shape.

    `larger`: paths that take larger bodies; `outermost` goes around everything, the answer to an unexpected error too.
    """
    app = _Application(outermost, title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes, larger=larger or {})
    app.add_exception_handler(HeliotropeError, _ours)
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(UnknownModel, _unknown_model)
    app.add_exception_handler(Overloaded, _overloaded)
    app.add_exception_handler(NoRoom, _no_room)
    app.add_exception_handler(DeadlineExceeded, _too_late)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unexpected)
    return app


class _Application(FastAPI):
    def __init__(self, outermost: Callable[[ASGIApp], ASGIApp], **settings: Any) -> None:
        super().__init__(**settings)
        self._outermost = outermost

    def build_middleware_stack(self) -> ASGIApp:
        return self._outermost(super().build_middleware_stack())


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HeliotropeError)
    headers = dict(FINAL) if error.status == 409 else {}
    if error.status == 503:
        headers["retry-after"] = "1"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooManyRequests):
        headers |= error.headers
    return JSONResponse(error.body(), error.status, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestRefused)
    kind = TYPE_OF_STATUS.get(error.status, "server_error")
    return JSONResponse(error_body(str(error), kind, error.param, error.code), error.status)


async def _unknown_model(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(str(error), "not_found_error", "model", "model_not_found"), 404)


async def _overloaded(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Overloaded)
    headers = {"retry-after": str(error.retry_after_seconds)}
    return JSONResponse(error_body(str(error), "service_unavailable_error", None, error.code), 503, headers)


async def _no_room(request: Request, error: Exception) -> JSONResponse:
    """The adapters that are loaded are in use; their requests end sooner or later."""
    body = error_body(str(error), "service_unavailable_error", "model", "adapter_places_full")
    return JSONResponse(body, 503, {"retry-after": "5"})


async def _too_late(request: Request, error: Exception) -> JSONResponse:
    """Final: the same request would take as long again."""
    assert isinstance(error, DeadlineExceeded)
    return JSONResponse(error_body(str(error), "timeout_error", None, error.code), 504, FINAL)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fault = _fault(error.errors())
    return JSONResponse(fault.body(), fault.status)


def _fault(errors: Sequence[Any]) -> BadRequest:
    if errors and errors[0]["type"] == "json_invalid":
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    if errors and errors[0]["loc"] == ("body",) and errors[0]["type"] in ("dict_type", "model_attributes_type"):
        return BadRequest("The body must be a JSON object, sent as application/json.", code="invalid_json")
    return from_faults([{**e, "loc": e["loc"][1:]} for e in errors])  # without "body", "query" or "path"


async def _framework(request: Request, error: Exception) -> JSONResponse:
    """Routing's own refusals: 404, 405, 413, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    kind = TYPE_OF_STATUS.get(error.status_code, "server_error")
    message, code = str(error.detail), None
    if error.status_code == 404:
        message, code = f"There is no {request.method} {request.url.path[:200]}.", "route_not_found"
    if error.status_code == 405:
        message, code = f"{request.url.path[:200]} does not take {request.method}.", "method_not_allowed"
    if error.status_code == 400:
        message, code = "The body could not be read as JSON.", "invalid_json"
    if error.status_code == 413:
        code = "body_too_large"
    return JSONResponse(error_body(message, kind, None, code), error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s broke", request.method, request.url.path, exc_info=error)
    return JSONResponse(error_body("Something broke on our side; the log has it.", "server_error"), 500)
