"""`/ops/pause`, `/ops/resume`, `/ops/triggers`, `/ops/canary/power`: whether rounds start by themselves, and what a canary could see."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from service.api.auth import Doorman
from service.api.bodies import optional_json_body
from service.canary.outlook import Sights, outlook
from service.canary.settings import CanarySettings
from service.contracts import DecisionBody, Key, Pause, Role
from service.store.store import Store
from service.triggers.loop import Triggers


def learning_routes(triggers: Triggers, store: Store, canary: CanarySettings, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops")
    operator, decision = Depends(doorman.allow(Role.OPERATOR)), Depends(optional_json_body(DecisionBody))

    @router.post("/pause")
    async def pause(key: Key = operator, body: DecisionBody = decision) -> Pause:
        return await store.pauses.begin(who=key.app, reason=body.reason)

    @router.post("/resume")
    async def resume(key: Key = operator, body: DecisionBody = decision) -> dict[str, bool]:
        return {"was_paused": await store.pauses.end(who=key.app, reason=body.reason)}

    @router.get("/triggers")
    async def show_triggers(key: Key = operator) -> dict[str, Any]:
        return await triggers.status()

    @router.get("/canary/power")
    async def power(key: Key = operator) -> Sights:
        return await outlook(store, canary)

    return router
