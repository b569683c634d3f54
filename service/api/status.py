"""`/ops/status`: how the service is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from service.api.auth import Doorman
from service.contracts import Key, Role
from service.fleet import Host
from service.rounds import Rounds
from service.store.store import Store
from serving.contracts import ReplicaStatus
from serving.errors import HostError


def status_routes(store: Store, host: Host, rounds: Rounds, model: str, doorman: Doorman) -> APIRouter:
    router = APIRouter()
    operator = Depends(doorman.allow(Role.OPERATOR))

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

    return router


async def _replicas(host: Host) -> tuple[list[ReplicaStatus], str | None]:
    try:
        return await host.status(), None
    except HostError as error:
        return [], str(error)
