"""`GET /ops/lineage/{kind}/{id}`: what something comes from, and what it has led to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.store.lineage import Kind
from service.store.store import Store
from service.tracing import SHOWN, Trace, trace


def lineage_routes(store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/lineage")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/{kind}/{id:path}")
    async def lineage(
        kind: Kind, id: str, key: Key = operator, shown: Annotated[int, Query(ge=1, le=1000)] = SHOWN
    ) -> Trace:
        return await trace(store, kind, id, shown)

    return router
