"""`GET /ops/preferences/report`: what a round would learn from now, as JSON or as a page."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import HTMLResponse, Response

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.inspecting import Inspector
from service.report.document import HEADERS
from service.report.page import page
from service.tuning import Objective

VARY = {"vary": "accept"}


def report_routes(inspector: Inspector, doorman: Doorman) -> APIRouter:
    router = APIRouter(prefix="/ops/preferences")
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/report")
    async def report(
        key: Key = operator,
        objective: Objective | None = None,
        form: Annotated[Literal["json", "html"] | None, Query(alias="as")] = None,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        made = await inspector.report(objective)
        if (form or _asked_for(accept)) == "html":
            return HTMLResponse(page(made), headers=HEADERS | VARY)
        return Response(made.model_dump_json(), media_type="application/json", headers=VARY)

    return router


def _asked_for(accept: str) -> Literal["json", "html"]:
    """Browsers name HTML, programs name JSON or take anything."""
    return "html" if "text/html" in accept and "application/json" not in accept else "json"
