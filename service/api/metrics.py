"""`GET /metrics`: for Prometheus, with a key of the role `metrics` (or an operator's), or without one where that is set."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from service.api.auth import Doorman
from service.contracts import Role
from service.metrics.scrape import Scrape


def metrics_routes(scrape: Scrape, doorman: Doorman, *, without_key: bool) -> APIRouter:
    guards = [] if without_key else [Depends(doorman.allow(Role.METRICS, Role.OPERATOR))]
    router = APIRouter(dependencies=guards)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await scrape.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return router
