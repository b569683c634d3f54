"""`GET /ops/alarms`: what operators were told, and how far its delivery is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.store.alarms import Alarms


def alarm_routes(alarms: Alarms, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/ops/alarms")
    async def list_alarms(
        key: Key = operator,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        """The newest first; `after` continues behind the alarm with that `seq`."""
        return {"data": await alarms.list(limit, after)}

    return router
