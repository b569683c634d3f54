"""What a round leaves as evidence: its report as JSON and as a page, release notes, how to train it again; and what
becomes of its pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from service import pairs_fate
from service.api.auth import Doorman
from service.api.bodies import json_body
from service.contracts import Key, Role
from service.evidence import gathering
from service.evidence.notes import notes
from service.evidence.page import page
from service.evidence.recipe import Recipe, recipe
from service.evidence.records import RoundEvidence
from service.report.document import HEADERS
from service.store.round_pairs import Fate
from service.store.store import Store


class PairsBody(BaseModel):
    """`POST /ops/rounds/{n}/pairs`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fate: Fate
    reason: str | None = Field(default=None, max_length=1000)


def evidence_routes(store: Store, model: Path, doorman: Doorman) -> APIRouter:
    """`model`: the directory of the base model."""
    router = APIRouter(prefix="/ops")
    operator, pairs_body = Depends(doorman.allow(Role.OPERATOR)), Depends(json_body(PairsBody))

    @router.get("/rounds/{n}/report")
    async def report(n: int, key: Key = operator) -> RoundEvidence:
        return await gathering.of_round(store, n)

    @router.get("/rounds/{n}/report.html")
    async def report_page(n: int, key: Key = operator) -> HTMLResponse:
        return HTMLResponse(page(await gathering.of_round(store, n)), headers=HEADERS)

    @router.get("/rounds/{n}/replay")
    async def replay(n: int, key: Key = operator) -> Recipe:
        """What it takes to train the round's adapter again; whoever asks does it."""
        return await recipe(store, n, model)

    @router.post("/rounds/{n}/pairs")
    async def pairs(n: int, key: Key = operator, body: PairsBody = pairs_body) -> dict[str, Any]:
        count = await pairs_fate.decide(store, n, body.fate, who=key.app, reason=body.reason)
        return {"round": n, "fate": body.fate, "pairs": count}

    @router.get("/adapters/{name}/notes")
    async def release_notes(name: str, key: Key = operator) -> PlainTextResponse:
        return PlainTextResponse(notes(await gathering.of_adapter(store, name)), media_type="text/markdown")

    return router
