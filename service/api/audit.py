"""`/ops/audit`: who changed what, the whole log to be kept elsewhere, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.store.store import Store

Digest = Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")]


def audit_routes(store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/audit")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("")
    async def audit(
        key: Key = operator,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        """The newest first; `next` continues behind the last one."""
        entries = await store.audit.list(limit, after)
        return {"data": entries, "next": entries[-1].seq if len(entries) == limit else None}

    @router.get("/verify")
    async def verify(key: Key = operator, kept: Digest = None) -> dict[str, Any]:
        """`kept` is a digest that was noted earlier, and must still be among them."""
        chain = await store.audit.verify(kept)
        return {"entries": chain.entries, "digest": chain.digest, "fault": chain.fault}

    @router.get("/export")
    async def export(key: Key = operator) -> StreamingResponse:
        """One entry a line, the oldest first."""
        return StreamingResponse(_lines(store), media_type="application/jsonl", headers={"cache-control": "no-store"})

    return router


async def _lines(store: Store) -> AsyncIterator[str]:
    async for page in store.audit.pages():
        yield "".join(f"{entry.model_dump_json()}\n" for entry in page)
