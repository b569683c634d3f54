"""How large a body may be; refused while it arrives, before anything is parsed."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: raises 413 inside the application, whose handlers give it our error shape.

    `larger` names the paths that take more than the others.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, larger: Mapping[str, int]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen, max_bytes = 0, self._larger.get(scope["path"], self._max_bytes)

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_bytes:
                raise HTTPException(413, f"The body is larger than {max_bytes} bytes. Send less at once.")
            return message

        await self._app(scope, limited, send)
