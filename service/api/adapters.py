"""`/ops/adapters` and `/ops/rollback`: what was published, and who answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from service.api.auth import Doorman
from service.contracts import Adapter, Key, PromoteBody, Role, RollbackBody
from service.registry import Registry, Switch
from service.store.adapters import Adapters


def adapter_routes(registry: Registry, adapters: Adapters, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/adapters")
    async def list_adapters(key: Key = operator) -> dict[str, Any]:
        return {"data": await adapters.list()}

    @router.get("/adapters/{name}")
    async def show(name: str, key: Key = operator) -> Adapter:
        return await adapters.get(name)

    @router.post("/adapters/{name}/promote")
    async def promote(name: str, key: Key = operator, body: PromoteBody | None = None) -> dict[str, Any]:
        body = body or PromoteBody()
        switch = await registry.promote(name, who=key.app, reason=body.reason, expected_current=body.expected_current)
        return _answer(switch)

    @router.post("/rollback")
    async def rollback(key: Key = operator, body: RollbackBody | None = None) -> dict[str, Any]:
        body = body or RollbackBody()
        return _answer(await registry.rollback(who=key.app, to=body.to, reason=body.reason))

    return router


def _answer(switch: Switch) -> dict[str, Any]:
    return {
        "route": switch.route,
        "prepare_seconds": round(switch.prepare_seconds, 6),
        "flip_seconds": round(switch.flip_seconds, 6),
        "seconds": round(switch.prepare_seconds + switch.flip_seconds, 6),
    }
