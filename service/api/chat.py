"""`POST /v1/chat/completions` and `GET /v1/models`: OpenAI's chat, answered by the replica in this process.

An answer whose record is not known to be durable says that it cannot be rated; a stream says so in its last chunk.
What a caller sends in headers decides nothing: not the completion's id, not how long it may take, not who answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.auth import Doorman
from service.api.bodies import json_object
from service.contracts import Key, Role
from service.errors import TooManyRequests
from service.limiting.limiter import Limiter
from serving.contracts import Caller
from serving.replica import Replica


def chat_routes(replica: Replica, doorman: Doorman, limiter: Limiter) -> APIRouter:
    router = APIRouter()
    app_key, chat_body = Depends(doorman.allow(Role.APP)), Depends(json_object)

    @router.post("/chat/completions")
    async def create(key: Key = app_key, body: dict[str, Any] = chat_body) -> Response:
        try:
            grant = limiter.admit(key)
        except TooManyRequests as error:
            replica.meter.refused(error.code or "rate_limited")
            raise
        answer = await replica.chat(body, Caller(app=key.app, ended=grant.used))
        headers = {"x-policy-version": answer.adapter, "x-completion-id": answer.completion_id, **grant.headers}
        if answer.stream is None:
            if not answer.rateable:
                headers["x-heliotrope-rateable"] = "false"
            return JSONResponse(answer.body, headers=headers)
        return _Stream(answer.stream, media_type="text/event-stream", headers=headers)

    @router.get("/models")
    async def models(key: Key = app_key) -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "heliotrope"} for name in replica.models()]
        return {"object": "list", "data": data}

    return router


class _Stream(StreamingResponse):
    """Closes what it streams when the client has gone; Starlette would leave that to the garbage collector."""

    def __init__(self, events: AsyncIterator[str], **rest: Any) -> None:
        super().__init__(events, **rest)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()
