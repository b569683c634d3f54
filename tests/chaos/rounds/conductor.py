"""The Conductor of a run, as a process: the loop, what triggers it, and the operators' HTTP face of rounds.

Put together as `service/conductor.py` does, without Ray: replicas and attempts are processes, reached over lines.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import uvicorn

from service.api.auth import Doorman
from service.api.edge import application
from service.api.rounds import round_routes
from service.depot import Depot
from service.dry_run import DryRuns
from service.inspecting import Inspector
from service.registry import Registry
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from service.triggers.loop import Triggers
from tests.adapter_files import FINGERPRINTS
from tests.chaos.rounds.attempts import Attempts, Lobby
from tests.chaos.rounds.host import RemoteHost

_MAX_BODY_BYTES = 1 << 16


@dataclass(frozen=True)
class ConductorPlan:
    store_url: str
    settings: Settings
    lobby: Lobby


def conduct(plan: ConductorPlan, listener: socket.socket) -> None:
    """The process's whole life: until it is killed. A loop that ends by itself ends it, as its health check would."""
    asyncio.run(_conduct(plan, listener))


async def _conduct(plan: ConductorPlan, listener: socket.socket) -> None:
    settings, store = plan.settings, Store(plan.store_url)
    host = RemoteHost(plan.lobby.sockets)
    registry = Registry(store, host, Depot.of(settings).adapters, FINGERPRINTS, settings.serving.max_lora_rank)
    model = settings.state / "model"
    rounds = Rounds(store, Attempts(plan.lobby), registry, settings, model, FINGERPRINTS, use_gpu=False)
    dry_runs = DryRuns(Inspector(rounds.collector, store, settings), store, settings, model, use_gpu=False)
    app = application("Operations", max_body_bytes=_MAX_BODY_BYTES)
    app.include_router(round_routes(rounds, dry_runs, store, Doorman(store.keys, insecure=False)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    async with asyncio.TaskGroup() as loops:
        for loop in (rounds.run(), rounds.overview.run(), Triggers(store, rounds, settings).run()):
            loops.create_task(loop)
        loops.create_task(server.serve(sockets=[listener]))
