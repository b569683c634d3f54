"""`/ops/status`, `/ops/audit`, `/ops/keys`, `/healthz`, `/readyz`: how the service is, and who changed what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.errors import Unavailable
from service.registry import Host
from service.rounds import Rounds
from service.store.store import Store
from serving.contracts import ReplicaStatus
from serving.errors import HostError


class KeyBody(BaseModel):
    """`POST /ops/keys`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    app: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")


def status_routes(store: Store, host: Host, rounds: Rounds, model: str, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    operator = Depends(doorman.allow(Role.OPERATOR))

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers; says nothing of the rest."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        checks = {"store": await _store_fault(store), "replicas": await _replica_fault(store, host)}
        ready = not any(checks.values())
        return JSONResponse(
            {"ready": ready, "checks": {k: v or "ok" for k, v in checks.items()}}, 200 if ready else 503
        )

    @router.get("/ops/status")
    async def status(key: Key = operator) -> dict[str, Any]:
        replicas, trouble = await _replicas(host)
        return {
            "model": model,
            "route": await store.route.read(),
            "replicas": replicas,
            "trouble": trouble,  # why not every replica is listed; null: all are
            "running_round": await store.rounds.running(),
            "funnel": await rounds.preview(),
        }

    @router.get("/ops/audit")
    async def audit(key: Key = operator, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return {"data": await store.audit.list(limit)}

    @router.post("/ops/keys", status_code=201)
    async def issue(body: KeyBody, key: Key = operator) -> dict[str, Any]:
        issued, secret = await store.keys.issue(body.role, body.app)
        await store.audit.write(who=key.app, action="issue_key", subject=issued.id, detail={"role": issued.role})
        return {"key": issued, "secret": secret}

    @router.get("/ops/keys")
    async def list_keys(key: Key = operator) -> dict[str, Any]:
        return {"data": await store.keys.list()}

    @router.delete("/ops/keys/{id}", status_code=204)
    async def revoke(id: str, key: Key = operator) -> Response:
        await store.keys.revoke(id)
        await store.audit.write(who=key.app, action="revoke_key", subject=id, detail={})
        return Response(status_code=204)

    return router


async def _store_fault(store: Store) -> str | None:
    try:
        await store.ping()
    except Unavailable as error:
        return error.message
    return None


async def _replicas(host: Host) -> tuple[list[ReplicaStatus], str | None]:
    try:
        return await host.status(), None
    except HostError as error:
        return [], str(error)


async def _replica_fault(store: Store, host: Host) -> str | None:
    """Every replica must serve what the route row says."""
    try:
        route = await store.route.read()
    except Unavailable as error:
        return error.message
    replicas, trouble = await _replicas(host)
    if trouble is not None:
        return trouble
    lagging = [r.replica for r in replicas if r.generation < route.generation]
    if not replicas:
        return "no replica is running"
    return f"replicas lag behind the route: {', '.join(lagging)}" if lagging else None
