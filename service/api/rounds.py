"""`/ops/rounds`: start a round, look at it, follow its events, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.api.auth import Doorman
from service.collecting import missing
from service.contracts import Key, Role, Round, RoundBody
from service.inspecting import Inspector
from service.rounds import Rounds
from service.settings import TrainingSettings
from service.store.store import Store

EVENT_POLL_SECONDS = 0.25


def round_routes(
    rounds: Rounds, inspector: Inspector, store: Store, defaults: TrainingSettings, doorman: Doorman
) -> APIRouter:
    router = APIRouter(prefix="/ops/rounds")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.post("")
    async def start(
        key: Key = operator,
        body: RoundBody | None = None,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> Response:
        body = body or RoundBody()
        if body.dry_run:
            objective, needed = body.objective or defaults.objective, body.min_pairs or defaults.min_pairs
            report = await inspector.report(objective, needed)
            enough = missing(report.funnel, objective, needed) is None
            answer = {"dry_run": True, "enough": enough, "objective": objective, "min_pairs": needed}
            dumped = report.model_dump(mode="json")
            return JSONResponse(answer | {"funnel": dumped["funnel"], "report": dumped})
        round, created = await rounds.start(body, who=key.app, idempotency_key=idempotency_key)
        return JSONResponse(round.model_dump(mode="json"), 202 if created else 200)

    @router.get("")
    async def list_rounds(key: Key = operator, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return {"data": await store.rounds.list(limit)}

    @router.get("/{n}")
    async def show(n: int, key: Key = operator) -> Round:
        return await store.rounds.get(n)

    @router.post("/{n}/cancel")
    async def cancel(n: int, key: Key = operator) -> Round:
        return await rounds.cancel(n, who=key.app)

    @router.get("/{n}/events")
    async def events(
        n: int,
        key: Key = operator,
        after: Annotated[int, Query(ge=0)] = 0,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> Response:
        await store.rounds.get(n)  # 404 before the stream begins
        stream = _follow(store, n, after if last_event_id is None else last_event_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    return router


async def _follow(store: Store, n: int, after: int) -> AsyncIterator[str]:
    """Server-sent events, from the one after `after` until the round is final."""
    while True:
        final = (await store.rounds.get(n)).state.final  # asked before the events, so none of the last is missed
        for event in await store.rounds.events(n, after):
            after = event.seq
            yield f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
        if final:
            return
        await asyncio.sleep(EVENT_POLL_SECONDS)
