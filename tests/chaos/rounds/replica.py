"""A replica of a run with rounds, as a process: chats and votes over HTTP, and a line for the Conductor.

As `serving/deployment.py` has it: the real replica and the real edge on the real store, around a fake engine. The HTTP
socket is the supervisor's, as Ray Serve's proxy holds the port; the line is the process's own and is there from when it is ready.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from service.app import ChatEdge
from service.settings import ServerSettings, Settings, StoreSettings
from serving.replica import Replica
from tests.chaos.rounds import line
from tests.fakes import FakeEngine

_TOKENS, _TOKEN_SECONDS = 2, 0.003
_LOAD_SECONDS = 0.2  # of an adapter, so that a kill falls into one now and then
_ASKED = ("prepare", "score", "sample", "abandon", "flip")  # of a replica by the Conductor, beside its status


class SlowEngine(FakeEngine):
    """Takes its time, as engines do."""

    def __init__(self) -> None:
        super().__init__(tokens=_TOKENS)
        self.token_seconds = _TOKEN_SECONDS

    async def load(self, name: str, directory: str) -> None:
        await asyncio.sleep(_LOAD_SECONDS)
        await super().load(name, directory)


@dataclass(frozen=True)
class ReplicaPlan:
    name: str
    store_url: str
    settings: Settings
    sockets: Path


def serve(plan: ReplicaPlan, listener: socket.socket) -> None:
    """The process's whole life: until it is killed."""
    asyncio.run(_serve(plan, listener))


async def _serve(plan: ReplicaPlan, listener: socket.socket) -> None:
    edge = ChatEdge(plan.store_url, ServerSettings(), StoreSettings())
    journal = edge.journal()
    replica = Replica(plan.name, SlowEngine(), journal, plan.settings.cache, plan.settings.serving)
    await replica.start()

    async def answer(method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "status":
            return replica.status()
        assert method in _ASKED, method
        return await getattr(replica, method)(*arguments)

    server = uvicorn.Server(uvicorn.Config(edge.http(replica, journal), log_level="error"))
    async with await line.listen(plan.sockets / plan.name, answer), asyncio.TaskGroup() as tasks:
        tasks.create_task(_follow_route(replica, plan.settings.serving.route_poll_seconds))
        tasks.create_task(server.serve(sockets=[listener]))


async def _follow_route(replica: Replica, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await replica.reconcile()
