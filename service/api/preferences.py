"""`/ops/preferences`: every vote with what became of it, and the import of pairs from outside."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from service import imports
from service.api.auth import Doorman
from service.collecting import Collector
from service.contracts import Key, Role
from service.errors import BadRequest
from service.pairs import LeftOut
from service.store.store import Store
from service.tuning import Objective
from service.votes import Vote

FAULTS_SHOWN = 100


def preference_routes(collector: Collector, store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/preferences")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("")
    async def show(
        key: Key = operator,
        status: Literal["paired", "thumb", "left_out"] | None = None,
        reason: LeftOut | None = None,
        objective: Objective | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> dict[str, Any]:
        found = await collector.look(objective)
        left_out, thumbs = found.left_out, {seq for pair in found.pairs if pair.is_thumb for seq in pair.votes}

        def became(vote: Vote) -> str:
            return "left_out" if vote.seq in left_out else "thumb" if vote.seq in thumbs else "paired"

        shown = [
            {
                "completion_id": vote.completion_id,
                "choice_index": vote.choice_index,
                "rating": vote.rating,
                "app": vote.app,
                "adapter": vote.adapter,
                "status": became(vote),
                "reason": left_out.get(vote.seq),
            }
            for vote in found.votes
            if (reason is None or left_out.get(vote.seq) == reason) and (status is None or status == became(vote))
        ]
        return {"funnel": found.funnel, "votes": shown[:limit]}

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
