"""`/ops/preferences`: every vote with what became of it, and the import of pairs from outside."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from service import imports, preferences
from service.api.auth import Doorman
from service.contracts import Key, LeftOut, Role
from service.errors import BadRequest
from service.store.store import Store

FAULTS_SHOWN = 100


def preference_routes(store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/preferences")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("")
    async def show(
        key: Key = operator,
        status: Literal["paired", "left_out"] | None = None,
        reason: LeftOut | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> dict[str, Any]:
        votes = await store.preferences.effective_votes()
        learned = await store.preferences.learned_choices()
        imported = await store.preferences.imported_new()
        _, funnel, left_out = await asyncio.to_thread(preferences.build, votes, learned, imported)
        shown = [
            {
                "completion_id": vote.completion_id,
                "choice_index": vote.choice_index,
                "rating": vote.rating,
                "app": vote.app,
                "adapter": vote.adapter,
                "status": "left_out" if vote.seq in left_out else "paired",
                "reason": left_out.get(vote.seq),
            }
            for vote in votes
            if (reason is None or left_out.get(vote.seq) == reason)
            and (status is None or (status == "left_out") == (vote.seq in left_out))
        ]
        return {"funnel": funnel, "votes": shown[:limit]}

    @router.post("/import")
    async def import_pairs(request: Request, key: Key = operator, skip_bad: bool = False) -> Response:
        pairs, faults = await asyncio.to_thread(imports.parse, (await request.body()).split(b"\n"))
        shown = [{"line": f.line, "field": f.field, "reason": f.reason} for f in faults[:FAULTS_SHOWN]]
        if faults and not skip_bad:
            refusal = BadRequest(
                f"{len(faults)} of {len(pairs) + len(faults)} lines are not valid pairs; nothing was imported. "
                "Mend them, or import the rest with skip_bad.",
                code="invalid_lines",
            )
            return JSONResponse(refusal.body() | {"faults": shown}, refusal.status)
        added = await store.preferences.add_imported(pairs)
        await store.audit.write(
            who=key.app, action="import", subject="preferences", detail={"added": added, "skipped": len(faults)}
        )
        return JSONResponse({"added": added, "known": len(pairs) - added, "faults": shown})

    return router
