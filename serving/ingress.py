"""What stands before the replicas: Ray's Python proxy, or HAProxy; how each is set up, and what ours adds in front.

Ray's proxies let any caller steer them by headers: keep the engine working for a client that is gone, choose a replica,
open a series of metrics for each name. `Front` drops these headers before the proxy reads them. It also gives the
proxy's own failures the shape of every other error of ours: a replica that dies leaves its callers with a JSON error,
or with an error event at the end of their stream, and never with a stream that just stops. Knows no routes or keys.
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import haproxy
from serving.settings import Ingress

# What ray/serve/_private/proxy.py and http_util.py obey, in their spelling with hyphens.
STEERING = frozenset(
    {b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id"}
)
_BEHIND_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
_DONE = b"data: [DONE]\n\n"


def environment(ingress: Ingress, folder: Path, longest_seconds: float) -> dict[str, str]:
    """For the process that starts Ray, before it does. `longest_seconds` is what an answer may take.

    `folder` is there, and its path is short and plain: HAProxy's configuration and sockets are put into it.
    """
    common = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
        _BEHIND_HAPROXY: "1" if ingress == "haproxy" else "0",
    }
    if ingress == "python":
        return common
    bodies = {status: _body(status) for status in haproxy.STATUSES}
    # uvicorn would believe a header about who calls, and `FromHere` believes uvicorn.
    return common | {"FORWARDED_ALLOW_IPS": "none"} | haproxy.environment(folder, bodies, longest_seconds)


def middlewares() -> list[Middleware]:
    """Called by Ray in the process that holds the HTTP socket. The last is the outermost."""
    behind_haproxy = os.environ.get(_BEHIND_HAPROXY) == "1"
    return [Middleware(Front), *([Middleware(FromHere)] if behind_haproxy else [])]


class FromHere:
    """Answers this machine alone. Behind HAProxy, Ray opens each replica's own port on all interfaces."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_from_here(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [_JSON]})
            await send({"type": "http.response.body", "body": _body(403)})
            return
        await self._app(scope, receive, send)


def _is_from_here(scope: Scope) -> bool:
    """A machine that calls an address of its own calls from that very address."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return False
    return client[0] == server[0] or ipaddress.ip_address(client[0]).is_loopback


class Front:
    """ASGI middleware around Ray's proxy, or around the replica's own server behind HAProxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0].lower().replace(b"_", b"-") not in STEERING]
        answer = _Answer(send)
        await self._app({**scope, "headers": headers}, receive, answer.pass_on)
        await answer.finish()


class _Answer:
    """What goes back for one request; made whole where the proxy leaves it broken off."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False  # its head has gone out
        self._whole = False  # its last byte too
        self._is_stream = False  # of server-sent events
        self._tail = b""  # of the stream, as long as it takes to know how it ended
        self._refusal = (
            502  # the status of an answer that is not ours; unless the proxy says another, its replica is gone
        )
        self._retry_after = b"1"

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            kind = headers.get(b"content-type", b"")
            if message["status"] >= 400 and not kind.startswith(b"application/json"):
                self._refusal = message["status"]
                self._retry_after = headers.get(b"retry-after", self._retry_after)
                return
            self._begun, self._is_stream = True, kind.startswith(b"text/event-stream")
        elif not self._begun:
            return  # the proxy's own words about a failure
        elif message["type"] == "http.response.body":
            if self._is_stream:
                self._tail = (message.get("body") or b"")[-len(_DONE) :] or self._tail
            self._whole = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        if not self._begun:
            await self._refuse()
        elif self._is_stream and not self._whole:
            event = b"" if self._tail.endswith(_DONE) else b"data: " + _body(502) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event})

    async def _refuse(self) -> None:
        headers = [_JSON]
        if self._refusal in (502, 503):
            headers.append((b"retry-after", self._retry_after))
        await self._send({"type": "http.response.start", "status": self._refusal, "headers": headers})
        await self._send({"type": "http.response.body", "body": _body(self._refusal)})


def _body(status: int) -> bytes:
    message, kind, code = {
        403: ("This port is for this machine alone. Ask at the service's own.", "permission_error", "not_this_port"),
        502: ("The replica that worked on this request is gone. Send it again.", "server_error", "replica_lost"),
        503: ("No replica can take this request now. Try again.", "service_unavailable_error", "no_replica"),
        408: ("The request took too long.", "timeout_error", "deadline_exceeded"),
    }.get(status, ("Something broke on our side; the log has it.", "server_error", None))
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
