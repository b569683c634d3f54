"""`/ops/adapters`, `/ops/rollback` and `/ops/split`: what was published or brought from outside, and who answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from service.api.auth import Doorman
from service.api.bodies import json_body, optional_json_body
from service.candidates import Door
from service.contracts import Adapter, Key, PromoteBody, Role, RollbackBody, SplitBody
from service.depot import remove_directory
from service.registry import Registry, Switch
from service.rounds import Rounds
from service.shares import Split
from service.store.store import Store


def adapter_routes(registry: Registry, rounds: Rounds, store: Store, door: Door, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops")
    operator = Depends(doorman.allow(Role.OPERATOR))
    promote_body, rollback_body = Depends(optional_json_body(PromoteBody)), Depends(optional_json_body(RollbackBody))
    split_body = Depends(json_body(SplitBody))

    @router.get("/adapters")
    async def list_adapters(key: Key = operator) -> dict[str, Any]:
        return {"data": await store.adapters.list()}

    @router.post("/adapters")
    async def add(
        request: Request,
        key: Key = operator,
        assume_base: bool = False,
        note: Annotated[str | None, Query(max_length=1000)] = None,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> Response:
        """An adapter from outside, as a tar of its files: the answer is the round that measures and judges it."""
        with door.scratch() as upload:
            await _receive(request, upload)
            candidate = await asyncio.to_thread(door.admit, upload, assume_base=assume_base)
        try:
            round, created = await rounds.add(candidate, who=key.app, note=note, idempotency_key=idempotency_key)
        except BaseException:
            await asyncio.to_thread(remove_directory, candidate.directory)
            raise
        if created:
            detail = candidate.model_dump(include={"weights_sha256", "name", "assumed_base"}) | {"reason": note}
            await store.audit.write(who=key.app, action="add", subject=f"round {round.n}", detail=detail)
        else:
            await asyncio.to_thread(remove_directory, candidate.directory)
        return JSONResponse(round.model_dump(mode="json"), 202 if created else 200)

    @router.get("/adapters/{name}")
    async def show(name: str, key: Key = operator) -> Adapter:
        return await store.adapters.get(name)

    @router.post("/adapters/{name}/promote")
    async def promote(name: str, key: Key = operator, body: PromoteBody = promote_body) -> dict[str, Any]:
        switch = await registry.promote(name, who=key.app, reason=body.reason, expected_current=body.expected_current)
        return _answer(switch)

    @router.post("/rollback")
    async def rollback(key: Key = operator, body: RollbackBody = rollback_body) -> dict[str, Any]:
        switch = await registry.rollback(
            who=key.app, to=body.to, reason=body.reason, expected_current=body.expected_current
        )
        return _answer(switch)

    @router.put("/split")
    async def split(key: Key = operator, body: SplitBody = split_body) -> dict[str, Any]:
        changes = body.model_dump(include=set(Split.__annotations__), exclude_unset=True)
        switch = await registry.split(
            who=key.app, reason=body.reason, expected_generation=body.expected_generation, **cast(Split, changes)
        )
        return _answer(switch)

    return router


async def _receive(request: Request, file: Path) -> None:
    """The body into the file, piece by piece: it may be larger than memory."""
    with file.open("xb") as out:
        async for piece in request.stream():
            await asyncio.to_thread(out.write, piece)


def _answer(switch: Switch) -> dict[str, Any]:
    return {
        "route": switch.route,
        "prepare_seconds": round(switch.prepare_seconds, 6),
        "flip_seconds": round(switch.flip_seconds, 6),
        "seconds": round(switch.prepare_seconds + switch.flip_seconds, 6),
    }
