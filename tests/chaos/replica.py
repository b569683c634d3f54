"""A replica of a chaos run, as a process: the chat application on the real store, as `service/app.py` puts it together.

The engine is a fake. Its listening socket is the supervisor's, as Ray Serve's proxy holds the port, so that clients
wait for the next replica when this one dies. It may be told to kill itself where a killer from outside hardly ever
hits: between the vote's commit and the voter's answer.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import Doorman
from service.api.edge import application
from service.api.exchange import exchange_routes
from service.app import ChatEdge
from service.settings import ServerSettings, StoreSettings
from serving.replica import Replica
from serving.settings import ServingSettings
from tests.chaos.calls import PREFIX
from tests.chaos.wire import Wire
from tests.fakes import FakeEngine

_OPERATIONS = "/ops"  # of which the replica serves the import too, as there is no Conductor here
_MAX_FILE_BYTES = 1 << 16


class Point(enum.StrEnum):
    """Where a replica may be told to die, in the course of one vote."""

    BEFORE_COMMIT = "before commit"  # the row is sent, COMMIT is not
    AFTER_COMMIT = "after commit"  # the database has committed, the program does not know yet
    BEFORE_ANSWER = "before answer"  # the program knows, no byte of the answer has left
    WITHIN_ANSWER = "within answer"  # the head of the answer has left, its body has not


@dataclass(frozen=True)
class Death:
    point: Point
    nth: int  # time that this process comes there, from 1


@dataclass(frozen=True)
class ReplicaPlan:
    name: str
    store_url: str
    folder: Path  # of the run
    death: Death | None


def serve(plan: ReplicaPlan, listener: socket.socket) -> None:
    """The process's whole life: until it is killed, or kills itself, or cannot start."""
    asyncio.run(_serve(plan, listener))


async def _serve(plan: ReplicaPlan, listener: socket.socket) -> None:
    end = End(plan)
    edge = ChatEdge(await end.wired(plan.store_url), ServerSettings(), StoreSettings())
    journal = edge.journal()
    replica = Replica(plan.name, FakeEngine(tokens=2), journal, plan.folder / plan.name, ServingSettings())
    await replica.start()
    doorman = Doorman(journal.store.keys, insecure=False)
    operations = application("Operations", max_body_bytes=_MAX_FILE_BYTES)
    operations.include_router(exchange_routes(journal.store, plan.folder, journal.store.reach, doorman))
    app = Mortal(edge.http(replica, journal), operations, end)
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve(sockets=[listener])


class End:
    """Counts how often the process comes to each point, and ends it at the one that is planned."""

    def __init__(self, plan: ReplicaPlan) -> None:
        self._plan = plan
        self._passed = dict.fromkeys(Point, 0)

    async def wired(self, store_url: str) -> str:
        """A URL of the store by which commits are noticed, where the plan asks for it."""
        points = (Point.BEFORE_COMMIT, Point.AFTER_COMMIT)
        if self._plan.death is None or self._plan.death.point not in points:
            return store_url
        return await Wire(store_url, *(partial(self.at, point) for point in points)).start()

    def at(self, point: Point) -> None:
        self._passed[point] += 1
        if self._plan.death == Death(point, self._passed[point]):
            with (self._plan.folder / "deaths").open("a") as deaths:
                deaths.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """ASGI middleware: chat and operations in one, and the points on the way of a vote's answer."""

    def __init__(self, chat: ASGIApp, operations: ASGIApp, end: End) -> None:
        self._chat = chat
        self._operations = operations
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._chat(scope, receive, send)
            return
        if scope["path"].startswith(_OPERATIONS):
            await self._operations(scope, receive, send)
            return
        voting = (scope["method"], scope["path"]) == ("POST", f"{PREFIX}/feedback")

        async def mortal(message: Message) -> None:
            head = message["type"] == "http.response.start"
            self._end.at(Point.BEFORE_ANSWER if head else Point.WITHIN_ANSWER)
            await send(message)

        await self._chat({**scope, "root_path": PREFIX}, receive, mortal if voting else send)


def died(folder: Path) -> list[Point]:
    """Where the replicas of a run killed themselves."""
    file = folder / "deaths"
    return [Point(line) for line in file.read_text().splitlines()] if file.exists() else []
