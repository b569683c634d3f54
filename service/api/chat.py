"""`POST /v1/chat/completions` and `GET /v1/models`: OpenAI's chat, answered by the replica in this process.

An answer whose record is not known to be durable says that it cannot be rated; a stream says so in its last chunk.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.api.auth import Doorman
from service.contracts import Key, Role
from serving.contracts import Caller
from serving.replica import Replica


def chat_routes(replica: Replica, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    app_key = Depends(doorman.allow(Role.APP))

    @router.post("/chat/completions")
    async def create(body: Annotated[dict[str, Any], Body()], key: Key = app_key) -> Response:
        answer = await replica.chat(body, Caller(app=key.app))
        headers = {"x-policy-version": answer.adapter, "x-completion-id": answer.completion_id}
        if answer.stream is None:
            if not answer.rateable:
                headers["x-heliotrope-rateable"] = "false"
            return JSONResponse(answer.body, headers=headers)
        return StreamingResponse(answer.stream, media_type="text/event-stream", headers=headers)

    @router.get("/models")
    async def models(key: Key = app_key) -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "heliotrope"} for name in replica.models()]
        return {"object": "list", "data": data}

    return router
