"""Votes from web pages of other origins (CORS, of the Fetch standard): off unless the settings name origins."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import error_body

PATH = "/feedback"
METHODS = ("POST", "DELETE")
HEADERS = ("authorization", "content-type")


class VotesFrom:
    """Middleware: the feedback routes answer pages of these origins too. All other routes stay as they are.

    Outermost, so that a page can read whatever goes wrong. Without origins it does nothing.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        allowed = {"allow_origins": origins, "allow_methods": METHODS, "allow_headers": HEADERS}
        self._app = app
        self._votes = _Cors(app, **allowed, expose_headers=("retry-after",)) if origins else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        about_votes = path == PATH or path.startswith(f"{PATH}/")
        await (self._votes if about_votes else self._app)(scope, receive, send)


class _Cors(CORSMiddleware):
    """Starlette's, with refusals of a preflight in our error shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        message = (
            f"{bytes(answer.body).decode()}. Votes may come from the origins in server.cors_origins, "
            f"with {' and '.join(METHODS)} and the headers {' and '.join(HEADERS)}."
        )
        kept = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return JSONResponse(error_body(message, "invalid_request_error", None, "cors_refused"), 400, kept)
