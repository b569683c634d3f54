"""Counts the requests of an ASGI application: route, status, seconds, bytes, and clients that left early.

Sits around the routes, so it knows which of them answered. Reads no caller's body and keeps no path: what a caller made
up is counted as no route at all. Of our own answers it reads those that tell of an error, for the code in them.
"""

from __future__ import annotations

import json
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http_meter import HttpMeter

BROKE = 500  # what the edge answers when an application raises


class CountsRequests:
    """Middleware. Adds nothing to an answer and takes nothing from it."""

    def __init__(self, app: ASGIApp, meter: HttpMeter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen, began = _Seen(receive, send), time.monotonic()
        try:
            await self._app(scope, seen.receive, seen.send)
        finally:
            route = getattr(scope.get("route"), "path", None)
            if seen.left:
                self._meter.disconnected(route)
            seconds = time.monotonic() - began
            self._meter.answered(route, scope["method"], seen.status or BROKE, seconds, seen.body_bytes, seen.reason)


class _Seen:
    """One request and its answer, as they pass."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.status: int | None = None  # None: nothing was answered yet
        self.body_bytes = 0
        self.left = False  # the client has gone before the end of the answer
        self._ended = False
        self._said = b""  # the first part of an error's body

    @property
    def reason(self) -> str | None:
        """The code of an error in our shape; None for any other answer."""
        try:
            return str(json.loads(self._said)["error"]["code"]) if self._said else None
        except (ValueError, KeyError, TypeError):
            return None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.body_bytes += len(message.get("body", b""))
        elif message["type"] == "http.disconnect" and not self._ended:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
            if (self.status or 0) >= 400 and not self._said:
                self._said = message.get("body", b"")
        await self._send(message)
