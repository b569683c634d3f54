"""`/ops/preferences/import` and `/ops/preferences/export`: preferences from files, and into files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.errors import BadRequest
from service.exchange.exports import ExportFormat, Status, exported
from service.exchange.imports import Outcome, spooled, take_in
from service.store.store import Store
from training.formats import Format

JSON_LINES = "application/x-ndjson"


def exchange_routes(
    store: Store, spool: Path, bring_up_to_date: Callable[[], Awaitable[object]], doorman: Doorman
) -> APIRouter:
    """`spool` is the folder for uploads while they arrive; `bring_up_to_date` matches the votes of the last moments."""
    router = APIRouter(prefix="/ops/preferences")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.post("/import")
    async def import_file(
        request: Request,
        key: Key = operator,
        format: Format | None = None,
        skip_bad: bool = False,
        dry_run: bool = False,
    ) -> Response:
        """The body is the file: JSON lines, also packed by gzip, or Parquet."""
        async with spooled(request.stream(), spool) as file:
            outcome = await take_in(file, store.imports, who=key.app, format=format, skip_bad=skip_bad, dry_run=dry_run)
        return JSONResponse(*answer(outcome))

    @router.get("/export")
    async def export(
        key: Key = operator, format: ExportFormat = "trl", status: Status = "open", summary: bool = False
    ) -> Response:
        await bring_up_to_date()
        lines = exported(store.exports, format, status, summary=summary)
        first = await anext(lines, b"")  # before the answer begins: a store that is down is a 503, no broken stream
        return StreamingResponse(_chain(first, lines), media_type=JSON_LINES, headers={"cache-control": "no-store"})

    return router


def answer(outcome: Outcome) -> tuple[dict[str, Any], int]:
    """JSON and status; a refusal says all that a success says."""
    said = outcome.model_dump(mode="json", exclude={"refused"})
    if not outcome.refused:
        return said, 200
    refusal = BadRequest(
        f"{outcome.faults_total} of {outcome.rows} rows are not valid preferences; nothing was imported. "
        "Mend them, or import the rest with skip_bad.",
        code="invalid_rows",
    )
    return refusal.body() | said, refusal.status


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for lines in rest:
        yield lines
