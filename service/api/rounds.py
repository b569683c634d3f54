"""`/ops/rounds`: start a round, look at it, follow its events, agree to it, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.api.auth import Doorman
from service.api.bodies import optional_json_body
from service.contracts import DecisionBody, Key, Role, Round, RoundBody
from service.dry_run import DryRuns
from service.rounds import Rounds
from service.store.store import Store

EVENT_POLL_SECONDS = 0.25


def round_routes(rounds: Rounds, dry_runs: DryRuns, store: Store, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/rounds")
    operator = Depends(doorman.allow(Role.OPERATOR))
    round_body, decision = Depends(optional_json_body(RoundBody)), Depends(optional_json_body(DecisionBody))

    @router.post("")
    async def start(
        key: Key = operator,
        body: RoundBody = round_body,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> Response:
        if body.dry_run:
            return JSONResponse((await dry_runs.look(body)).model_dump(mode="json"))
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

    @router.post("/{n}/approve")
    async def approve(n: int, key: Key = operator, body: DecisionBody = decision) -> Round:
        return await rounds.approve(n, who=key.app, reason=body.reason)

    @router.post("/{n}/reject")
    async def reject(n: int, key: Key = operator, body: DecisionBody = decision) -> Round:
        return await rounds.reject(n, who=key.app, reason=body.reason)

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
