"""`/ops/keys`: who may call, and how much."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.auth import Doorman
from service.api.bodies import json_body
from service.contracts import Key, Role
from service.limiting.settings import NO_LIMITS, LimitSettings
from service.store.store import Store


class KeyBody(BaseModel):
    """`POST /ops/keys`. A limit that is not given is that of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    app: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")
    limits: LimitSettings = NO_LIMITS


def key_routes(store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/keys")
    operator, key_body = Depends(doorman.allow(Role.OPERATOR)), Depends(json_body(KeyBody))

    @router.post("", status_code=201)
    async def issue(key: Key = operator, body: KeyBody = key_body) -> dict[str, Any]:
        issued, secret = await store.keys.issue(body.role, body.app, body.limits)
        detail = {"role": issued.role, **body.limits.model_dump(exclude_none=True)}
        await store.audit.write(who=key.app, action="issue_key", subject=issued.id, detail=detail)
        return {"key": issued, "secret": secret}

    @router.get("")
    async def list_keys(key: Key = operator) -> dict[str, Any]:
        return {"data": await store.keys.list()}

    @router.delete("/{id}", status_code=204)
    async def revoke(id: str, key: Key = operator) -> Response:
        await store.keys.revoke(id)
        await store.audit.write(who=key.app, action="revoke_key", subject=id, detail={})
        return Response(status_code=204)

    return router
