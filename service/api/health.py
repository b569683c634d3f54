"""`/healthz` and `/readyz`, of the operations application and of each replica's: is it alive, and can it do its work?"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from service.readiness import Readiness


def health_routes(readiness: Readiness) -> APIRouter:
    """Without a key: whoever asks is a load balancer."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """This process answers; says nothing of the rest."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        health = await readiness.look()
        body = {"ready": health.ready, "degraded": health.degraded, "checks": dict(health.checks)}
        return JSONResponse(body, 200 if health.ready else 503, {"cache-control": "no-store"})

    return router
